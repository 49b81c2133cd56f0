"""What a learner is before it has seen anything: with the log and the journal it decides every byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from learners import registry
from learners.contract.needs import Needs

if TYPE_CHECKING:
    from learners.arms.group import ArmGroup


@dataclass(frozen=True, kw_only=True)
class LearnerConfig:
    """A learner's name and all that shapes it, as its row in the database and the manifests keep it."""

    learner: str
    seed: int
    options: Mapping[str, Any]
    """By the names of the learner's spec; those not given are as the spec says."""
    tasks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Options of what asks the arms, by kind of task; equal for all arms."""
    resolution_us: int
    """Width of the event clock's tick, microseconds."""
    horizon_us: int | None = None
    """Silence, microseconds, that counts as an outcome; None: none does, or no outcomes are learnt."""
    correction_us: int | None = None
    """Event time, microseconds, for which a silence may be corrected by a label; None: for ever, or none counts."""

    @property
    def label(self) -> str | None:
        """Task of the labels that are learnt; None: none are.

        :raises UnknownLearner, BrokenLearner, BadOption: see `learners.registry`.
        """
        tasks = registry.tasks_of(self.learner, self.seed, **self.options)
        return next((task.label for task in tasks if task.kind == "outcome"), None)

    def as_json(self) -> dict[str, Any]:
        """Plain values; what is as ever is left out. `label` stands there for those who know no learner."""
        config: dict[str, Any] = {
            "seed": self.seed,
            "options": dict(self.options),
            "resolution_us": self.resolution_us,
        }
        if (label := self.label) is not None:
            config["label"] = label
        if self.tasks:
            config["tasks"] = {kind: dict(options) for kind, options in self.tasks.items()}
        spans = {"horizon_us": self.horizon_us, "correction_us": self.correction_us}
        return config | {name: span for name, span in spans.items() if span is not None}

    @classmethod
    def from_json(cls, learner: str, config: Mapping[str, Any]) -> LearnerConfig:
        """The inverse of `as_json`."""
        return cls(
            learner=learner,
            seed=config["seed"],
            options=config["options"],
            tasks=config.get("tasks", {}),
            resolution_us=config["resolution_us"],
            horizon_us=config.get("horizon_us"),
            correction_us=config.get("correction_us"),
        )

    def fresh(self) -> ArmGroup:
        """The learner and its baselines as they are born.

        :raises UnknownLearner, BrokenLearner, BadOption: see `learners.registry`.
        """
        return registry.build_group(self.learner, self.seed, tasks=self.tasks, **self.options)

    def needs(self) -> tuple[Needs, ...]:
        """What the learner and the arms beside it ask for; nothing is built.

        :raises UnknownLearner, BrokenLearner, BadOption: see `learners.registry`.
        """
        return registry.needs_of(self.learner, self.seed, **self.options)
