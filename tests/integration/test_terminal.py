"""What strangers write into records and manifests reaches the terminal as text, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from contracts import topics
from contracts.codec import encode
from driftline.cli import run
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from tests.integration.feeding import Sender, event, ingest_once, item, query, relation

NASTY = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202eevil\u2066\u2028line\x7f\nforged: row\r[bold][link=http://x]y[/]"
UNFIT = set("\x1b\x07\x9b\u202e\u2066\u2028\x7f\r")


@pytest.fixture
def _nasty_records(database: str, tansu_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)
    monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", tansu_topics.bootstrap)
    monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", tansu_topics.prefix)
    sender = Sender(tansu_topics)
    sender.send(event(NASTY, "ann", 1, type=NASTY, item=NASTY), relation("r", "ann", NASTY, 2), item("book", NASTY))
    good = encode(event("e", "ann", 3))
    sender.put(topics.USER, NASTY.encode(), b'{"\x1b]0;owned\x07": "\x9b\xff' + NASTY.encode())
    sender.put(topics.USER, NASTY.encode(), good.replace(b'"1.0"', json.dumps(NASTY).encode()))
    sender.put(topics.USER, NASTY.encode(), good)
    ingest_once(database, tansu_topics)


@pytest.mark.usefixtures("_nasty_records")
def test_no_verb_lets_a_records_control_characters_through(database: str, capfd: pytest.CaptureFixture[str]) -> None:
    letters = [row[0] for row in query(database, "SELECT stream_id || ':' || position FROM dead_letter ORDER BY 1")]
    assert len(letters) == 3
    calls = [["user", "ann"], ["user", NASTY], ["item", "book"], ["dlq", "list"], ["status"], ["verify"]]
    for call in [*calls, *(["dlq", "show", letter] for letter in letters)]:
        for options in ([], ["--json"]):
            run([*call, *options])
            said = capfd.readouterr()
            assert said.out, call
            assert not UNFIT & set(said.out + said.err), call
    run(["dlq", "replay", *letters])
    assert not UNFIT & set("".join(capfd.readouterr()))


@pytest.mark.usefixtures("_nasty_records")
def test_a_value_begins_no_line_of_its_own_and_markup_stays_text(capfd: pytest.CaptureFixture[str]) -> None:
    run(["user", "ann"])
    run(["item", "book"])
    shown = capfd.readouterr().out
    assert "[bold][link=http://x]y[/]" in shown
    assert r"\x1b]0;owned\x07" in shown
    assert not [line for line in shown.splitlines() if line.startswith("forged")]


@pytest.mark.usefixtures("_nasty_records")
def test_a_letter_is_shown_with_one_line_a_field(database: str, capfd: pytest.CaptureFixture[str]) -> None:
    for (letter,) in query(database, "SELECT stream_id || ':' || position FROM dead_letter"):
        run(["dlq", "show", letter])
        fields, _, body = capfd.readouterr().out.partition("\n\n")
        assert not [line for line in fields.splitlines() if ":" not in line.split()[0]]
        assert "forged" not in [line.split(":")[0] for line in fields.splitlines()]
        assert body


@pytest.mark.usefixtures("_nasty_records")
def test_json_keeps_the_value(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["user", "ann", "--json"]) == Exit.DONE
    first, second = json.loads(capfd.readouterr().out)["events"]
    assert (first["event_id"], first["type"], first["item"], second["other"]) == (NASTY,) * 4


def test_a_manifest_cannot_write_to_the_terminal_either(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    name, folder = "0" * 64, tmp_path / "\x1b]0;owned\x07"
    (folder / name).mkdir(parents=True)
    manifest = {
        "snapshot": {"id": NASTY, "step": 1, "branch": 1},
        "files": {"x": {"bytes": 1}},
        "schema_version": NASTY,
    }
    (folder / name / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False), encoding="utf-8")
    (folder / "latest.json").write_text(json.dumps({"bundle": name}))
    for call in (["list"], ["list", "--json"], ["check"]):
        run(["bundle", call[0], str(tmp_path), *call[1:]])
        said = "".join(capfd.readouterr())
        assert said.strip()
        assert not UNFIT & set(said)
