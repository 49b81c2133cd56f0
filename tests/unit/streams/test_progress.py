"""What progress says beside losses: confidence in types, prompts retrieved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from learners.arms.group import LEARNER, LossTotal
from learners.contract.made_up.streams import batch_of, random_batch, random_histories
from learners.registry import build_group
from streams.train.progress import confidence_of


def test_confidence_is_the_probability_of_the_type_held_most_probable_over_the_rows() -> None:
    arm_group = build_group("markov")
    for seed in range(3):
        report = arm_group.step(random_batch(seed, rows=16, length=4))
    found = confidence_of(report)
    assert found is not None
    best = report.prediction.type_log_probs.exp().max(dim=1).values
    assert found.rows == report.losses[LEARNER]["error"].count == 16
    assert found.sum == pytest.approx(float(best.sum()))
    assert 0.2 < found.sum / found.rows < 1.0


def test_a_learner_that_names_no_types_has_no_confidence() -> None:
    report = build_group("markov").step(random_batch(1, rows=4, length=3))
    silent = replace(report, prediction=replace(report.prediction, type_log_probs=torch.zeros(4, 0)))
    assert confidence_of(silent) is None
    assert confidence_of(replace(report, losses={LEARNER: {"error": LossTotal(sum=1.0, count=3)}})) is None


def test_prompttpp_tells_which_prompts_its_rows_retrieved() -> None:
    torch.set_num_threads(1)
    arm_group = build_group("prompttpp", pool=6, retrieved=2)
    histories = random_histories(0, 8, 5)
    report = arm_group.step(batch_of(histories, [(row, 4) for row in range(8)]))
    layers = {name.split(".")[0] for name in report.retrieved}
    assert {int(name.split(".")[1]) for name in report.retrieved} <= set(range(6))
    for layer in layers:
        rows = [count for name, count in report.retrieved.items() if name.startswith(f"{layer}.")]
        assert sum(rows) == 2 * 8
        assert max(rows) <= 8
    assert len(layers) == len(arm_group.learner.state()["usage"])


def test_a_learner_without_a_pool_tells_of_none() -> None:
    assert build_group("markov").step(random_batch(2, rows=4, length=3)).retrieved == {}
    plain = build_group("prompttpp", pool=0, retrieved=0).step(random_batch(2, rows=4, length=3))
    assert plain.retrieved == {}
    assert np.isfinite(plain.losses[LEARNER]["type"].mean)
