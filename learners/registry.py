"""Learners by name: entry points of the group `driftline.learners`, each of which names a `LearnerSpec`.

A spec is imported when it is asked for, and imports no torch; a learner is imported when it is built. A package that
is broken fails its own learners alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final

from learners.contract.needs import Needs, TaskSpec
from learners.contract.spec import BadOption, LearnerSpec, configured

if TYPE_CHECKING:
    from learners.arms.group import ArmGroup
    from learners.contract.protocol import Learner

GROUP: Final = "driftline.learners"


class UnknownLearner(ValueError):
    """No package that is installed brings a learner of this name; the message names those there are."""


class BrokenLearner(ImportError):
    """The package that brings a learner cannot be imported, or brings something else."""


def names() -> tuple[str, ...]:
    """All there are, sorted; nothing of theirs is imported."""
    return tuple(sorted(_entries()))


def spec_of(name: str) -> LearnerSpec:
    """The learner's spec.

    :raises UnknownLearner: there is no such learner. :raises BrokenLearner: its package fails.
    """
    entry = _entries().get(name)
    if entry is None:
        near = get_close_matches(name, names(), 1)
        meant = f" (meant: {near[0]}?)" if near else ""
        raise UnknownLearner(f"no learner {name!r}{meant}; there are {', '.join(names()) or 'none'}")
    return _loaded(entry)


def arms_of(name: str) -> tuple[str, ...]:
    """Names of all variants of a learner, run by default or not.

    :raises UnknownLearner, BrokenLearner: as `spec_of`.
    """
    return tuple(spec_of(name).variants)


def build_variant(name: str, variant: str, seed: int = 0, **options: Any) -> Learner:
    """A fresh variant of a learner.

    :raises UnknownLearner, BrokenLearner, BadOption: as `build`. :raises KeyError: there is no such variant.
    """
    spec = spec_of(name)
    return _variant(spec, variant, spec.variants[variant].config(spec.configured(options, seed=seed)))


def build(name: str, seed: int = 0, **options: Any) -> Learner:
    """A fresh learner.

    :raises UnknownLearner, BrokenLearner, BadOption: see `spec_of` and `LearnerSpec.configured`.
    """
    spec = spec_of(name)
    return _built(spec, spec.configured(options, seed=seed), name)


def baselines_of(name: str, config: Any) -> dict[str, Learner]:
    """Fresh arms that run beside a learner, by the names they have in its group.

    :param config: the learner's.
    """
    spec = spec_of(name)
    return {arm: _arm(spec, arm, config) for arm in spec.baselines}


def needs_of(name: str, seed: int = 0, **options: Any) -> tuple[Needs, ...]:
    """What a learner and the arms beside it ask for. Nothing is built.

    :raises UnknownLearner, BrokenLearner, BadOption: as `build`.
    """
    spec = spec_of(name)
    config = spec.configured(options, seed=seed)
    found = [spec.needs(config)]
    for arm in spec.baselines:
        if (variant := spec.variants.get(arm)) is not None:
            found.append(spec.needs(variant.config(config)))
        else:
            other = spec_of(arm)
            found.append(other.needs(other.shared(config)))
    return tuple(found)


def tasks_of(name: str, seed: int = 0, **options: Any) -> tuple[TaskSpec, ...]:
    """What a learner answers. Nothing is built.

    :raises UnknownLearner, BrokenLearner, BadOption: as `build`.
    """
    spec = spec_of(name)
    return spec.tasks(spec.configured(options, seed=seed))


def check_tasks(tasks: Mapping[str, Mapping[str, Any]]) -> None:
    """:raises BadOption: options are given for a kind of task that has none."""
    if unknown := sorted(tasks.keys() - {"ranking"}):
        raise BadOption(f"no options for tasks of the kind {', '.join(map(repr, unknown))}; there are some for ranking")


def build_group(
    name: str, seed: int = 0, *, tasks: Mapping[str, Mapping[str, Any]] | None = None, **options: Any
) -> ArmGroup:
    """A fresh learner with its baselines, and with what asks them.

    :param tasks: options of its tasks by kind, equal for all arms.
    :raises UnknownLearner, BrokenLearner, BadOption: as `build`; `tasks` names one that it has not.
    """
    from learners.arms.group import ArmGroup

    spec = spec_of(name)
    config = spec.configured(options, seed=seed)
    asking = _asking(spec, config, tasks or {})
    return ArmGroup(_built(spec, config, name), baselines_of(name, config), **asking)


def _asking(spec: LearnerSpec, config: Any, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What asks the arms of a group, by the parameter of `ArmGroup`."""
    check_tasks(tasks)
    kinds = {task.kind for task in spec.tasks(config)}
    if foreign := sorted(tasks.keys() - kinds):
        raise BadOption(f"learner {spec.name} has no task of the kind {', '.join(map(repr, foreign))}")
    asking: dict[str, Any] = {}
    if "ranking" in kinds:
        from learners.tasks.ranking import Ranking, RankingConfig

        asking["ranking"] = Ranking(
            configured(RankingConfig, tasks.get("ranking", {}), like=config, what="task ranking")
        )
    if "outcome" in kinds:
        from learners.baselines.counterparty_features import CounterpartyFeatures

        asking["parties"] = CounterpartyFeatures(capacity=config.max_parties, prior=config.prior)
    return asking


def _arm(spec: LearnerSpec, arm: str, config: Any) -> Learner:
    if (variant := spec.variants.get(arm)) is not None:
        return _variant(spec, arm, variant.config(config))
    other = spec_of(arm)
    return _built(other, other.shared(config), arm)


def _variant(spec: LearnerSpec, name: str, config: Any) -> Learner:
    if not spec.variants[name].frozen:
        return _built(spec, config, name)
    from learners.arms.frozen import Frozen

    return Frozen(_built(spec, config, spec.name), warmup_events=config.warmup_events)


def _built(spec: LearnerSpec, config: Any, name: str) -> Learner:
    return spec.builder()(config, name)


@cache
def _entries() -> Mapping[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


@cache
def _loaded(entry: EntryPoint) -> LearnerSpec:
    try:
        spec = entry.load()
    except Exception as error:  # whatever a foreign package does while it is imported
        raise BrokenLearner(f"learner {entry.name!r} ({entry.value}): {type(error).__name__}: {error}") from error
    if not isinstance(spec, LearnerSpec) or spec.name != entry.name:
        raise BrokenLearner(f"learner {entry.name!r} ({entry.value}): that is no LearnerSpec of this name")
    return spec


__all__ = [
    "BadOption",
    "BrokenLearner",
    "UnknownLearner",
    "arms_of",
    "baselines_of",
    "build",
    "build_group",
    "build_variant",
    "check_tasks",
    "names",
    "needs_of",
    "spec_of",
    "tasks_of",
]
