"""The demo's facts as a report, and the report as tables that a newcomer understands."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from contracts import topics
from contracts.records import Progress
from contracts.scoring import ScoreAnswer
from driftline.shown import age, time

if TYPE_CHECKING:
    from driftline.demo import Facts, Plot

Report = dict[str, Any]


def report(plot: Plot, facts: Facts) -> Report:
    """Everything as plain values; "ok" says whether all checks hold."""
    once, repeated = by_step(facts.progress)
    counts = _counts(facts)
    change = _change(once, plot, datetime.fromisoformat(facts.sent["change_at"]))
    found: Report = {
        "seconds": round(facts.total_s, 1),
        "records": counts,
        "ingest": {
            "killed": facts.exits.get("ingest") == -9,
            "seconds": round(facts.ingest_s, 1),
            "records_per_second": round(sum(counts["sent"].values()) / facts.ingest_s, 1),
            "after_the_kill": facts.ingest,
        },
        "train": {
            "killed": facts.exits.get("train") == -9,
            "seconds": round(facts.train_s, 1),
            "steps_journalled_when_killed": facts.steps_when_killed,
            "steps": len(once),
            "steps_repeated": facts.train["repeated_steps"],
            "progress_records_repeated": repeated["same"] + repeated["different"],
            "of_these_different": repeated["different"],
            "rows_learnt": sum(record.rows for record in once),
            "rows_late": sum(record.late for record in once),
            "learning_rows_per_second": round(facts.train["rows"] / max(facts.train["learn_s"], 1e-9), 1),
            "after_the_kill": facts.train,
        },
        "snapshots": [{name: s[name] for name in ("id", "step", "parent", "sha256")} for s in facts.snapshots],
        "verify": {"ok": facts.audit["ok"], "read": facts.audit["read"], "seconds": round(facts.audit["seconds"], 2)},
        "replay_journal": facts.rebuilt,
        "planted_change": change,
        "score": {"milliseconds": round(facts.answer_ms, 1), "answer": facts.answer},
        "user": {**facts.user, "events": facts.user["events"][-3:]},
        "processes_left": facts.left,
    }
    found["checks"] = _checks(found, facts)
    found["ok"] = all(check["ok"] for check in found["checks"])
    return found


def by_step(progress: Iterable[Progress]) -> tuple[list[Progress], dict[str, int]]:
    """One record a step, in order; and how many came again, the same or different."""
    first: dict[tuple[str, int, int], Progress] = {}
    repeated = {"same": 0, "different": 0}
    for record in progress:
        known = first.setdefault((record.learner, record.branch, record.step), record)
        if known is not record:
            repeated["same" if known == record else "different"] += 1
    return [first[key] for key in sorted(first)], repeated


def _counts(facts: Facts) -> Report:
    found = facts.status["topics"]
    return {
        "sent": facts.sent["sent"],
        "must_be_accepted": facts.sent["valid"],
        "must_be_duplicates": facts.sent["duplicates"],
        "must_be_dead_letters": facts.sent["malformed"],
        **{name: {topic: found[topic][name] for topic in found} for name in ("read", "accepted", "duplicates", "dead")},
        "dead_letters_by_reason": facts.status["dead_letters"],
    }


def _change(once: list[Progress], plot: Plot, change_at: datetime) -> Report:
    """Mean losses of the learner and of the arm frozen after the warm-up, in three stretches of event time."""
    rows, stretches = 0, {"before": list[Progress](), "first": list[Progress](), "later": list[Progress]()}
    after = [record for record in once if record.first_event_at >= change_at]
    for record in once:
        rows += record.rows
        if rows > plot.warmup_events and record.last_event_at < change_at:
            stretches["before"].append(record)
    half = len(after) // 2
    stretches["first"], stretches["later"] = after[:half], after[half:]
    return {
        "at": change_at,
        "warmup_events": plot.warmup_events,
        "stretches": {
            name: {"rows": sum(r.rows for r in records), "loss": {arm: _mean(records, arm) for arm in _arms(once)}}
            for name, records in stretches.items()
        },
    }


def _arms(once: list[Progress]) -> list[str]:
    return list(once[0].losses) if once else []


def _mean(records: list[Progress], arm: str) -> dict[str, float | None]:
    """Loss -> mean over the rows that have it."""
    sums: dict[str, list[float]] = {}
    for record in records:
        for loss, part in record.losses.get(arm, {}).items():
            total = sums.setdefault(loss, [0.0, 0.0])
            total[0] += part.sum
            total[1] += part.rows
    return {loss: (total / rows if rows else None) for loss, (total, rows) in sums.items()}


def _checks(found: Report, facts: Facts) -> list[Report]:
    records, train, rebuilt = found["records"], found["train"], found["replay_journal"]
    events = sum(records["accepted"][topic] for topic in topics.EVENTS)
    newest = found["snapshots"][0]["id"]
    answered = facts.answer.snapshot_id if facts.answer else "nobody"
    claims = [
        ("every record that was sent was read", _some(records["sent"]) == _some(records["read"])),
        (
            "accepted: exactly the valid records, each once",
            _some(records["accepted"]) == _some(records["must_be_accepted"]),
        ),
        (
            "recognised: exactly the repeated ones",
            _some(records["duplicates"]) == _some(records["must_be_duplicates"]),
        ),
        (
            "dead letters: exactly the broken ones, for the right reasons",
            _some(records["dead_letters_by_reason"]) == _some(records["must_be_dead_letters"]),
        ),
        ("ingest and train were killed with -9", found["ingest"]["killed"] and train["killed"]),
        ("verify finds nothing lost, doubled or wrong", found["verify"]["ok"]),
        ("each accepted event was learnt in exactly one step", train["rows_learnt"] == events),
        ("steps that were repeated gave the same losses, to the last digit", train["of_these_different"] == 0),
        (f"replay-journal gives the bytes of snapshot {newest}", rebuilt["recorded"] == rebuilt["found"]),
        ("score answered from the newest snapshot", answered == newest),
        ("no process is left", not found["processes_left"]),
    ]
    return [{"check": what, "ok": bool(ok)} for what, ok in claims]


def _some(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def show(report: Report, console: Console) -> None:
    """The tables."""
    console.print()
    for part in (_records_table(report), _story_table(report), _change_table(report)):
        console.print(part, highlight=False)
        console.print()
    if report["score"]["answer"] is not None:
        _print_answer(report["score"]["answer"], report, console)
    checks = Table(title="What must hold", title_justify="left")
    checks.add_column("check")
    checks.add_column("")
    for check in report["checks"]:
        checks.add_row(check["check"], "[green]yes[/]" if check["ok"] else "[red]NO[/]")
    console.print(checks)


def _records_table(report: Report) -> Table:
    records = report["records"]
    table = Table(title="What became of the records", title_justify="left")
    table.add_column("topic")
    for name in ("sent", "accepted, once", "repeated: dropped", "broken: dead letter"):
        table.add_column(name, justify="right")
    columns = [records[name] for name in ("sent", "accepted", "duplicates", "dead")]
    for topic in records["sent"]:
        table.add_row(topic, *(f"{column.get(topic, 0):,}" for column in columns))
    table.add_row("all", *(f"{sum(column.values()):,}" for column in columns), style="bold")
    return table


def _story_table(report: Report) -> Table:
    ingest, train, rebuilt = report["ingest"], report["train"], report["replay_journal"]
    reasons = ", ".join(f"{why} {n}" for why, n in sorted(report["records"]["dead_letters_by_reason"].items()))
    table = Table(title="What happened", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    rows = {
        "dead letters": reasons or "none",
        "ingest": "killed once in a batch, which Postgres rolled back and ingest read again; "
        f"{ingest['seconds']:.0f} s for all of it, with the kill ({ingest['records_per_second']:,.0f} records/s)",
        "train": f"killed once in a step; {train['steps_repeated']} journalled steps repeated, {train['steps']} in "
        f"all; {train['rows_learnt']:,} events learnt, {train['learning_rows_per_second']:,.0f} a second "
        "with three references beside it",
        "snapshots": ", ".join(snapshot["id"] for snapshot in reversed(report["snapshots"])),
        "verify": f"{report['verify']['read']:,} records read again in {report['verify']['seconds']:.1f} s",
        "replay-journal": f"{rebuilt['steps']} steps again: sha256 {rebuilt['found'][:16]}... "
        f"{'is' if rebuilt['recorded'] == rebuilt['found'] else 'IS NOT'} the recorded one",
    }
    for name, what in rows.items():
        table.add_row(name, what)
    return table


def _change_table(report: Report) -> Table:
    change = report["planted_change"]
    table = Table(title=f"The planted change at {time(change['at'])}: surprise at the next event", title_justify="left")
    table.add_column("stretch of event time")
    table.add_column("events", justify="right")
    for name in _ARMS.values():
        table.add_column(name, justify="right")
    names = {"before": "before the change", "first": "after it, first half", "later": "after it, second half"}
    for stretch, name in names.items():
        found = change["stretches"][stretch]
        losses = (surprise(found["loss"].get(arm, {})) for arm in _ARMS)
        table.add_row(name, f"{found['rows']:,}", *("-" if loss is None else f"{loss:.3f}" for loss in losses))
    table.caption = (
        "Nats for when and what together, lower is better; each event is predicted before it is learnt. All four saw "
        f"the same events; the frozen one learnt only from the first {change['warmup_events']:,}. In a world as small "
        "as this one, simple references can do as well as the learner: compare the columns."
    )
    return table


_ARMS = {
    "learner": "PromptTPP, learning",
    "reference.frozen": "the same, frozen",
    "reference.finetune": "fine-tuned plainly",
    "reference.markov": "counts only",
}


def surprise(losses: dict[str, float | None]) -> float | None:
    """Time and type together: the negative log density of the event."""
    parts = [losses.get("time"), losses.get("type")]
    return None if None in parts else sum(part for part in parts if part is not None)


def _print_answer(answer: ScoreAnswer, report: Report, console: Console) -> None:
    last = "nothing is known" if answer.last_event_at is None else f"last seen {time(answer.last_event_at)}"
    console.print(
        f"[bold]What comes next for user {answer.user_id}?[/] ({last}, {answer.events_seen} events looked at)"
    )
    for quantile in answer.next_event:
        when = "perhaps never" if quantile.seconds is None else f"within {age(quantile.seconds)}"
        console.print(f"  with {quantile.quantile:.0%} probability something happens {when}", highlight=False)
    kinds = ", ".join(f"{kind.type} {kind.probability:.0%}" for kind in answer.next_type)
    console.print(f"  and it is: {kinds}, anything else {answer.other_types:.0%}", highlight=False)
    seen = sum(position.next_offset for position in answer.watermark)
    console.print(
        f"  said by snapshot {answer.snapshot_id} in {report['score']['milliseconds']:.0f} ms, knowing all "
        f"{seen:,} records below its watermark; the newest came in {age(answer.staleness_seconds)} before\n",
        highlight=False,
    )
