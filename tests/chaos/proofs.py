"""What is proven when a run is over: with the verbs that a person would use, and a look into the tables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psycopg

from contracts import topics
from runtime.kafka import KafkaConfig
from runtime.produce import Outgoing
from tests.chaos.ingesting import LIMIT_S
from tests.chaos.plan import LEARNERS
from tests.chaos.process import REPOSITORY
from tests.chaos.reading import whole

REPLAYED = 1
"""Newest snapshots of each learner that are learnt again; `maintain` keeps their parents."""


def driftline(verb: list[str], settings: dict[str, str]) -> subprocess.CompletedProcess[bytes]:
    """One verb, to its end."""
    command = [sys.executable, "-m", "driftline", *verb]
    whole = {**os.environ, **settings}
    return subprocess.run(command, env=whole, cwd=REPOSITORY, capture_output=True, timeout=LIMIT_S, check=False)


def undone(settings: dict[str, str], verb: str) -> str:
    """One whole pass of a process, whatever its kills left undone; why it cannot be done, "" = it was."""
    done = driftline([verb, "--once"], settings)
    return f"{verb} --once: exit {done.returncode}, {done.stderr.decode()[-400:]}" if done.returncode else ""


def unfit(settings: dict[str, str]) -> str:
    """What `bundle check` says of the newest bundle of each learner; "" = they answer as they did."""
    done = driftline(["bundle", "check", f"{settings['DRIFTLINE_DATA_DIR']}/bundles", "--json"], settings)
    checked = {bundle["learner"] for bundle in json.loads(done.stdout)} if done.returncode == 0 else set()
    return "" if checked >= set(LEARNERS) else f"bundles: {checked} answer; {done.stderr.decode()[-400:]}"


def unlike(config: KafkaConfig, records: Sequence[Outgoing]) -> str:
    """What of the stream the topics do not hold; "" = all of it, so that the run had the stream of every other.

    Otherwise nobody else can lead to the same weights: the records were lost ahead of `ingest`.
    """
    sent = Counter((record.topic, record.value) for record in records if record.value is not None)
    held = Counter((topic, taken.value) for topic in topics.INPUTS for taken in whole(config, topic))
    lost = sent - held
    return f"{lost.total()} records that were sent are not in the topics: {sorted(lost)[:2]}" if lost else ""


def uncompacted(database: str) -> str:
    """Whether compaction was put to the test; "" = it was."""
    with psycopg.connect(database) as connection:
        row = connection.execute("SELECT count(*) FROM user_segment WHERE stream_id = 0").fetchone()
    return "" if row is not None and row[0] else "nothing was compacted"


def newest(database: str, learner: str) -> list[tuple[str, str]]:
    """(id, sha256) of its live snapshots, the newest first."""
    with psycopg.connect(database) as connection:
        rows = connection.execute(
            "SELECT id, sha256 FROM snapshot WHERE status = 'live' AND learner = %s ORDER BY step DESC", [learner]
        ).fetchall()
    return [(str(snapshot), str(sha256)) for snapshot, sha256 in rows]


def replay(settings: dict[str, str], database: str, trouble: list[str]) -> int:
    """Learns the newest snapshots again; those that are equal."""
    equal = 0
    for snapshot, _ in (one for learner in LEARNERS for one in newest(database, learner)[:REPLAYED]):
        done = driftline(["replay-journal", snapshot, "--json"], settings)
        if done.returncode == 0 and json.loads(done.stdout)["equal"]:
            equal += 1
        else:
            trouble.append(f"{snapshot} replayed is different: {done.stderr.decode()[-400:]}")
    return equal


def repeated_steps(log: Path) -> int:
    """Journalled steps that lives of `train` ran again."""
    return sum(entry["steps"] for entry in entries(log) if entry.get("event") == "train.repeating")


def entries(log: Path) -> list[dict[str, Any]]:
    """The log lines that are whole: a kill may have cut the last of a life."""
    found = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found
