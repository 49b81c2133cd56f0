"""Dead letters and their second chance: each comes in once, however often it is sent."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from contracts import topics
from contracts.codec import encode
from driftline.audit.auditor import audit
from driftline.cli import run
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from tests.integration.feeding import Sender, event, ingest_once, query

Verb = Callable[..., int]
MENDED = event("mended", "ann", 5)


@pytest.fixture
def verb(database: str, tansu_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Verb:
    """Runs a verb on this test's database and topics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", tansu_topics.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", tansu_topics.prefix)
    return lambda *words: run(words)


@pytest.fixture
def sender(tansu_topics: KafkaConfig) -> Sender:
    return Sender(tansu_topics)


def letter_ids(database: str) -> list[str]:
    rows = query(database, "SELECT stream_id || ':' || position FROM dead_letter ORDER BY received_at, position")
    return [row[0] for row in rows]


def events(database: str) -> list[tuple[str, str]]:
    return [tuple(row) for row in query(database, "SELECT user_id, event_id FROM user_event ORDER BY 1, 2")]


def test_a_letter_with_the_wrong_key_is_mended_and_comes_in_once(
    verb: Verb, sender: Sender, database: str, tansu_topics: KafkaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    sender.put(topics.USER, b"bob", encode(MENDED))
    ingest_once(database, tansu_topics)
    (letter,) = letter_ids(database)
    assert verb("dlq", "replay", letter, "--fix-key") == Exit.DONE
    assert verb("dlq", "replay", letter, "--fix-key") == Exit.DONE  # before anybody has read the first
    ingest_once(database, tansu_topics)
    assert events(database) == [("ann", "mended")]
    capsys.readouterr()
    assert verb("dlq", "replay", letter, "--fix-key", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out) == {"sent": [], "came_in_before": [letter], "refused": []}
    assert verb("dlq", "list", "--json") == Exit.DONE
    assert json.loads(capsys.readouterr().out) == []
    assert verb("dlq", "list", "--all", "--json") == Exit.DONE
    assert [found["replayed"] for found in json.loads(capsys.readouterr().out)] == [True]
    report = audit(database, tansu_topics, duplicate_window=1_000_000)
    assert report.ok
    assert report.topics[topics.USER].duplicates == 1


def test_a_letter_counts_once_even_if_its_repetitions_differ(
    verb: Verb, sender: Sender, database: str, tansu_topics: KafkaConfig, tmp_path: Path
) -> None:
    sender.put(topics.USER, b"ann", b"{}")
    ingest_once(database, tansu_topics)
    (letter,) = letter_ids(database)
    for name in ("one", "two"):
        body = tmp_path / f"{name}.json"
        body.write_bytes(encode(event(name, "ann", 5)))
        assert verb("dlq", "replay", letter, "--value", str(body)) == Exit.DONE
    ingest_once(database, tansu_topics)
    assert events(database) == [("ann", "one")]
    assert audit(database, tansu_topics, duplicate_window=1_000_000).ok


def test_the_record_time_stays_as_it_was(
    verb: Verb, sender: Sender, database: str, tansu_topics: KafkaConfig, tmp_path: Path
) -> None:
    sender.put(topics.USER, b"ann", None)
    ingest_once(database, tansu_topics)
    (letter,) = letter_ids(database)
    body = tmp_path / "body.json"
    body.write_bytes(encode(MENDED))
    verb("dlq", "replay", letter, "--value", str(body))
    ingest_once(database, tansu_topics)
    rows = query(database, "SELECT d.record_at = g.last_record_at FROM dead_letter d JOIN log_segment g"
                 " USING (stream_id) WHERE g.accepted = 1")  # fmt: skip
    assert rows == [(True,)]


def test_what_would_be_refused_again_is_not_sent(
    verb: Verb, sender: Sender, database: str, tansu_topics: KafkaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    sender.put(topics.USER, b"ann", b"not JSON")
    ingest_once(database, tansu_topics)
    (letter,) = letter_ids(database)
    assert verb("dlq", "replay", letter) == Exit.REFUSED
    assert "it would be refused again: not_json" in capsys.readouterr().err
    assert verb("dlq", "replay", "--reason", "not_json", "--anyway") == Exit.DONE
    ingest_once(database, tansu_topics)
    assert len(letter_ids(database)) == 2


def test_a_cut_body_is_refused_unless_the_whole_one_is_given(
    verb: Verb,
    sender: Sender,
    database: str,
    tansu_topics: KafkaConfig,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    sender.put(topics.USER, b"ann", b"x" * 100_000)
    ingest_once(database, tansu_topics)
    (letter,) = letter_ids(database)
    assert verb("dlq", "replay", letter, "--anyway") == Exit.REFUSED
    assert "100,000 bytes were sent" in capsys.readouterr().err
    body = tmp_path / "body.json"
    body.write_bytes(encode(MENDED))
    assert verb("dlq", "replay", letter, "--value", str(body)) == Exit.DONE


def test_a_letter_is_shown_whole(
    verb: Verb, sender: Sender, database: str, tansu_topics: KafkaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    sender.put(topics.USER, b"ann", b"not JSON \xff")
    ingest_once(database, tansu_topics)
    (letter,) = letter_ids(database)
    assert verb("dlq", "show", letter) == Exit.DONE
    shown = capsys.readouterr().out
    assert "not_json" in shown
    assert "not JSON \\xff" in shown
    assert verb("dlq", "show", "999:1") == Exit.USAGE
    assert verb("dlq", "show", "nonsense") == Exit.USAGE
    assert verb("dlq", "replay") == Exit.USAGE
