"""The demo's report as tables that a newcomer understands."""

from __future__ import annotations

from datetime import datetime

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from contracts.scoring import RankingAnswer, ScoreAnswer
from driftline.demo.report import Report
from driftline.output import age, time


def show(report: Report, console: Console) -> None:
    """The tables."""
    console.print()
    tables = (_records_table(report), _story_table(report), _change_table(report), _alarms_table(report))
    for part in tables:
        console.print(part, highlight=False)
        console.print()
    if report["score"]["answer"] is not None:
        _print_answer(report["score"]["answer"], report, console)
    if report["score_ranking"]["answer"] is not None:
        _print_ranking(report["score_ranking"]["answer"], report, console)
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
    ingest, train, ranking = report["ingest"], report["train"], report["ranking"]
    maintain, late, erasure = report["maintain"], report["late_label"], report["erasure"]
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
        "train, SDIM": f"learns to rank items from the same log: {ranking['rows_learnt']:,} events; "
        f"{ranking['signatures_written']:,} signature tables of users written for serving",
        "snapshots": f"{len(report['snapshots'])} kept; the newest: {', '.join(_newest(report))}",
        "replay-journal": "; ".join(_replayed(one) for one in report["replay_journal"].values()),
        "maintain": f"compacted {maintain['rows_before']:,} rows of {maintain['compacted_users']:,} users into "
        f"{maintain['rows_after']:,}; no reader can tell",
        "train, risk": f"learns from labels that come half a day later what becomes of payments; log-loss of its risks "
        f"as issued {_issued(report, 'learner')}, of the mere rate {_issued(report, 'reference.risk_rate')}",
        "export": "bundles that answer without Kafka and Postgres: "
        + ", ".join(f"{one['snapshot']} ({one['figures']} numbers compared)" for one in report["export"]["bundles"]),
        "late label": f"{age(late['seconds_late'])} after its payment, whose risk had been given as "
        f"{late['risk_as_issued']:.1%}: {'learnt with it' if late['learnt'] else 'NOT LEARNT'}",
        "erasure": f"{erasure['user_id']} stood in {sum(erasure['before'].values()):,} rows and files "
        f"({', '.join(sorted(erasure['before']))}), and stands {', '.join(sorted(erasure['after'])) or 'nowhere'} now",
        "verify": f"{report['verify']['read']:,} records read again in {report['verify']['seconds']:.1f} s",
    }
    for name, what in rows.items():
        table.add_row(name, what)
    return table


def _newest(report: Report) -> list[str]:
    last = (report["train"]["after_the_kill"], report["ranking"]["train"], report["outcomes"]["train"])
    return [said["snapshot_id"] for said in last]


def _issued(report: Report, arm: str) -> str:
    loss = report["outcomes"]["loss"].get(arm, {}).get("risk")
    return "-" if loss is None else f"{loss:.3f}"


def _replayed(rebuilt: Report) -> str:
    same = "is" if rebuilt["recorded"] == rebuilt["found"] else "IS NOT"
    return f"{rebuilt['steps']} steps again: sha256 {rebuilt['found'][:16]}... {same} the recorded one"


def _alarms_table(report: Report) -> Table:
    table = Table(title="What drift said, with no hint but the learners' progress", title_justify="left")
    for name in ("learner", "series", "raised at (event time)"):
        table.add_column(name)
    for name in ("events since the change", "before", "after", "z"):
        table.add_column(name, justify="right")
    for alarm in report["drift"]["alarms"]:
        since = f"{alarm['events_since_the_change']:,}" if alarm["after_the_change"] else "[yellow]before it[/]"
        means = (f"{alarm[side]['mean']:.3f}" for side in ("before", "after"))
        at = time(datetime.fromisoformat(alarm["raised_at"]))
        table.add_row(alarm["subject"], alarm["series"], at[:19], since, *means, f"{alarm['z']:.1f}")
    table.caption = (
        "reference.frozen is the learner as it was after the warm-up, which cannot adapt; types and prompts are "
        "distances between mixes. z: difference of the two means in standard errors."
    )
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
        f"[bold]What comes next for user {escape(answer.user_id)}?[/] ({last}, {answer.events_seen} events looked at)"
    )
    for quantile in answer.next_event:
        when = "perhaps never" if quantile.seconds is None else f"within {age(quantile.seconds)}"
        console.print(f"  with {quantile.quantile:.0%} probability something happens {when}", highlight=False)
    kinds = ", ".join(f"{escape(kind.type)} {kind.probability:.0%}" for kind in answer.next_type)
    console.print(f"  and it is: {kinds}, anything else {answer.other_types:.0%}", highlight=False)
    seen = sum(position.next_offset for position in answer.watermark)
    console.print(
        f"  said by snapshot {answer.snapshot_id} in {report['score']['milliseconds']:.0f} ms, knowing all "
        f"{seen:,} records below its watermark; the newest came in {age(answer.staleness_seconds)} before\n",
        highlight=False,
    )


_TABLES = {
    "cache_hit": "the signature table that train had stored",
    "cache_updated": "the signature table that train had stored, with the events since",
    "cache_rebuilt": "a signature table built anew from the user's sequence",
}


def _print_ranking(ranking: RankingAnswer, report: Report, console: Console) -> None:
    console.print(f"[bold]Which of {ranking.candidates} items?[/] ({ranking.events_seen} events with an item seen)")
    best = ", ".join(f"{escape(item.item_id)} {item.probability:.1%}" for item in ranking.ranking)
    console.print(f"  the best {len(ranking.ranking)}: {best}", highlight=False)
    console.print(
        f"  said by snapshot {ranking.snapshot_id} in {report['score_ranking']['milliseconds']:.0f} ms, from "
        f"{_TABLES.get(ranking.state, 'the sequence')}\n",
        highlight=False,
    )
