"""`simulate` and `replay` as verbs, and what `ingest` makes of what they send."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.codec import Reason
from driftline.cli import run
from driftline.datasets.dataset_names import NAMES
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from tests.integration.feeding import ingest_once, query

AsJson = Callable[..., Any]
SMALL = ("simulate", "--users", "40", "--days", "3", "--malformed", "0.05", "--duplicates", "0.04")


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

    def called(*words: str) -> Any:
        capsys.readouterr()
        assert run([*words, "--json"]) == Exit.DONE
        return json.loads(capsys.readouterr().out)

    return called


def test_what_ingest_makes_of_a_simulated_world_is_what_the_truth_file_says(
    database: str, tansu_topics: KafkaConfig, as_json: AsJson
) -> None:
    sent = as_json(*SMALL, "--drift", "recurring", "--drift-days", "0.5", "--truth", "truth.json")
    truth = json.loads(Path("truth.json").read_bytes())
    assert [change["to"] for change in truth["changes"]] == ["after", "before", "after"]
    assert sent["changes"] == truth["changes"]
    assert set(truth["malformed"]) > {Reason.UNSTORABLE_TEXT, Reason.SELF_RELATION, Reason.EMPTY}
    ingest_once(database, tansu_topics)
    found = as_json("status")
    assert found["dead_letters"] == truth["malformed"]
    for state, told in (("accepted", truth["valid"]), ("duplicates", truth["duplicates"])):
        assert {topic: counts[state] for topic, counts in found["topics"].items() if counts[state]} == told
    assert as_json("verify")["ok"]


def test_a_world_that_is_sent_again_for_longer_adds_only_what_is_new(
    database: str, tansu_topics: KafkaConfig, as_json: AsJson
) -> None:
    shorter = as_json("simulate", "--users", "20", "--days", "1", "--drift", "none")
    longer = as_json("simulate", "--users", "20", "--days", "2", "--drift", "none")
    assert (shorter["change_at"], shorter["changes"]) == (None, [])
    ingest_once(database, tansu_topics)
    accepted = {topic: counts["accepted"] for topic, counts in as_json("status")["topics"].items()}
    once = Counter(longer["valid"])
    once["items"] += shorter["valid"]["items"]  # items have versions, not duplicates
    assert accepted == once


def test_a_truth_that_cannot_be_written_is_a_wrong_call_and_nothing_is_sent(
    capsys: pytest.CaptureFixture[str], as_json: AsJson, database: str, tansu_topics: KafkaConfig
) -> None:
    assert run([*SMALL, "--truth", "no/such/folder/truth.json"]) == Exit.USAGE
    assert "no/such/folder/truth.json" in capsys.readouterr().err
    ingest_once(database, tansu_topics)
    assert not any(counts["read"] for counts in as_json("status")["topics"].values())


def test_a_simulation_says_in_words_when_behaviour_changes(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", "--users", "5", "--days", "4", "--drift", "gradual", "--drift-days", "1"]) == Exit.DONE
    told = capsys.readouterr().out
    assert "behaviour changes at 2026-01-03" in told
    assert "to 2026-01-04" in told


@pytest.mark.parametrize("name", NAMES)
def test_the_first_rows_of_a_data_set_come_in_once_each(
    name: str, shared_data: Path, database: str, tansu_topics: KafkaConfig, as_json: AsJson
) -> None:
    asked = ("replay", name, "--folder", str(shared_data), "--limit", "1500")
    first, again = as_json(*asked), as_json(*asked)
    assert first["rows"] == again["rows"] == 1_500
    ingest_once(database, tansu_topics)
    found = as_json("status")
    # Refused each time they come: retail lines without a customer, and the one friendship that is with oneself.
    refused = {"online_retail": {"missing_field": 2 * first["malformed"]}, "foursquare": {"self_relation": 2}}
    assert found["dead_letters"] == refused.get(name, {})
    read, accepted = (
        {topic: counts[state] for topic, counts in found["topics"].items() if counts["read"]}
        for state in ("read", "accepted")
    )
    assert read == {topic: 2 * count for topic, count in first["sent"].items()}
    once = Counter(first["sent"])
    once["items"] *= 2
    once.subtract({"online_retail": {"events.user": first["malformed"]}}.get(name, {}))
    once.subtract({"foursquare": {"events.relational": 1}}.get(name, {}))
    assert accepted == {topic: count for topic, count in once.items() if count}
    assert as_json("verify")["ok"]
    if name == "online_retail" and first["malformed"]:
        reasons = query(database, "SELECT DISTINCT detail FROM dead_letter")
        assert reasons == [("Object missing required field `user_id`",)]
