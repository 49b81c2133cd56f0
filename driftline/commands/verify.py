"""`verify`: the audit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from driftline.audit.findings import AuditReport, Finding
from driftline.commands import AsJson, example, session
from driftline.output import as_json, note, one_line, say, table
from runtime.lifecycle import Exit
from storage.engine import mapped_errors

if TYPE_CHECKING:
    from driftline.audit.label_check import LearnerReport


def add_to(app: typer.Typer) -> None:
    """The verb of this file."""
    app.command("verify", epilog=example("driftline verify", "driftline verify --learners --json"))(verify)


def verify(
    context: typer.Context,
    learners: Annotated[
        bool, typer.Option("--learners", help="Also that each label a learner has read ended in exactly one count.")
    ] = False,
    json: AsJson = False,
) -> None:
    """Prove that every retained record counted once.

    Valid ones in the log and in their users' sequences, invalid ones as dead letters; exit 1 if not.
    Reads all topics and tables with its own consumer and its own SQL; writes nothing.
    """
    from driftline.audit.auditor import audit
    from driftline.audit.label_check import audit_learners

    call = session(context)
    call.check_tables()
    with mapped_errors():
        report = audit(call.postgres_url, call.kafka, duplicate_window=call.settings.ingest.duplicate_window)
        found = audit_learners(call.postgres_url) if learners else []
    ok = report.ok and not any(one.wrong for one in found)
    if json:
        as_json({"ok": ok, "read": report.read, **asdict(report), "learners": [asdict(one) for one in found]})
    else:
        _show(report)
        _show_learners(found)
    if not ok:
        raise typer.Exit(Exit.FAILED)


_LOG = (Finding.LOST, Finding.TWICE, Finding.EXTRA, Finding.WRONG)
_SEQUENCES = (Finding.NOT_IN_SEQUENCE, Finding.TWICE_IN_SEQUENCE, Finding.EXTRA_IN_SEQUENCE, Finding.WRONG_IN_SEQUENCE)


def _show(report: AuditReport) -> None:
    found = report.topics.values()
    headers = [
        "topic",
        "read",
        "accepted",
        "dead-lettered",
        "duplicates",
        "suppressed",
        *map(str, _LOG),
        "not retained",
        "not yet read",
    ]
    rows: list[tuple[str | int, ...]] = [
        (
            t.topic,
            t.read,
            t.accepted,
            t.dead,
            t.duplicates,
            t.suppressed,
            *(t.findings[f] for f in _LOG),
            t.not_retained,
            t.not_yet_read,
        )
        for t in found
    ]
    total = ["all", *(sum(int(row[n]) for row in rows) for n in range(1, len(headers)))]
    table(headers, [*rows, total])
    say()
    entries = [(t.topic, t.in_sequences, *(t.findings[f] for f in _SEQUENCES)) for t in found if t.topic != "labels"]
    table(["sequences of", "entries", "missing", "twice", "extra", "wrong"], entries)
    for topic in found:
        if topic.beyond_window:
            say(f"{topic.topic}: {topic.beyond_window:,} repeats beyond {report.duplicate_window:,} offsets")
        if topic.ignored_origins:
            say(f"{topic.topic}: {topic.ignored_origins:,} driftline-origin headers prove no replay and do not count")
        if topic.unreadable_headers:
            say(f"{topic.topic}: {topic.unreadable_headers:,} records have a header name that is not UTF-8")
        if topic.trimmed or topic.not_in_log:
            say(
                f"{topic.topic}: retention trimmed the log: {topic.trimmed:,} records of the topic and "
                f"{topic.not_in_log:,} entries of sequences were not compared with it"
            )
        if topic.unproven:
            say(f"{topic.topic}: {topic.unproven:,} records are in no log; they may repeat what is nowhere any more")
        if topic.given_up:
            say(f"{topic.topic}: {topic.given_up:,} offsets were given up by `offsets rebind`")
        if topic.deleted_before:
            where = ", ".join(
                f"[{partition}] {offsets:,}" for partition, offsets in sorted(topic.deleted_before.items())
            )
            say(f"{topic.topic}: deleted by the topic before anything read it: offsets below {where}")
        for warning in topic.warnings:
            note(f"warning: {topic.topic}: {warning}")
        for unsafe in topic.unsafe:
            note(f"unsafe: {topic.topic}: {unsafe}")
        for finding, places in topic.places.items():
            for place in places:
                note(f"{finding}: {place.topic}[{place.partition}] offset {place.offset}: {one_line(place.detail)}")
            if (rest := topic.findings[finding] - len(places)) > 0:
                note(f"{finding}: ... and {rest:,} more in {topic.topic}")
    if report.trimmed_events:
        say(
            f"retention removed {report.trimmed_events:,} events from the sequences of {report.trimmed_users:,} users, "
            "after it had removed them from the log: nothing is left to compare"
        )
    verdict = "NOT as promised; see above"
    if report.ok:
        held = "" if report.whole else " that the topics still held when it was first read"
        verdict = f"every record up to the stored offsets{held} counted exactly once"
    say(f"\n{verdict} ({report.read:,} records in {report.seconds:.1f} s)")


def _show_learners(found: Sequence[LearnerReport]) -> None:
    for one in found:
        counted = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in one.counts.items() if count)
        say(f"labels of {one.task} read by {one.learner}: {one.labels:,} = {counted or 'none'}")
        if one.not_run:
            say(f"{one.learner}: {one.not_run:,} labels of a step that is journalled and has not run yet")
        if one.not_compared:
            say(f"{one.learner}: retention removed {one.not_compared:,} labels from the log: not compared")
        for detail in one.details:
            note(f"{one.learner}: {detail}")
        if one.wrong > len(one.details):
            note(f"{one.learner}: ... and {one.wrong - len(one.details):,} more")
