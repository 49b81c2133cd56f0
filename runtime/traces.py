"""Where an error came from: types, what may be said of them, files and lines. Never a local variable."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from runtime.redaction import said

ERRORS: Final = 6
"""Of a chain, or a group: the one raised, and those behind it."""
FRAMES_FIRST, FRAMES_LAST = 4, 12
"""Of an error, where it was called and where it was raised."""


def trace(error: BaseException, *, people: bool = False) -> list[dict[str, Any]]:
    """An error and those behind it, the one raised first: {"type", "said", "frames": ["file:line function", ...]}.

    :param people: with its whole text, which may name people.
    """
    return [
        {
            "type": type(one).__name__,
            "said": f"{type(one).__name__}: {_whole(one)}" if people else said(one),
            "frames": _frames(one),
        }
        for _, one in zip(range(ERRORS), _chain(error), strict=False)
    ]


def flat(traced: Sequence[Mapping[str, Any]]) -> str:
    """The same in one line, the frame that raised first."""
    return "; behind it ".join(f"{one['said']} at {' < '.join(reversed(one['frames']))}" for one in traced)


def _whole(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its __str__ is wrong
        return "(it cannot be shown)"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Breadth first, each once."""
    seen, todo = set[int](), [error]
    while todo:
        one = todo.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        todo += one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        behind = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
        todo += [behind] if behind is not None else []


def _frames(error: BaseException) -> list[str]:
    places = [
        f"{_short(frame.f_code.co_filename)}:{line} {frame.f_code.co_name}"
        for frame, line in traceback.walk_tb(error.__traceback__)
    ]
    if len(places) <= FRAMES_FIRST + FRAMES_LAST + 1:
        return places
    left_out = len(places) - FRAMES_FIRST - FRAMES_LAST
    return [*places[:FRAMES_FIRST], f"({left_out:,} left out)", *places[-FRAMES_LAST:]]


def _short(file: str) -> str:
    return "/".join(PurePath(file).parts[-3:])
