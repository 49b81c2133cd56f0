"""The state of `drift` for one subject, and how a record changes it. Pure values: nothing here reads a clock.

Records fill an open block; a block of `BLOCK_ROWS` rows or more is closed and becomes one input of each series, so
that an input's variance depends little on how large the steps were. A record whose step was seen changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from msgspec import Struct

from contracts.records import DriftAlarm, LossSum
from runtime.kafka import PartitionOfTopic
from streams.drift.alarms import AlarmBlock, raised
from streams.drift.detectors import MAX_INPUTS, REFERENCE, THRESHOLDS, DetectedChange, Thresholds, find
from streams.drift.drift_series import TWO_SIDED, Signals, WatchedSubject

BLOCK_ROWS = 128
RECENT = 16
"""Blocks whose mixes are kept, to say what moved."""
MAX_NAMES = 256
"""Names a mix keeps apart; the rest is one."""
OTHERS = "(others)"

Mix = dict[str, int]


class OpenBlock(Struct, frozen=True, omit_defaults=True):
    """What was seen since the last block was closed."""

    last_step: int = -1
    """The newest step seen, whichever block it went into."""
    block: AlarmBlock | None = None
    sums: dict[str, LossSum] = {}
    counts: dict[str, Mix] = {}

    @property
    def full(self) -> bool:
        return self.block is not None and self.block.rows >= BLOCK_ROWS


class Series(Struct, frozen=True, omit_defaults=True):
    """One series since its detectors were reset."""

    inputs: tuple[float | None, ...] = ()
    """One for each of the newest blocks; None = the block had no such rows."""
    reference: Mix = {}
    """Of a mix: its first `REFERENCE` blocks; the inputs that follow are distances from it."""
    gathered: int = 0
    """Blocks in the reference."""
    recent: tuple[Mix, ...] = ()


class Watch(Struct, frozen=True, omit_defaults=True):
    """All series of a subject, bounded."""

    last_step: int = -1
    """The last step of the newest closed block."""
    blocks: tuple[AlarmBlock, ...] = ()
    series: dict[str, Series] = {}


def added(open_block: OpenBlock, seen: Signals, offset: int) -> OpenBlock:
    """With one more record, read at `offset`; as it was, if the step is not new."""
    if seen.step <= open_block.last_step:
        return open_block
    new = AlarmBlock(seen.step, seen.step, offset, offset + 1, seen.first_at, seen.last_at, seen.rows)
    sums, counts = dict(open_block.sums), dict(open_block.counts)
    for name, part in seen.sums.items():
        held = sums.get(name, LossSum(sum=0.0, rows=0))
        sums[name] = LossSum(sum=held.sum + part.sum, rows=held.rows + part.rows)
    for name, mix in seen.counts.items():
        counts[name] = mixed(counts.get(name, {}), mix)
    return OpenBlock(seen.step, new if open_block.block is None else open_block.block.and_then(new), sums, counts)


def closed(
    watch: Watch,
    open_block: OpenBlock,
    subject: WatchedSubject,
    *,
    stream: PartitionOfTopic,
    thresholds: Thresholds = THRESHOLDS,
) -> tuple[Watch, tuple[DriftAlarm, ...]]:
    """With a full block taken in, and what that says. A block that was taken in before changes nothing.

    :param stream: that of the subject's records.
    """
    block = open_block.block
    if block is None or open_block.last_step <= watch.last_step:
        return watch, ()
    blocks = (*watch.blocks, block)
    kept = blocks[-MAX_INPUTS // 2 :] if len(blocks) > MAX_INPUTS else blocks
    series, alarms = {}, []
    for name in sorted({*watch.series, *open_block.sums, *open_block.counts}):
        grown = _grown(watch.series.get(name, Series()), open_block.sums.get(name), open_block.counts.get(name))
        change = _judged(grown, name, thresholds)
        if change is not None and (change.grew or name in TWO_SIDED):
            alarms.append(_alarm(subject, name, grown, change, blocks, stream))
            grown = Series()
        elif change is not None:
            grown = _cut(grown, _places(grown)[change.split])
        series[name] = _cut(grown, len(grown.inputs) - len(kept))
    return Watch(open_block.last_step, kept, series), tuple(alarms)


def emptied(open_block: OpenBlock) -> OpenBlock:
    """After it was closed."""
    return OpenBlock(last_step=open_block.last_step)


def mixed(one: Mapping[str, int], other: Mapping[str, int]) -> Mix:
    """The sum; names beyond `MAX_NAMES` are counted together."""
    found = dict(one)
    for name in sorted(other):
        kept = name if name in found or len(found) < MAX_NAMES else OTHERS
        found[kept] = found.get(kept, 0) + other[name]
    return found


def distance(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """Hellinger's, squared: 0 for equal shares, 1 for no name in common."""
    total = sum(one.values()) * sum(other.values())
    return 1.0 - sum(math.sqrt(one[name] * other[name]) for name in sorted(one.keys() & other.keys())) / math.sqrt(
        total
    )


def _grown(series: Series, part: LossSum | None, mix: Mapping[str, int] | None) -> Series:
    """With the newest block's input; rounded, so that a stored state is short."""
    if mix is not None:
        recent = (*series.recent, dict(mix))[-RECENT:]
        if series.gathered < REFERENCE:
            return Series((), mixed(series.reference, mix), series.gathered + 1, recent)
        value: float | None = _rounded(distance(series.reference, mix))
        return Series((*series.inputs, value), series.reference, series.gathered, recent)
    value = _rounded(part.sum / part.rows) if part is not None and part.rows else None
    return Series((*series.inputs, value), series.reference, series.gathered, series.recent)


def _judged(series: Series, name: str, thresholds: Thresholds) -> DetectedChange | None:
    newest = series.inputs[-1] if series.inputs else None
    if newest is None:
        return None
    given = [value for value in series.inputs if value is not None]
    return find(given, two_sided=name in TWO_SIDED, thresholds=thresholds)


def _places(series: Series) -> list[int]:
    """Which of the inputs are numbers."""
    return [place for place, value in enumerate(series.inputs) if value is not None]


def _cut(series: Series, count: int) -> Series:
    """Without the oldest inputs."""
    return Series(series.inputs[max(count, 0) :], series.reference, series.gathered, series.recent)


def _alarm(
    subject: WatchedSubject,
    name: str,
    series: Series,
    change: DetectedChange,
    blocks: tuple[AlarmBlock, ...],
    stream: PartitionOfTopic,
) -> DriftAlarm:
    since = blocks[-len(series.inputs) :]
    split = _places(series)[change.split]
    lately: Mix = {}
    for mix in series.recent[-(len(series.inputs) - split) :]:
        lately = mixed(lately, mix)
    return raised(
        subject,
        name,
        change,
        since[:split],
        since[split:],
        stream=stream,
        shares=(series.reference, lately),
    )


def _rounded(value: float) -> float | None:
    """None for what is no number: a learner's trouble, told by `train`."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
