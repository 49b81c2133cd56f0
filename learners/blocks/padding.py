"""Ragged histories to padded arrays of fixed lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learners.contract.batch import Bools, Context, Ints, Query

STEP = 8
"""Lengths that histories are padded to are multiples of this up to `FINE`, and of `FINE` above it: few
shapes, so that a replay meets the same kernels."""
FINE = 128


def bucket(length: int) -> int:
    """The smallest padded length that holds `length`; at least one step."""
    step = STEP if length <= FINE else FINE
    return max(-(-length // step), 1) * step


@dataclass(frozen=True, kw_only=True)
class Padded:
    """Stacks side by side; padding repeats event 0 of the step and is never attended to."""

    index: Ints
    """[S, L] position of each event in the ragged arrays."""
    real: Bools
    """[S, L] False for padding."""
    at: Ints
    """[S, L] microseconds since the stack's first event; padding repeats the last time."""


def pad(context: Context, query: Query) -> Padded:
    """Pads all stacks to one bucket, times re-based in integers; what no row may see is left out."""
    lengths = np.zeros(len(context), dtype=np.int64)
    np.maximum.at(lengths, query.stack, query.visible)
    places = np.arange(bucket(int(lengths.max(initial=0))), dtype=np.int64)
    real = places[None, :] < lengths[:, None]
    index = np.where(real, context.offsets[:-1, None] + places[None, :], 0)
    if len(context.at) == 0:
        return Padded(index=index, real=real, at=np.zeros_like(index))
    ends = context.offsets[:-1] + np.maximum(lengths - 1, 0)
    at = np.where(real, context.at[index], context.at[np.minimum(ends, len(context.at) - 1)][:, None])
    return Padded(index=index, real=real, at=at - at[:, :1])


def last_seen(context: Context, query: Query) -> Ints:
    """[B] position, in the ragged arrays, of each row's last visible event; -1 for an empty history."""
    return np.where(query.visible > 0, context.offsets[query.stack] + query.visible - 1, -1)


def last_at(context: Context, query: Query) -> Ints:
    """[B] microseconds of each row's last visible event; `now` for an empty history, and never above it."""
    if len(context.at) == 0:
        return query.now
    seen = last_seen(context, query)
    return np.where(seen >= 0, np.minimum(context.at[np.maximum(seen, 0)], query.now), query.now)
