"""The demo's facts as a report of plain values, and what must hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from contracts import topics
from contracts.records import DriftAlarm, Progress
from driftline.demo.results import LEARNERS, Facts, Plot

Report = dict[str, Any]


def report(plot: Plot, facts: Facts) -> Report:
    """Everything; "ok" says whether all checks hold."""
    once, repeated = by_step(facts.progress["prompttpp"])
    counts = _counts(facts)
    change_at = datetime.fromisoformat(facts.sent["change_at"])
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
        "ranking": _ranking(facts),
        "outcomes": _outcomes(facts),
        "snapshots": [{name: s[name] for name in ("id", "step", "parent", "sha256")} for s in facts.snapshots],
        "verify": {"ok": facts.audit["ok"], "read": facts.audit["read"], "seconds": round(facts.audit["seconds"], 2)},
        "replay_journal": facts.rebuilt,
        "planted_change": _change(once, plot, change_at),
        "drift": _drift(facts, change_at),
        "maintain": facts.maintain,
        "score": {"milliseconds": round(facts.answer_ms, 1), "answer": facts.answer},
        "score_ranking": {"milliseconds": round(facts.ranking_ms, 1), "answer": facts.ranking},
        "export": {"process": facts.exported, "bundles": facts.bundles},
        "user": {**facts.user, "events": facts.user["events"][-3:]},
        "late_label": facts.late,
        "erasure": facts.erasure,
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


def first_of_id(alarms: Iterable[DriftAlarm]) -> tuple[list[DriftAlarm], int]:
    """The first alarm of each id; and how many came again with other content."""
    first: dict[str, DriftAlarm] = {}
    different = sum(first.setdefault(alarm.id, alarm) != alarm for alarm in alarms)
    return list(first.values()), different


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


def _ranking(facts: Facts) -> Report:
    """Loss -> mean, of SDIM and of what it is compared with."""
    once, _ = by_step(facts.progress["sdim"])
    return {
        "rows_learnt": sum(record.rows for record in once),
        "loss": {arm: _mean(once, arm) for arm in _arms(once)},
        "signatures_written": facts.sdim["signatures"],
        "train": facts.sdim,
    }


def _outcomes(facts: Facts) -> Report:
    """Log-loss of the risk of payments, by arm: as issued, and of the same payments when their labels came."""
    once, _ = by_step(facts.progress["risk"])
    return {"loss": {arm: _mean(once, arm) for arm in _arms(once)}, "train": facts.risk}


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


def _drift(facts: Facts, change_at: datetime) -> Report:
    """The alarms, each once, with the events that its learner had seen since the change."""
    alarms, different = first_of_id(facts.alarms)
    learnt = {name: by_step(told)[0] for name, told in facts.progress.items()}
    return {
        "process": facts.drift,
        "same_id_and_different": different,
        "alarms": [
            {
                **msgspec.to_builtins(alarm),
                "after_the_change": alarm.raised_at >= change_at,
                "events_since_the_change": sum(
                    record.rows
                    for record in learnt.get(alarm.subject, [])
                    if record.step <= alarm.step and record.last_event_at >= change_at
                ),
            }
            for alarm in alarms
        ],
    }


def _arms(once: Sequence[Progress]) -> list[str]:
    return list(once[0].losses) if once else []


def _mean(records: Iterable[Progress], arm: str) -> dict[str, float | None]:
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
    newest = facts.train["snapshot_id"]
    answered = facts.answer.snapshot_id if facts.answer else "nobody"
    alarms, late, erasure = found["drift"]["alarms"], found["late_label"], found["erasure"]
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
        (
            "each accepted event was learnt in exactly one step, by PromptTPP and by SDIM",
            train["rows_learnt"] == found["ranking"]["rows_learnt"] == events,
        ),
        ("steps that were repeated gave the same losses, to the last digit", train["of_these_different"] == 0),
        (
            "replay-journal gives the bytes of each learner's newest snapshot",
            len(rebuilt) == len(LEARNERS) and all(one["recorded"] == one["found"] for one in rebuilt.values()),
        ),
        ("drift found the planted change", any(one["after_the_change"] for one in alarms)),
        ("no alarm came twice with different content", found["drift"]["same_id_and_different"] == 0),
        ("score answered from the newest snapshot", answered == newest),
        ("score ranked from SDIM's newest one and the user's signature table", _from_a_table(facts)),
        (
            "each exported bundle, loaded alone, answers its example to the last bit",
            len(facts.bundles) == facts.exported["bundles"] > 0 and all(one["exact"] for one in facts.bundles),
        ),
        (
            "a late label was taken in once, and learnt with the payment it speaks of",
            late["taken"] == {"read": 2, "accepted": 1, "suppressed": 1} and late["learnt"],
        ),
        (
            "the erased user's id stood there, and stands nowhere now, though an event came again",
            erasure["before"] and not erasure["after"],
        ),
        ("verify finds nothing lost, doubled or wrong, after all that", found["verify"]["ok"]),
        ("no process is left", not found["processes_left"]),
    ]
    return [{"check": what, "ok": bool(ok)} for what, ok in claims]


def _from_a_table(facts: Facts) -> bool:
    ranking = facts.ranking
    by_table = ranking is not None and ranking.state in ("cache_hit", "cache_updated", "cache_rebuilt")
    return by_table and ranking is not None and ranking.snapshot_id == facts.sdim["snapshot_id"]


def _some(counts: dict[str, int]) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}
