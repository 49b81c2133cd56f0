"""`driftline alarms`: what stands on `drift.alarms`, each alarm once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contracts import topics as names
from contracts.codec import encode
from contracts.records import DriftAlarm
from driftline.cli import run
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from tests.integration.drift.watching import END, expected
from tests.integration.feeding import Sender


@pytest.fixture(autouse=True)
def _here(topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Verbs find this test's topics, and no Postgres."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", topics.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", topics.prefix)


@pytest.fixture
def told(topics: KafkaConfig) -> list[DriftAlarm]:
    """Alarms that were sent, each a second time as after a kill."""
    found, sender = list(expected(topics, range(END)).values()), Sender(topics)
    for alarm in [*found, *found]:
        sender.put(names.ALARMS, alarm.id.encode(), encode(alarm))
    return found


def test_alarms_are_listed_once_the_newest_first(told: list[DriftAlarm], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(told) >= 2
    assert run(["alarms", "--json"]) == Exit.DONE
    listed = json.loads(capsys.readouterr().out)
    assert [alarm["id"] for alarm in listed] == [
        alarm.id for alarm in sorted(told, key=lambda alarm: alarm.raised_at, reverse=True)
    ]
    assert run(["alarms", "--limit", "1", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == listed[:1]
    assert run(["alarms", "--subject", "nobody", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == []


def test_the_table_says_what_changed_where_and_how_sure(
    told: list[DriftAlarm], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["alarms"]) == Exit.DONE
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["raised", "subject", "branch"]
    assert len(lines) == len(told)
    (mix,) = [alarm for alarm in told if alarm.series == "types"]
    (line,) = [line for line in lines if " types " in line]
    assert f"{names.PROGRESS}/0:{mix.after.first_offset}-{mix.after.next_offset}" in line
    was, now = mix.shifts["buy"]
    assert f"buy {was:.3f} -> {now:.3f}" in line


def test_what_is_no_alarm_is_named_with_its_place(topics: KafkaConfig, capsys: pytest.CaptureFixture[str]) -> None:
    Sender(topics).put(names.ALARMS, b"x", b"{}")
    assert run(["alarms"]) == Exit.FAILED
    assert f"{topics.physical(names.ALARMS)}/0, offset 0" in capsys.readouterr().err


def test_an_empty_topic_is_an_empty_list_and_a_missing_one_is_refused(
    topics: KafkaConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(["alarms", "--json"]) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == []
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", "nobody-made-these.")
    assert run(["alarms"]) == Exit.REFUSED
    assert "driftline topics create" in capsys.readouterr().err
