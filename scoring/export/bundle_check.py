"""Does a bundle answer as it did where it was made?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from runtime.device_class import device_class
from scoring.export.bundle import EXAMPLE, BadBundle, Bundle, learner_in
from scoring.export.bundle_example import THREADS, answer_of, one_way

RTOL, ATOL = 1e-5, 1e-6
"""Between device classes; on one class the answer is the same to the last bit."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """How a bundle's answer compares with the one it carries."""

    bundle: str
    learner: str
    snapshot: str
    figures: int
    """Numbers compared."""
    exact: bool
    """Device class as at the export: equal to the last bit. Else within `RTOL` and `ATOL`."""
    device_class: str
    """Here."""


def check(bundle: Bundle, *, where: str) -> Checked:
    """Loads the bundle, asks its example again and compares.

    :raises BadBundle: it cannot be loaded, or answers otherwise.
    """
    learner = learner_in(bundle, where=where)
    try:
        example = json.loads(bundle.example)
        expected = example["answer"]
        with one_way():
            found = answer_of(learner, example, named=[one["type"] for one in expected.get("next_type", ())])
    except (ValueError, KeyError, TypeError, ArithmeticError, RuntimeError) as error:
        what = f"its example cannot be asked: {type(error).__name__}: {error}"
        raise BadBundle(what, where=f"{where}/{EXAMPLE}", hint="export the snapshot again") from error
    here = device_class(threads=THREADS)
    exact = here == bundle.manifest["device_class"]
    if wrong := differences(expected, found, exact=exact):
        what = f"it answers otherwise than where it was made ({len(wrong)} numbers), e.g. {wrong[0]}"
        todo = f"made on {bundle.manifest['device_class']}, asked on {here}; do not serve from it"
        raise BadBundle(what, where=f"{where}/{EXAMPLE}", hint=todo)
    return Checked(
        bundle=bundle.id,
        learner=bundle.manifest["learner"],
        snapshot=bundle.manifest["snapshot"]["id"],
        figures=len(_figures(expected)),
        exact=exact,
        device_class=here,
    )


def differences(expected: Mapping[str, Any], found: Mapping[str, Any], *, exact: bool) -> list[str]:
    """Numbers of an answer that another one has not, within the tolerance of device classes unless `exact`."""
    other = _figures(found)
    return [
        f"{name}: {figure!r} expected, {other.get(name)!r} found"
        for name, figure in _figures(expected).items()
        if name not in other or not _equal(figure, other[name], exact)
    ]


def _equal(one: float | None, other: float | None, exact: bool) -> bool:
    if one is None or other is None or exact:
        return one == other
    return abs(one - other) <= ATOL + RTOL * abs(one)


def _figures(answer: Mapping[str, Any]) -> dict[str, float | None]:
    """Every number of an answer, by what it is."""
    found: dict[str, float | None] = {}
    for one in answer.get("next_event", ()):
        found[f"seconds of quantile {one['quantile']}"] = one["seconds"]
    for one in answer.get("next_type", ()):
        found[f"probability of type {one['type']!r}"] = one["probability"]
    if "other_types" in answer:
        found["probability of other types"] = answer["other_types"]
    for one in answer.get("ranking", ()):
        found[f"logit of item {one['item_id']!r}"] = one["logit"]
        found[f"probability of item {one['item_id']!r}"] = one["probability"]
    return found
