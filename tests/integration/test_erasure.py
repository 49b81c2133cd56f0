"""Erasing users: beside a batch in flight, interrupted, and after a full replay, no byte of an id is left."""

from __future__ import annotations

import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from contracts import topics
from driftline.cli import run
from runtime.lifecycle import Exit
from storage.dictionary import Space
from storage.learning import journal, snapshot_registry
from storage.log.event_log import decode_rows
from storage.privacy import erasure, suppression
from storage.privacy.suppression import Suppression
from tests.integration.feeding import engine_of, event, eventually, label, payment, query, relation, taken
from tests.integration.owning import MakeOwner, Owner, message

PLACES = [(topics.USER, 0), (topics.PAYMENT, 0), (topics.RELATIONAL, 0), (topics.LABELS, 0)]
GONE = "ann-4711"


def write_everything(one: Owner) -> None:
    """Records of, about and beside GONE, valid and not."""
    one.write_events(event("e1", GONE, 1), event("e2", "bob", 2), event("e3", GONE, 3))
    one.write_events(payment("p1", GONE, 1), payment("p2", "bob", 2), topic=topics.PAYMENT)
    both = [relation("r1", GONE, "bob", 1), relation("r2", "bob", GONE, 2), relation("r3", "bob", "eve", 3)]
    one.write_events(*both, topic=topics.RELATIONAL)
    one.write_events(label("l1", GONE, 1), label("l2", "bob", 2), topic=topics.LABELS)
    first = one.claims[topics.USER, 0].next_offset
    broken = [
        (GONE.encode(), b"{"),
        (b"bob", f'{{"user_id": "{GONE}", "event_id": 1}}'.encode()),
        (b"bob", f"user={GONE};".encode()),
        (b"bob", b"not " + GONE.encode() + b"2"),
    ]
    one.write({(topics.USER, 0): [message(topics.USER, first + n, key=k, value=v) for n, (k, v) in enumerate(broken)]})


def holding(database: str, needle: str) -> list[str]:
    """Every place of the database where the bytes of `needle` stand: all columns as text and bytes, Arrow decoded."""
    found = []
    with psycopg.connect(database) as connection:
        columns = connection.execute(
            "SELECT c.relname, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
            " WHERE c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped"
            " AND (c.relnamespace = 'public'::regnamespace OR c.relname = 'pg_statistic')"
        ).fetchall()
        for table, column in columns:
            query_text = sql.SQL("SELECT {}::text FROM {}").format(sql.Identifier(column), sql.Identifier(table))
            for (value,) in connection.execute(query_text):
                if value is not None and (needle in value or needle.encode().hex() in value):
                    found.append(f"{table}.{column}")
        for (rows,) in connection.execute("SELECT rows FROM log_segment WHERE rows IS NOT NULL"):
            if needle in str(decode_rows(rows).to_pylist()) or needle.encode() in rows:
                found.append("log_segment.rows")
    return found


def test_the_search_for_bytes_finds_what_is_there(database: str, owner: MakeOwner) -> None:
    write_everything(owner(*PLACES))
    tables = {place.split(".")[0] for place in holding(database, GONE)}
    assert tables >= {"log_segment", "vocabulary", "dead_letter"}


def test_nothing_of_an_erased_user_is_left_and_others_keep_theirs(database: str, owner: MakeOwner) -> None:
    write_everything(owner(*PLACES))
    erased = erasure.erase(engine_of(database), [GONE])
    assert holding(database, GONE) in ([], ["dead_letter.value"])  # of "ann-47112", another user
    assert (erased.log_rows, erased.others, erased.letters) == (6, 1, 3)
    found = taken(database)
    assert {event_id for _, _, event_id in found.identities} == {"e2", "p2", "r3", "l2"}
    assert found.totals["suppressed"] == 6
    assert query(database, "SELECT count(*) FROM dead_letter WHERE value = %s", b"not ann-47112") == [(1,)]


def test_a_payee_is_erased_like_a_user(database: str, owner: MakeOwner) -> None:
    owner(*PLACES).write_events(payment("p1", "bob", 1), payment("p2", "eve", 2), topic=topics.PAYMENT)
    erasure.erase(engine_of(database), ["shop"])
    assert holding(database, "shop") == []
    assert taken(database).identities == set()


def test_after_a_full_replay_nothing_came_back(database: str, owner: MakeOwner) -> None:
    write_everything(owner(*PLACES))
    erasure.erase(engine_of(database), [GONE, "ann-47112"])
    before = query(database, "SELECT user_id, event_id, role FROM user_event ORDER BY 1, 2, 3")
    query(database, "TRUNCATE user_segment, log_segment, dead_letter, replayed_letter, vocabulary")
    query(database, "UPDATE stream_offset SET next_offset = 0")
    write_everything(owner(*PLACES))
    assert holding(database, GONE) == []
    assert query(database, "SELECT user_id, event_id, role FROM user_event ORDER BY 1, 2, 3") == before
    assert query(database, "SELECT count(*) FROM dead_letter") == [(4,)], "each is still told"


def test_an_owner_that_wrote_before_an_erasure_writes_no_row_and_no_name_after_it(
    database: str, owner: MakeOwner
) -> None:
    one = owner(*PLACES)
    write_everything(one)
    erasure.erase(engine_of(database), [GONE, "ann-47112"])
    write_everything(one)  # the same records again, at later offsets
    assert holding(database, GONE) == []
    found = taken(database)
    assert {event_id for _, _, event_id in found.identities} == {"e2", "p2", "r3", "l2"}
    assert (found.totals["suppressed"], found.totals["duplicates"]) == (12, 4)


def test_an_owner_forgets_whom_it_knew_by_name_with_its_next_batch(database: str, owner: MakeOwner) -> None:
    one = owner(*PLACES)
    write_everything(one)
    assert set(one.vocabulary.known(Space.USER, [GONE, "bob"])) == {GONE, "bob"}
    erasure.erase(engine_of(database), [GONE])
    assert GONE in one.vocabulary.known(Space.USER, [GONE]), "nobody has told it yet"
    one.write_events(event("e4", "bob", 4), event("e5", GONE, 5))
    assert set(one.vocabulary.known(Space.USER, [GONE, "bob"])) == {"bob"}
    assert taken(database).totals["suppressed"] == 7


def test_a_batch_that_had_to_wait_for_an_erasure_knows_of_it(database: str, owner: MakeOwner) -> None:
    one = owner()
    one.write_events(event("e1", "bob"))
    waiting = (
        "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database"
        " WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()"
    )
    with ThreadPoolExecutor(1) as pool:
        with engine_of(database).begin() as erasing:
            suppression.suppress(erasing, [GONE])
            batch = pool.submit(one.write_events, event("e2", GONE), event("e3", "bob"))
            eventually(lambda: query(database, waiting) == [(1,)])
        assert batch.result().counts.suppressed == 1
    assert {event_id for _, _, event_id in taken(database).identities} == {"e1", "e3"}


@pytest.mark.parametrize("place", ["ingest.after_rows", "ingest.before_commit"])
def test_an_erasure_waits_for_a_batch_in_flight_and_takes_its_rows_too(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    one, written, erased = owner(), threading.Event(), threading.Event()

    def erase() -> None:
        written.wait()
        erasure.erase(engine_of(database), [GONE])
        erased.set()

    def pause(name: str) -> None:
        if name == place:
            written.set()
            assert not erased.wait(1.0), "the erasure must not overtake the batch"

    monkeypatch.setattr("streams.ingest.batch_writer.failpoint", pause)
    eraser = threading.Thread(target=erase)
    eraser.start()
    one.write_events(event("e1", GONE), event("e2", "bob"))
    eraser.join()
    assert holding(database, GONE) == []
    assert {user for _, user, _ in taken(database).identities} == {"bob"}


@pytest.mark.parametrize("step", ["suppressed", "log", "others", "letters", "sequences"])
def test_an_interrupted_erasure_is_called_again_and_finishes(database: str, owner: MakeOwner, step: str) -> None:
    write_everything(owner(*PLACES))

    def die(done: str) -> None:
        if done == step:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        erasure.erase(engine_of(database), [GONE, "ann-47112"], done=die)
    taken(database) if step in ("suppressed", "strings") else None
    erasure.erase(engine_of(database), [GONE, "ann-47112"])
    assert holding(database, GONE) == []
    assert query(database, "SELECT count(*), max(version) FROM suppression") == [(2, 1)]
    taken(database)


def test_snapshots_learnt_from_an_erased_user_are_irreproducible_and_learners_are_told(
    database: str, owner: MakeOwner
) -> None:
    one, engine = owner(), engine_of(database)
    one.write_events(event("e0", "bob"), event("e1", "bob"))
    one.write_events(event("e2", GONE))
    [claim] = one.claims.values()
    with engine.begin() as connection:
        lease, _ = journal.acquire_lease(connection, learner="markov", version="1", config={})
        for step, at, parent in ((1, 2, None), (2, 3, "s1"), (3, 3, "s2")):
            made = snapshot_registry.NewSnapshot(
                id=f"s{step}", learner="markov", branch=1, step=step, parent=parent,
                cursor={claim.stream_id: at}, front=None,
            )  # fmt: skip
            snapshot_registry.begin(connection, lease, made)
            if step < 3:
                snapshot_registry.make_live(connection, lease, made.id, sha256="0", manifest={})
        connection.exec_driver_sql("UPDATE learner SET next_step = 3")
    erased = erasure.erase(engine, [GONE])
    assert erased.irreproducible == 2
    [(action, step, known)] = query(
        database,
        "SELECT action, step, user_hash IN (SELECT user_hash FROM suppression) FROM learner_action",
    )
    assert (action, step, known) == ("erase", 3, True)
    with engine.begin() as connection:
        snapshot_registry.make_live(connection, lease, "s3", sha256="0", manifest={})
        late = snapshot_registry.NewSnapshot(
            id="s4", learner="markov", branch=1, step=4, parent="s3", cursor={claim.stream_id: 3}, front=None
        )
        snapshot_registry.begin(connection, lease, late)
        snapshot_registry.make_live(connection, lease, "s4", sha256="0", manifest={})
    flags = query(database, "SELECT id, irreproducible FROM snapshot ORDER BY id")
    assert flags == [("s1", False), ("s2", True), ("s3", True), ("s4", False)]


def test_words_of_erased_users_are_known_in_bytes_nobody_could_read(database: str, owner: MakeOwner) -> None:
    erasure.erase(engine_of(database), ["ann", 'é"x'])
    with engine_of(database).connect() as connection:
        erased: Suppression = suppression.load(connection)
    for content in (b'{"user_id":"ann"', b"ann", b"user=ann;", b'["\\u00e9\\"x"]', b"say 'ann'"):
        assert erased.named_in(content), content
    for content in (b"hannah", b'{"user_id":"anna"}', b"", b"\xff\xfe"):
        assert not erased.named_in(content), content


def erased_by_list(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *more: str, code: Exit
) -> dict[str, Any]:
    """Runs `erase --from` a file with this content; what its JSON says."""
    file = tmp_path / "asked.txt"
    file.write_bytes(content.encode())
    capsys.readouterr()
    assert run(["erase", "--from", str(file), "--yes", "--json", *more]) == code
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


@pytest.fixture
def _verbs_find_it(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", database)


@pytest.mark.usefixtures("_verbs_find_it")
def test_a_list_that_a_spreadsheet_wrote_erases_whom_it_names(
    database: str, owner: MakeOwner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner().write_events(event("e1", "anna"), event("e2", "a\u2028b"))
    told = erased_by_list("\ufeffanna\r\nben\r\na\u2028b\r\n\r\n", tmp_path, capsys, code=Exit.REFUSED)
    assert holding(database, "anna") == []
    assert holding(database, "a\u2028b") == []
    assert told["unknown"] == [{"user": "ben", "did_you_mean": []}]
    assert (told["users"], told["log_rows"], told["empty_lines"]) == (3, 2, 1)


@pytest.mark.usefixtures("_verbs_find_it")
def test_nobody_is_erased_by_a_guess_and_whom_it_may_mean_is_told(
    database: str, owner: MakeOwner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner().write_events(event("e1", "anna"), event("e2", ' "ben" '), event("e3", "ben"))
    assert run(["erase", " anna", "--yes"]) == Exit.REFUSED
    told = capsys.readouterr()
    assert "did you mean 'anna', who is still there?" in told.err
    assert "erased 0" in told.out
    assert erased_by_list(' "ben" \n', tmp_path, capsys, code=Exit.DONE)["unknown"] == []
    assert {user for _, user, _ in taken(database).identities} == {"anna", "ben"}


@pytest.mark.usefixtures("_verbs_find_it")
def test_who_is_unknown_stays_so_however_often_it_is_asked_and_who_was_erased_is_known(
    database: str, owner: MakeOwner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = owner(*PLACES)
    write_everything(one)
    one.write_events(label("l3", "zoe", 3), topic=topics.LABELS)  # no event of hers ever came
    first = one.claims[topics.USER, 0].next_offset
    one.write({(topics.USER, 0): [message(topics.USER, first, key=b"k", value=b'{"user_id":"leo"')]})
    names = f"{GONE}\nshop\nzoe\nleo\ntypo\n"
    for _ in range(2):
        told = erased_by_list(names, tmp_path, capsys, code=Exit.REFUSED)
        assert told["unknown"] == [{"user": "typo", "did_you_mean": []}], "of each of the others there was something"
    assert erased_by_list(names, tmp_path, capsys, "--allow-unknown", code=Exit.DONE)["unknown"][0]["user"] == "typo"
    assert query(database, "SELECT count(*), max(version) FROM suppression") == [(5, 1)]
    one.write_events(event("e9", "typo", 9))
    assert "typo" not in {user for _, user, _ in taken(database).identities}, "blocked all the same"
    assert erased_by_list(names, tmp_path, capsys, code=Exit.REFUSED)["unknown"][0]["user"] == "typo"


@pytest.mark.parametrize("step", ["suppressed", "log", "others", "letters", "sequences"])
def test_an_interrupted_erasure_still_knows_whom_it_found(database: str, owner: MakeOwner, step: str) -> None:
    one = owner(*PLACES)
    write_everything(one)
    one.write_events(label("l3", "zoe", 3), topic=topics.LABELS)

    def die(done: str) -> None:
        if done == step:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        erasure.erase(engine_of(database), [GONE, "zoe", "typo"], done=die)
    assert erasure.erase(engine_of(database), [GONE, "zoe", "typo"]).unknown == ("typo",)


@pytest.mark.usefixtures("_verbs_find_it")
def test_a_list_that_cannot_be_read_erases_nobody(
    database: str, owner: MakeOwner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner().write_events(event("e1", "anna"))
    file = tmp_path / "asked.txt"
    file.write_bytes("anna\nren\u00e9\n".encode("latin-1"))
    assert run(["erase", "--from", str(file), "--yes"]) == Exit.USAGE
    assert "line 2" in capsys.readouterr().err
    assert {user for _, user, _ in taken(database).identities} == {"anna"}


@pytest.mark.usefixtures("_verbs_find_it")
def test_a_list_comes_from_standard_input_too(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    owner().write_events(event("e1", "anna"), event("e2", "ben"))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"anna\r\n")))
    assert run(["erase", "--from", "-"]) == Exit.USAGE
    assert "--yes" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"anna\r\n")))
    assert run(["erase", "--from", "-", "--yes"]) == Exit.DONE
    assert {user for _, user, _ in taken(database).identities} == {"ben"}
