"""What a run showed, and whether it can be told from the quiet one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One run."""

    seed: int
    seconds: float
    trouble: tuple[str, ...] = ()
    """Everything that was wrong; () = nothing."""
    verify: str = ""
    """What `driftline verify` printed."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Learner -> that of its final snapshot's tensors."""
    replayed: int = 0
    """Newest snapshots that `replay-journal` learnt again to the same bytes."""
    kills: Mapping[str, int] = field(default_factory=dict)
    """Process, or server -> how often it was killed."""
    bites: Mapping[str, int] = field(default_factory=dict)
    """What shows that kills came at a bad moment -> how often."""
    alarms: str = ""
    alarms_repeated: int = 0
    questions: int = 0

    def like(self, quiet: Outcome) -> bool:
        """Whether nobody can tell them apart."""
        return not self.trouble and self.sha256 == quiet.sha256 and "none" not in self.sha256.values()


BITES = (
    "ingest batches rolled back",
    "ingest commits fenced",
    "prompttpp steps repeated",
    "sdim steps repeated",
    "drift gone on from the middle",
    "score questions answered again",
    "maintain killed in a transaction",
    "export killed while it published",
    "sessions of Postgres ended",
    "broker killed",
)
"""Each must have happened, over five runs or more."""


def line(outcome: Outcome, quiet: Outcome) -> str:
    """A run in one paragraph."""
    weights = ", ".join(
        f"{learner} {sha256[:12]} {'same' if sha256 == quiet.sha256.get(learner) else 'DIFFERENT'}"
        for learner, sha256 in outcome.sha256.items()
    )
    return "\n".join(
        (
            f"seed {outcome.seed:>3}  {outcome.seconds:5.1f} s  {'passed' if outcome.like(quiet) else 'FAILED'}  "
            f"{weights}; {outcome.replayed} snapshots replayed; alarms: {outcome.alarms}; "
            f"{outcome.questions} questions answered",
            f"          kills: {_counted(outcome.kills)}",
            f"          bites: {_counted(outcome.bites)}, alarms repeated {outcome.alarms_repeated}",
            *(f"          TROUBLE {what}" for what in outcome.trouble),
        )
    )


def verdict(quiet: Outcome, outcomes: Sequence[Outcome], *, only: bool) -> tuple[bool, str]:
    """Whether all is well, and the last lines.

    :param only: some kinds of disturbance were left out, so nothing need have bitten.
    """
    bites: Counter[str] = Counter()
    kills: Counter[str] = Counter()
    for outcome in outcomes:
        bites.update(outcome.bites)
        kills.update(outcome.kills)
    blunt = [what for what in BITES if not bites[what]] if not only else []
    passed = sum(outcome.like(quiet) for outcome in (quiet, *outcomes))
    failed = len(outcomes) + 1 - passed
    lines = (
        f"over {len(outcomes)} runs: kills: {_counted(kills)}",
        f"bites: {_counted(bites)}" + (f"; NEVER BIT: {', '.join(blunt)}" if blunt else ""),
        f"{passed} passed, {failed} failed",
    )
    return not failed and (not blunt or len(outcomes) < 5), "\n".join(lines)


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count}" for what, count in counts.items()) or "none"
