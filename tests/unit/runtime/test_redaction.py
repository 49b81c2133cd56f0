"""What of a text may be shown."""

from __future__ import annotations

import json
import sys
import unicodedata

import msgspec
import psycopg
import pytest
from confluent_kafka import KafkaError, KafkaException
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError

from contracts.codec import Malformed, Reason
from runtime.lifecycle import Transient
from runtime.redaction import SHORTEST_SECRET, Secrets, cut, escaped, escaped_json, said
from storage.engine import Unavailable, mapped_errors, open_engine


def test_no_character_that_moves_a_cursor_rings_or_turns_the_writing_passes() -> None:
    turns = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI", "BN"}
    zero_width_joiners = "\u200c\u200d"  # Persian and emoji need them
    unfit = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Cc", "Zl", "Zp", "Cs")
        or (unicodedata.bidirectional(chr(code)) in turns and unicodedata.category(chr(code)) == "Cf")
    ]
    passed = [hex(ord(one)) for one in unfit if one in escaped(one) and one not in zero_width_joiners]
    assert [one for one in passed if not 0x1BCA0 <= int(one, 16) <= 0x1D17A] == []  # shorthand and musical marks


@given(st.text())
def test_a_text_that_is_fit_stays_as_it_is_and_every_text_becomes_one_line(given: str) -> None:
    shown = escaped(given)
    assert len(shown.splitlines()) <= 1
    if given.isascii() and given.isprintable():
        assert shown == given
    shown.encode()  # no lone surrogate is left


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_keeps_its_value(value: object) -> None:
    encoded = json.dumps(value, ensure_ascii=False)
    shown = escaped_json(encoded)
    assert json.loads(shown) == value
    assert not set(shown) & set("\x1b\x07\x7f\x9b\u2028\u202e")


def test_a_cut_text_has_as_many_bytes_as_it_may() -> None:
    assert cut("a" * 10, 10) == "a" * 10
    assert cut("\u00e9" * 100, 51).encode().startswith("\u00e9".encode())
    assert len(cut("\u00e9" * 100, 51).encode()) <= 51


def test_a_secret_shorter_than_words_are_is_not_looked_for() -> None:
    assert Secrets(["a" * (SHORTEST_SECRET - 1)]).hide("banaaana") == "banaaana"
    assert Secrets([""]).hide("banana") == "banana"


def test_of_foreign_errors_only_those_that_name_no_person_say_more_than_their_type() -> None:
    assert said(KeyError("anna")) == "KeyError"
    assert said(ValueError("anna")) == "ValueError"
    assert said(OSError(28, "No space left on device", "/data/x")) == (
        "OSError: [Errno 28] No space left on device: '/data/x'"
    )
    assert said(KafkaException(KafkaError(KafkaError._TRANSPORT))) == "KafkaException: Local: Broker transport failure"
    assert said(Transient("no answer", where="Kafka", hint="wait")) == "no answer [Kafka] -> wait"
    assert said(Malformed(Reason.NOT_JSON, "anna")) == "Malformed"


def test_what_msgspec_quotes_of_a_record_is_hidden_and_where_it_stood_is_not() -> None:
    class Event(msgspec.Struct, forbid_unknown_fields=True):
        kind: str
        number: int = 0

    for body, expected in {
        b'{"anna": 1}': "ValidationError: Object contains unknown field (hidden)",
        b'{"kind": 7}': "ValidationError: Expected `str`, got `int` - at `$.kind`",
        b"{}": "ValidationError: Object missing required field `kind`",
    }.items():
        with pytest.raises(msgspec.ValidationError) as refused:
            msgspec.json.decode(body, type=Event)
        assert said(refused.value) == expected


@pytest.mark.parametrize("how", ["str(error)", "repr(error)", "' '.join(str(error).split())[:300]"])
def test_a_foreign_errors_text_is_hidden_in_the_one_that_it_caused_too(how: str) -> None:
    def wrap() -> None:
        try:
            raise ValueError("of\n  anna " + "x" * 400)
        except ValueError as error:
            raise Transient(f"it failed: {eval(how)}", where="here") from error

    with pytest.raises(Transient) as wrapped:
        wrap()
    assert said(wrapped.value).startswith("it failed: ValueError")
    assert "anna" not in said(wrapped.value)


def test_postgres_says_its_first_sentence_and_no_row(postgres_server: str) -> None:
    engine = open_engine(postgres_server, application_name="test")
    statements = {
        "INSERT INTO people VALUES (:who)": 'duplicate key value violates unique constraint "people_pkey" (23505)',
        "SELECT CAST(:who AS int)": "invalid input syntax for type integer: (hidden) (22P02)",
        "SELECT nowhere FROM people WHERE who = :who": 'column "nowhere" does not exist (42703)',
    }
    for statement, expected in statements.items():
        with engine.connect() as connection:
            connection.execute(text("CREATE TEMPORARY TABLE people (who text PRIMARY KEY)"))
            connection.execute(text("INSERT INTO people VALUES ('anna')"))
            with pytest.raises(DBAPIError) as refused:
                connection.execute(text(statement), {"who": "anna"})
        assert said(refused.value).partition(": ")[2] == expected
        assert "[parameters:" not in str(refused.value)  # SQLAlchemy's own


def test_what_postgres_quotes_of_a_row_does_not_reach_the_reason_of_an_outage(postgres_server: str) -> None:
    engine = open_engine(postgres_server, application_name="test")
    raising = "DO $$ BEGIN RAISE 'too many' USING ERRCODE = '53300', DETAIL = 'Key (user_id)=(anna)'; END $$"
    with pytest.raises(Unavailable) as away, mapped_errors(), engine.connect() as connection:
        connection.execute(text(raising))
    assert str(away.value).startswith("too many (")
    assert "anna" not in str(away.value)


def test_a_connection_that_is_refused_says_where_and_no_password() -> None:
    engine = create_engine("postgresql+psycopg://me:geheim@127.0.0.1:1/x")
    with pytest.raises(DBAPIError) as refused:
        engine.connect()
    assert "127.0.0.1" in said(refused.value)
    assert "geheim" not in said(refused.value)
    with pytest.raises(psycopg.ProgrammingError) as unread:
        psycopg.connect("postgresql://me:geheim@x y z")
    assert "geheim" not in said(unread.value)
