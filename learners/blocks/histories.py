"""Ragged histories to padded arrays of fixed lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from learners.batch import Bools, Context, Ints, Query

BUCKETS = (8, 16, 32, 40, 48, 64, 80, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Lengths that histories are padded to: few shapes, so that a replay meets the same kernels."""


def bucket(length: int) -> int:
    """The smallest bucket that holds `length`; multiples of 1024 above the last."""
    return next((size for size in BUCKETS if size >= length), -(-length // 1024) * 1024)


@dataclass(frozen=True, kw_only=True)
class Padded:
    """Stacks side by side; padding repeats event 0 of the step and is never attended to."""

    index: Ints
    """[S, L] position of each event in the ragged arrays."""
    real: Bools
    """[S, L] False for padding."""
    at: Ints
    """[S, L] microseconds since the stack's first event; padding repeats the stack's last time."""


def pad(context: Context) -> Padded:
    """Pads all stacks to one bucket, times re-based in integers."""
    lengths = np.diff(context.offsets)
    places = np.arange(bucket(int(lengths.max(initial=1))), dtype=np.int64)
    real = places[None, :] < lengths[:, None]
    index = np.where(real, context.offsets[:-1, None] + places[None, :], 0)
    if len(context.at) == 0:
        return Padded(index=index, real=real, at=np.zeros_like(index))
    ends = np.maximum(context.offsets[1:] - 1, 0)
    at = np.where(real, context.at[index], context.at[ends][:, None])
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
