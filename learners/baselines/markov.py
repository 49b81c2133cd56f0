"""The floor: what counting alone achieves, learnt from the same steps under the same contract.

Types: decayed counts of (last type, next type), smoothed towards decayed counts of the next type.
Gaps: a mixture of exponentials with fixed rates (a hyperexponential), whose weights are decayed sums of
responsibilities, one set per last type smoothed towards the common one: one online EM step per batch
(Cappé and Moulines 2009). No gradient, no tuning beyond three constants; type and gap are independent given
the last type. Times in seconds.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Final

import numpy as np
import torch

from learners.baselines.specs import MARKOV, MarkovConfig
from learners.blocks.interval import rows_with, tick_of
from learners.blocks.padding import last_at, last_seen
from learners.contract.batch import Batch, Context, Floats, Ints, Query, Target, TargetKind
from learners.contract.needs import Needs
from learners.contract.protocol import Loss, Losses, Prediction, Report, State
from learners.contract.state_codec import check_like, check_names
from learners.contract.string_index import UNKNOWN, UNKNOWN_NAME, Numbered, StringIndex, rows_for

RATES: Final = 10.0 ** -np.arange(-3.0, 9.0, 0.5)
"""[J] per second: mean gaps from a millisecond to thirty years."""
DECAY: Final = 1.0 - 1e-4
"""Weight of the past, per row learnt: a memory of about 10,000 events."""
SMOOTHING: Final = 5.0
"""Rows' worth of belief in the common counts, where a last type's own are few."""
TYPE_BLOCK: Final = 64
TINY: Final = 1e-300


class MarkovCounts:
    """Decayed Markov counts and hyperexponential gaps."""

    version: Final = MARKOV.version

    def __init__(self, config: MarkovConfig | None = None, name: str = MARKOV.name) -> None:
        self.name: Final = name
        self.config: Final = config or MarkovConfig()
        self._vocabulary = StringIndex(self.config.max_types)
        self._types = np.zeros((TYPE_BLOCK, TYPE_BLOCK))
        """[last, next] decayed counts; row UNKNOWN also serves empty histories."""
        self._gaps = np.zeros((TYPE_BLOCK, len(RATES)))
        """[last, J] decayed responsibilities."""

    @property
    def needs(self) -> Needs:
        return MARKOV.needs(self.config)

    def predict(self, context: Context, query: Query) -> Prediction:
        """Closed form but for the quantiles, which are bisected in log time."""
        last = self._last(context, query)
        since = _seconds(query.now - last_at(context, query))
        types = self._type_log_probs()[last]
        alive = _log_alive(self._gap_weights()[last], since)
        quantiles = np.zeros((len(query), len(query.quantiles)))
        for column, q in enumerate(query.quantiles):
            quantiles[:, column] = _quantile(alive, q)
        return Prediction(
            quantiles=torch.from_numpy(quantiles),
            types=(*self._vocabulary.names, UNKNOWN_NAME),
            type_log_probs=torch.from_numpy(np.concatenate([types[:, 1:], types[:, :1]], axis=1)),
            memo=(query.now, types, alive),
        )

    def score(self, prediction: Prediction, target: Target) -> Losses:
        """ "time", "type", "error" and "survival", as PromptTPP has them."""
        now, types, alive = _memo(prediction)
        at = np.maximum(target.at, now)
        timed, typed, silent = rows_with(target)
        lo, hi = tick_of(now, at, target.resolution)
        number = self._vocabulary.numbers(target.type) if target.kind is TargetKind.EVENT else 0 * at
        log_p = -_log_sum(alive + _log_tick(_seconds(lo - now), _seconds(hi - lo)))
        wrong = prediction.type_log_probs.argmax(dim=1).numpy() != np.where(number == 0, types.shape[1], number) - 1
        rows = np.arange(len(at))
        return {
            "time": _loss(log_p + np.log(_seconds(hi - lo)), timed),
            "type": _loss(-types[rows, number], typed),
            "error": _loss(wrong.astype(np.float64), typed),
            "survival": _loss(-_log_sum(alive - RATES * _seconds(at - now)[:, None]), silent),
        }

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        if len(batch) == 0:
            return Report(losses={})
        prediction = prediction or self.predict(batch.context, batch.query)
        losses = {name: float(loss.value.mean()) for name, loss in self.score(prediction, batch.target).items()}
        strings = batch.context.type.tolist()
        if batch.target.kind is TargetKind.EVENT:
            self._count(batch, _memo(prediction)[2])
            strings += batch.target.type.tolist()
        numbered = self._vocabulary.learn(strings)
        self._make_room(numbered)
        return Report(
            losses=losses,
            actions=tuple(f"type {new.evicted!r} gave its row to {new.name!r}" for new in numbered if new.evicted),
        )

    def _count(self, batch: Batch, alive: Floats) -> None:
        last, target = self._last(batch.context, batch.query), batch.target
        keep = DECAY ** len(batch)
        self._types *= keep
        self._gaps *= keep
        np.add.at(self._types, (last, self._vocabulary.numbers(target.type)), target.weight)
        lo, hi = tick_of(batch.query.now, np.maximum(target.at, batch.query.now), target.resolution)
        joint = alive + _log_tick(_seconds(lo - batch.query.now), _seconds(hi - lo))
        share = np.exp(joint - _log_sum(joint)[:, None])  # [B, J]
        np.add.at(self._gaps, last, share * (target.weight * target.timed)[:, None])

    def _last(self, context: Context, query: Query) -> Ints:
        """[B] number of each row's last type; UNKNOWN for an empty history."""
        if len(context.type) == 0:
            return np.zeros(len(query), dtype=np.int64)
        seen = last_seen(context, query)
        return np.where(seen >= 0, self._vocabulary.numbers(context.type[np.maximum(seen, 0)]), UNKNOWN)

    def _type_log_probs(self) -> Floats:
        """[K, K] log p(next | last), UNKNOWN first; nothing has probability 0."""
        counts = self._types[: len(self._vocabulary), : len(self._vocabulary)]
        common = counts.sum(axis=0) + 0.5
        prior = SMOOTHING * common / common.sum()
        return np.asarray(np.log((counts + prior) / (counts.sum(axis=1, keepdims=True) + SMOOTHING)))

    def _gap_weights(self) -> Floats:
        """[K, J] mixture weights for each last type."""
        counts = self._gaps[: len(self._vocabulary)]
        common = counts.sum(axis=0) + 0.05
        prior = SMOOTHING * common / common.sum()
        return np.asarray((counts + prior) / (counts.sum(axis=1, keepdims=True) + SMOOTHING))

    def _make_room(self, numbered: tuple[Numbered, ...]) -> None:
        more = rows_for(len(self._vocabulary), block=TYPE_BLOCK) - len(self._gaps)
        if more > 0:
            self._types = np.pad(self._types, ((0, more), (0, more)))
            self._gaps = np.pad(self._gaps, ((0, more), (0, 0)))
        for new in numbered:
            self._types[new.number], self._types[:, new.number], self._gaps[new.number] = 0.0, 0.0, 0.0

    def forget(self, users: Container[str]) -> None:
        """Nothing is kept by user: the counts are of everybody's events."""

    def state(self) -> State:
        return {
            "vocabulary": self._vocabulary.state(),
            "types": torch.from_numpy(self._types.copy()),
            "gaps": torch.from_numpy(self._gaps.copy()),
        }

    def serving_state(self) -> State:
        """The whole state: counts are all there is."""
        return self.state()

    def load(self, state: State) -> None:
        check_names(state, {"vocabulary", "types", "gaps"})
        vocabulary = StringIndex.from_state(state["vocabulary"])
        rows = rows_for(len(vocabulary), block=TYPE_BLOCK)
        check_like("types", state["types"], torch.zeros(rows, rows, dtype=torch.float64))
        check_like("gaps", state["gaps"], torch.zeros(rows, len(RATES), dtype=torch.float64))
        self._vocabulary = vocabulary
        self._types, self._gaps = state["types"].numpy().copy(), state["gaps"].numpy().copy()


def _memo(prediction: Prediction) -> tuple[Ints, Floats, Floats]:
    """`now` [B], type log-probabilities [B, K] and log mixture weights of those alive [B, J]."""
    assert isinstance(prediction.memo, tuple)
    now, types, alive = prediction.memo
    return now, types, alive


def _seconds(microseconds: Ints) -> Floats:
    return np.asarray(microseconds * 1e-6, dtype=np.float64)


def _log_sum(x: Floats) -> Floats:
    """Log of the sum of exponentials over the last axis."""
    return np.asarray(np.logaddexp.reduce(x, axis=-1))


def _log_alive(weights: Floats, since: Floats) -> Floats:
    """[B, J] log mixture weights once `since` seconds of silence are known."""
    joint = np.log(weights) - RATES * since[:, None]
    return np.asarray(joint - _log_sum(joint)[:, None])


def _log_tick(lo: Floats, width: Floats) -> Floats:
    """[B, J] log probability of (lo, lo + width] for each exponential."""
    inside = -np.expm1(-RATES * width[:, None])
    return np.asarray(np.log(np.maximum(inside, TINY)) - RATES * lo[:, None])


def _quantile(alive: Floats, q: float) -> Floats:
    """[B] seconds by which a share `q` of those alive has had an event: 80 bisections of log seconds."""
    low, high = np.full(len(alive), -25.0), np.full(len(alive), 30.0)
    for _ in range(80):
        middle = (low + high) / 2.0
        late = _log_sum(alive - RATES * np.exp(middle)[:, None]) > np.log1p(-q)
        low, high = np.where(late, middle, low), np.where(late, high, middle)
    return np.asarray(np.exp(high))


def _loss(value: Floats, mask: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Loss:
    return Loss(value=torch.from_numpy(np.where(mask, value, 0.0)), mask=torch.from_numpy(mask))
