"""Recovery of a known process: Hawkes with mu .2, jump .8, decay 1 on [0, 100], 1,000 sequences.

The gate is the specification's: a trained model closes at least 90 % of the gap between a Poisson process
and the truth, in nats per event, on sequences it never saw. One type, so that time alone is learnt.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.contract.batch import Floats, TargetKind
from learners.contract.made_up.streams import SECOND, START, MadeUpHistory, batch_of, hawkes, words
from learners.models.prompttpp.learner import PromptTPP
from learners.models.prompttpp.spec import PromptTPPConfig

MU, JUMP, DECAY, HORIZON = 0.2, 0.8, 1.0, 100.0
WINDOW = 64
STEPS = 600


def sequences(seed: int, count: int) -> list[Floats]:
    rng = np.random.default_rng(seed)
    drawn = (hawkes(rng, mu=MU, jump=JUMP, decay=DECAY, horizon=HORIZON) for _ in range(count))
    return [np.asarray(times) for times in drawn if len(times) >= 8]


def history(times: Floats) -> MadeUpHistory:
    at = START + np.round(times * SECOND).astype(np.int64)
    return MadeUpHistory(at=at, type=words(["event"] * len(at)))


def true_losses(times: Floats) -> list[float]:
    """-log density of each gap after the first event, nats of a density per second."""
    excited, losses = 0.0, []
    for gap in np.diff(times):
        excited += JUMP
        fallen = excited * np.exp(-DECAY * gap)
        losses.append(MU * gap + (excited - fallen) / DECAY - np.log(MU + fallen))
        excited = fallen
    return losses


def train(learner: PromptTPP, train_on: list[Floats]) -> None:
    """Steps of 8 stretches of 64 events, 24 gaps learnt in each."""
    rng = np.random.default_rng(0)
    for _ in range(STEPS):
        histories, rows = [], []
        for stack in range(8):
            times = train_on[int(rng.integers(len(train_on)))]
            end = int(rng.integers(WINDOW, len(times) + 1)) if len(times) > WINDOW else len(times)
            histories.append(history(times[max(0, end - WINDOW) : end]))
            asked = np.arange(max(1, len(histories[-1]) - 40), len(histories[-1]))
            chosen = rng.choice(asked, size=min(24, len(asked)), replace=False)
            rows += [(stack, int(visible)) for visible in chosen]
        learner.learn(batch_of(histories, rows))


def losses_and_residuals(learner: PromptTPP, test_on: list[Floats]) -> tuple[Floats, Floats]:
    """Loss and integrated intensity of every gap, each behind 40 to 64 events of history."""
    losses, residuals = [], []
    for times in test_on:
        for start in range(1, len(times), 24):
            first, end = max(0, start - 40), min(len(times), start + 24)
            batch = batch_of([history(times[first:end])], [(0, i - first) for i in range(start, end)])
            prediction = learner.predict(batch.context, batch.query)
            losses.append(learner.score(prediction, batch.target)["time"].value.numpy())
            tick = replace(batch.target, kind=TargetKind.TICK)
            residuals.append(learner.score(prediction, tick)["survival"].value.numpy())
    return np.concatenate(losses), np.concatenate(residuals)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_trained_model_closes_nine_tenths_of_the_gap_to_the_true_hawkes_process() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        train_on, test_on = sequences(1, 1000), sequences(2, 30)
        learner = PromptTPP(PromptTPPConfig(last_n=WINDOW, learning_rate=0.005, clip_norm=0.2, warmup_events=10**9))
        train(learner, train_on)
        losses, residuals = losses_and_residuals(learner, test_on)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    mean_gap = np.concatenate([np.diff(times) for times in train_on]).mean()
    gaps = np.concatenate([np.diff(times) for times in test_on])
    poisson = float(np.mean(np.log(mean_gap) + gaps / mean_gap))
    truth = float(np.mean([loss for times in test_on for loss in true_losses(times)]))
    closed = (poisson - losses.mean()) / (poisson - truth)
    ordered = 1.0 - np.exp(-np.sort(residuals))
    ks = float(np.abs(ordered - np.arange(len(ordered)) / len(ordered)).max())
    print(f"model {losses.mean():.4f}, truth {truth:.4f}, Poisson {poisson:.4f}: closed {closed:.3f}")
    print(f"residual mean {residuals.mean():.3f}, KS {ks:.3f} over {len(residuals)} gaps")
    assert closed >= 0.9
    assert residuals.mean() == pytest.approx(1.0, abs=0.1)
    assert ks < 0.1
