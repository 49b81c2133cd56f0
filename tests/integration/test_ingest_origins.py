"""Rule 5: a replayed dead letter counts once, and nobody else's header decides anything."""

from __future__ import annotations

import pytest

from contracts import topics
from contracts.origins import record_digest
from contracts.records import Record
from storage.log import dead_letters
from tests.integration.feeding import event, identity, payment, query, taken
from tests.integration.owning import MakeOwner, Owner, message

USER = (topics.USER, 0)


def refused(owner: Owner, *keys: bytes) -> list[str]:
    """Writes records that cannot be read; their letters."""
    at = owner.claims[USER].next_offset
    owner.write({USER: [message(topics.USER, at + n, key=key, value=b"{") for n, key in enumerate(keys)]})
    stream_id = owner.claims[USER].stream_id
    return [f"{stream_id}:{at + n}" for n in range(len(keys))]


def proof_of(owner: Owner, letter: str, topic: str, record: Record) -> bytes:
    """The header's content that `dlq replay` writes."""
    content = dict(owner.replay(letter, topic, 0, record).headers() or ())[topics.ORIGIN_HEADER]
    assert isinstance(content, bytes)
    return content


def test_a_header_of_a_stranger_drops_nothing(database: str, owner: MakeOwner) -> None:
    one = owner()
    same = [message(topics.USER, n, event(f"e{n}", user), origins=[b"1:7"]) for n, user in enumerate(("a", "b", "c"))]
    [written] = one.write({USER: same})
    assert (written.counts.accepted, written.counts.duplicates, written.ignored_origins) == (3, 0, 3)
    assert query(database, "SELECT count(*) FROM replayed_letter") == [(0,)]


def test_a_stranger_cannot_use_a_letter_up(database: str, owner: MakeOwner) -> None:
    one = owner()
    [letter] = refused(one, b"ann")
    forged = [letter.encode(), f"{letter}:{'0' * 64}".encode(), f"{letter}:".encode()]
    [written] = one.write({USER: [message(topics.USER, 1, event("strange"), origins=forged)]})
    assert (written.counts.accepted, written.ignored_origins) == (1, 1)
    [written] = one.write({USER: [one.replay(letter, topics.USER, 2, event("mended"))]})
    assert (written.counts.accepted, written.ignored_origins) == (1, 0)
    assert query(database, "SELECT position FROM replayed_letter") == [(2,)]


def test_a_header_copied_to_another_record_proves_nothing(database: str, owner: MakeOwner) -> None:
    """To another user's, to another topic's, and, beyond the rule, to another event of the same user."""
    one = owner(USER, (topics.PAYMENT, 0))
    [letter] = refused(one, b"ann")
    one.write({USER: [one.replay(letter, topics.USER, 1, event("mended"))]})
    copied = proof_of(one, letter, topics.USER, event("mended"))
    batch = {
        USER: [
            message(topics.USER, 2, event("mended", "bob"), origins=[copied]),
            message(topics.USER, 3, event("next"), origins=[copied]),
        ],
        (topics.PAYMENT, 0): [message(topics.PAYMENT, 0, payment("mended"), origins=[copied])],
    }
    written = one.write(batch)
    assert [(each.counts.accepted, each.ignored_origins) for each in written] == [(2, 2), (1, 1)]


def test_a_proof_without_its_dead_letter_is_ignored(database: str, owner: MakeOwner) -> None:
    one = owner(USER, (topics.PAYMENT, 0))
    [letter] = refused(one, b"ann")
    stream_id, at = dead_letters.parse_id(letter)
    absent = [one.replay(f"{stream_id}:{at + n}", topics.USER, n, event(f"e{n}")) for n in (1, 2)]
    of_other_topic = [one.replay(letter, topics.PAYMENT, n, payment(f"p{n}")) for n in (0, 1)]
    written = one.write({USER: absent, (topics.PAYMENT, 0): of_other_topic})
    assert [(each.counts.accepted, each.ignored_origins) for each in written] == [(2, 2), (2, 2)]
    assert query(database, "SELECT count(*) FROM replayed_letter") == [(0,)]


def test_a_dead_letter_comes_in_once_however_it_is_mended(database: str, owner: MakeOwner) -> None:
    one = owner(window=3)
    [letter] = refused(one, b"ann")
    one.write({USER: [one.replay(letter, topics.USER, 1, event("mended"))]})
    one.write_events(*(event(f"e{n}") for n in range(30)))  # far beyond the window
    again = [one.replay(letter, topics.USER, 32 + n, event(name)) for n, name in enumerate(["mended", "other"])]
    assert one.write({USER: again})[0].counts.duplicates == 2
    assert len(taken(database).identities) == 31
    assert query(database, "SELECT position FROM replayed_letter") == [(1,)]


def test_a_replay_of_an_event_that_came_in_otherwise_is_a_duplicate(database: str, owner: MakeOwner) -> None:
    one = owner()
    [letter] = refused(one, b"ann")
    one.write_events(event("e1"))
    [written] = one.write({USER: [one.replay(letter, topics.USER, 2, event("e1"))]})
    assert written.counts.duplicates == 1
    assert query(database, "SELECT count(*) FROM replayed_letter") == [(0,)]


def test_what_a_replay_does_is_the_same_however_records_fall_into_batches(database: str, owner: MakeOwner) -> None:
    """A replay that repeats a record of its own batch brings nothing in, so its letter is not used up."""
    one = owner()
    [letter] = refused(one, b"ann")
    one.write({USER: [message(topics.USER, 1, event("e1")), one.replay(letter, topics.USER, 2, event("e1"))]})
    assert query(database, "SELECT count(*) FROM replayed_letter") == [(0,)]
    [written] = one.write({USER: [one.replay(letter, topics.USER, 3, event("mended otherwise"))]})
    assert written.counts.accepted == 1


def test_a_dropped_replay_does_not_take_a_real_event_with_it(database: str, owner: MakeOwner) -> None:
    one = owner()
    [letter] = refused(one, b"ann")
    one.write({USER: [one.replay(letter, topics.USER, 1, event("e1"))]})
    batch = [one.replay(letter, topics.USER, 2, event("e2")), message(topics.USER, 3, event("e2"))]
    assert one.write({USER: batch})[0].counts.duplicates == 1
    assert identity(event("e2")) in taken(database).identities


def test_two_owners_that_replay_one_letter_at_the_same_moment_bring_it_in_once(
    database: str, owner: MakeOwner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second saw no replay when it looked; its own in-batch repeat then passes in place of the replay."""
    first, second = owner(USER), owner((topics.USER, 1))
    [letter] = refused(first, b"ann")
    found = dead_letters.origins

    def overtaken(*asked: object) -> object:
        seen = found(*asked)  # type: ignore[arg-type]
        monkeypatch.undo()
        first.write({USER: [first.replay(letter, topics.USER, 1, event("e1"))]})
        return seen

    monkeypatch.setattr(dead_letters, "origins", overtaken)
    batch = [second.replay(letter, topics.USER, 0, event("e2")), message(topics.USER, 1, event("e2"))]
    [written] = second.write({(topics.USER, 1): batch})
    assert (written.counts.accepted, written.counts.duplicates) == (1, 1)
    assert written.offsets.tolist() == [1]


def test_ten_thousand_replays_in_one_batch_are_judged_in_seconds(database: str, owner: MakeOwner) -> None:
    one = owner()
    letters = refused(one, *[b"ann"] * 10_000)
    with one.connection.begin():
        one.connection.exec_driver_sql("SET statement_timeout = '8s'")
    batch = [one.replay(letter, topics.USER, 10_000 + n, event(f"e{n}")) for n, letter in enumerate(letters)]
    again = [one.replay(letter, topics.USER, 20_000 + n, event(f"o{n}")) for n, letter in enumerate(letters)]
    assert one.write({USER: batch})[0].counts.accepted == 10_000
    assert one.write({USER: again})[0].counts.duplicates == 10_000


@pytest.mark.parametrize("spelling", ["0{}", "+{}", " {}", "{} ", "{}\n", "{}:0", "-{}", "\u0661{}", "0_{}", "{}\0"])
def test_only_the_one_spelling_of_an_origin_is_read(database: str, owner: MakeOwner, spelling: str) -> None:
    """Whatever it is signed with: `verify` and `ingest` must read one letter or none."""
    one = owner()
    [letter] = refused(one, b"ann")
    signed = proof_of(one, spelling.format(letter), topics.USER, event("e1"))
    [written] = one.write({USER: [message(topics.USER, 1, event("e1"), origins=[signed])]})
    assert (written.counts.accepted, written.ignored_origins) == (1, 1)


@pytest.mark.parametrize(
    "contents",
    [
        [b""],
        [None],
        [b"nonsense"],
        [b"1:"],
        [b":1"],
        [b"9999999999:1"],
        [b"1:" + b"9" * 30],
        ["é:1".encode()],
        [b"\xff\x00"],
        [b"9" * 5_000 + b":1:" + b"0" * 64],
        [b"1:1:" + b"f" * 500_000],
        [b"1:1:" + b"0" * 64] * 5_000,
    ],
    ids=range(12),
)
def test_a_foreign_origin_header_stops_nothing(database: str, owner: MakeOwner, contents: list[bytes | None]) -> None:
    one = owner()
    [written] = one.write({USER: [message(topics.USER, 0, event("e1"), origins=contents)]})
    assert (written.counts.accepted, written.ignored_origins) == (1, 1)


def test_one_header_that_proves_itself_is_enough_among_foreign_ones(database: str, owner: MakeOwner) -> None:
    one = owner()
    [letter] = refused(one, b"ann")
    proof = proof_of(one, letter, topics.USER, event("e1"))
    both = [b"1:1", proof, None]
    [written] = one.write({USER: [message(topics.USER, 1, event("e1"), origins=both)]})
    assert (written.counts.accepted, written.ignored_origins) == (1, 0)
    [written] = one.write({USER: [one.replay(letter, topics.USER, 2, event("e2"))]})
    assert written.counts.duplicates == 1


def test_the_proof_of_another_installation_proves_nothing(database: str, owner: MakeOwner) -> None:
    one = owner()
    [letter] = refused(one, b"ann")
    elsewhere = one.replay(letter, topics.USER, 1, event("e1"))
    query(database, "UPDATE installation SET suppression_key = decode(repeat('ab', 32), 'hex')")
    [written] = one.write({USER: [elsewhere]})
    assert (written.counts.accepted, written.ignored_origins) == (1, 1)


def test_a_null_and_an_empty_key_are_not_one_record() -> None:
    parts = [(None, b""), (b"", b""), (b"", None), (None, None), (b"a", b"b"), (b"ab", b""), (b"", b"ab")]
    assert len({record_digest(topics.USER, *each) for each in parts}) == len(parts)
