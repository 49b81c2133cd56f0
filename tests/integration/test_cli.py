"""Verbs against a real database and broker: what they print, and how they end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts import topics
from contracts.records import Item
from driftline.cli import run
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from storage import migrate
from tests.integration.feeding import REPOSITORY, Sender, event, ingest_once, item, query, relation

AsJson = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(database: str, tansu_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Verbs find this test's database and topics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", tansu_topics.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", tansu_topics.prefix)


@pytest.fixture
def as_json(capsys: pytest.CaptureFixture[str]) -> AsJson:
    """Runs a verb with --json and reads what it printed."""

    def called(*words: str, code: Exit = Exit.DONE) -> Any:
        capsys.readouterr()
        assert run([*words, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return called


def test_an_as_of_that_was_printed_gives_the_same_answer_after_more_came_in(
    database: str, tansu_topics: KafkaConfig, as_json: AsJson
) -> None:
    sender = Sender(tansu_topics)
    sender.send(event("e1", "ann", 1), relation("r1", "bob", "ann", 2), event("e2", "ann", 3))
    ingest_once(database, tansu_topics)
    before = as_json("user", "ann", "--as-of", "2026-01-01T00:00:03Z")
    assert [(e["event_id"], e["other"]) for e in before["events"]] == [("e1", None), ("r1", "bob")]
    assert len(as_json("user", "ann")["events"]) == 3
    sender.send(event("late", "ann", 0))
    ingest_once(database, tansu_topics)
    assert as_json("user", "ann", "--as-of", before["as_of"]) == before
    assert [e["event_id"] for e in as_json("user", "ann")["events"]] == ["late", "e1", "r1", "e2"]
    assert as_json("user", "nobody")["events"] == []


def test_an_items_versions_are_told_with_their_deletions_as_of_a_cursor(
    database: str, tansu_topics: KafkaConfig, as_json: AsJson, capsys: pytest.CaptureFixture[str]
) -> None:
    sender = Sender(tansu_topics)
    whole = Item(item_id="i1", source="shop", title="A book", text="words " * 50, attributes={"genre": "essay"})
    sender.send(item("i1", "first"), whole)
    ingest_once(database, tansu_topics)
    before = as_json("item", "i1")
    told = {"title": "A book", "text": "words " * 50, "attributes": {"genre": "essay"}, "source": "shop"}
    assert before["versions"][0]["payload"] == told
    assert [version["offset"] for version in before["versions"]] == [1, 0]
    sender.put(topics.ITEMS, b"i1", None)
    ingest_once(database, tansu_topics)
    assert [version["payload"] for version in as_json("item", "i1", "--last", "1")["versions"]] == [None]
    assert as_json("item", "i1", "--as-of", before["as_of"]) == before
    assert as_json("item", "no such")["versions"] == []
    assert run(["item", "i1"]) == Exit.DONE
    shown = capsys.readouterr().out.splitlines()
    assert "(deleted)" in shown[1]
    assert all(words in shown[2] for words in ("A book", "... (300 characters)", "genre: essay", "shop"))
    assert run(["item", "i1", "--as-of", "2026-01-01T00:00:00Z"]) == Exit.USAGE


def test_verify_fails_where_something_is_wrong_and_names_it(
    database: str, tansu_topics: KafkaConfig, as_json: AsJson, capsys: pytest.CaptureFixture[str]
) -> None:
    Sender(tansu_topics).send(event("e1"), relation("r1", "ann", "bob"))
    ingest_once(database, tansu_topics)
    assert as_json("verify")["ok"]
    query(database, "DELETE FROM user_segment WHERE 4 = ANY(kind)")
    assert not as_json("verify", code=Exit.FAILED)["ok"]
    assert run(["verify"]) == Exit.FAILED
    told = capsys.readouterr()
    assert "not_in_sequence: events.relational[" in told.err
    assert "counterpart's side" in told.err
    assert "NOT as promised" in told.out


def test_status_counts_what_came_in(database: str, tansu_topics: KafkaConfig, as_json: AsJson) -> None:
    sender = Sender(tansu_topics)
    sender.send(event("e1"), event("e1"), event("e2"))
    sender.put("labels", b"ann", b"{}")
    ingest_once(database, tansu_topics)
    told = as_json("status")
    assert told["topics"]["events.user"] == {"read": 3, "accepted": 2, "duplicates": 1, "dead": 0, "suppressed": 0}
    assert told["dead_letters"] == {"missing_field": 1}
    assert sum(stream["lag"] for stream in told["streams"]) == 0
    assert told["learners"] == []


def test_ingest_prints_one_line_of_totals(tansu_topics: KafkaConfig, capsys: pytest.CaptureFixture[str]) -> None:
    Sender(tansu_topics).send(event("e1"), event("e2"))
    assert run(["ingest", "--once", "--json", "--port", "0"]) == Exit.DONE
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith('{"read"'))
    totals = json.loads(line)
    assert (totals["read"], totals["accepted"]) == (2, 2)
    assert totals["peak_rss_bytes"] > 2**20
    assert totals["first_at"] <= totals["last_at"]


def test_replayed_rows_are_all_accounted_for(tmp_path: Path, database: str, tansu_topics: KafkaConfig,
                                             as_json: AsJson) -> None:  # fmt: skip
    file = tmp_path / "shop.csv"
    file.write_text("card,at,eur,shop\n" + "".join(f"c{n % 3},{1_700_000_000 + n},{n}.50,s{n}\n" for n in range(20)))
    with file.open("a") as more:
        more.write(",1700000100,1.00,s1\n")  # nobody's
    words = ("replay", str(file), "--user", "card", "--time", "at", "--amount", "eur", "--with", "shop")
    report = as_json(*words)
    assert (report["rows"], report["malformed"]) == (21, 1)
    ingest_once(database, tansu_topics)
    told = as_json("verify")
    payments = told["topics"]["events.payment"]
    assert told["ok"]
    assert (payments["read"], payments["accepted"], payments["dead"]) == (21, 20, 1)


def test_tables_that_are_missing_are_a_wrong_call_that_names_migrate(
    database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    migrate.downgrade(database, "base")
    assert run(["status"]) == Exit.USAGE
    assert "driftline migrate" in capsys.readouterr().err
    assert run(["migrate"]) == Exit.DONE
    assert run(["status"]) == Exit.DONE


def test_without_snapshots_there_is_nothing_bad(as_json: AsJson) -> None:
    assert as_json("snapshots", "verify")["snapshots"] == []
    assert as_json("snapshots", "list") == []
    assert run(["snapshots", "show", "none"]) == Exit.USAGE


def test_with_port_none_ingest_and_train_need_no_port_whatever_the_settings_say(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for verb in ("INGEST", "TRAIN"):
            monkeypatch.setenv(f"DRIFTLINE_{verb}__PORT", str(taken.getsockname()[1]))
        for call in (["ingest", "--once"], ["train", "--once", "--learner", "markov"]):
            refused = _process(*call)
            assert refused.returncode == Exit.USAGE
            assert "cannot listen" in refused.stderr
            found = _process(*call, "--port", "none")
            assert found.returncode == Exit.DONE, found.stderr


def _process(*words: str) -> subprocess.CompletedProcess[str]:
    """A call in a process of its own: long-running verbs set up logging for good."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "driftline", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
