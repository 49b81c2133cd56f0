"""Whatever role, database, URL or environment say: a session is as the promise needs it, or refused by name."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from sqlalchemy import make_url, text

from contracts.records import Relation, UserEvent
from driftline.audit.auditor import audit
from driftline.cli import run
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit
from storage import migrate
from storage.engine import Denied, Unavailable, Unfit, driver, mapped_errors, open_engine
from tests.integration.feeding import Sender, event, identity, ingest_once, query, relation, taken

EVENTS: list[UserEvent | Relation] = [
    *(event(f"e{n}", f"üser {n % 3}", n) for n in range(20)),
    relation("r1", "ann", "bob", 30),
]

Verb = Callable[..., tuple[int, str]]


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Runs a verb on a database; its exit code and what it said."""
    monkeypatch.chdir(tmp_path)

    def called(url: str, *words: str, config: KafkaConfig | None = None) -> tuple[int, str]:
        monkeypatch.setenv("DRIFTLINE_POSTGRES_URL", url)
        monkeypatch.setenv("DRIFTLINE_KAFKA_BOOTSTRAP", config.bootstrap if config else "127.0.0.1:1")
        monkeypatch.setenv("DRIFTLINE_TOPIC_PREFIX", config.prefix if config else "")
        capsys.readouterr()
        code = run(list(words))
        said = capsys.readouterr()
        return code, said.out + said.err

    return called


@pytest.fixture
def role(postgres_server: str, database: str) -> Iterator[str]:
    """A role that may log in and owns nothing."""
    name = f"the role {uuid.uuid4().hex[:8]}"
    query(postgres_server, f'CREATE ROLE "{name}" LOGIN')
    yield name
    query(database, f'DROP OWNED BY "{name}"')
    query(postgres_server, f'DROP ROLE "{name}"')


def as_role(url: str, role: str) -> str:
    return make_url(url).set(username=role).render_as_string(hide_password=False).replace(" ", "%20")


def name_of(url: str) -> str:
    return str(conninfo_to_dict(url)["dbname"])


@pytest.fixture
def encoded(postgres_server: str) -> Iterator[Callable[[str], str]]:
    """Makes a database of another encoding."""
    made = []

    def make(encoding: str) -> str:
        name = f"test_{encoding.lower()}_{uuid.uuid4().hex[:8]}"
        query(postgres_server, f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
        made.append(name)
        return make_url(postgres_server).set(database=name).render_as_string(hide_password=False)

    yield make
    for name in made:
        query(postgres_server, f'DROP DATABASE "{name}" WITH (FORCE)')


SETTINGS = [
    "synchronous_commit = off",
    "synchronous_commit = local",
    "client_encoding = 'LATIN1'",
    "DateStyle = 'German, DMY'",
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'Asia/Kolkata'",
    "search_path = elsewhere, public",
    "standard_conforming_strings = off",
    "bytea_output = escape",
    "extra_float_digits = -10",
    "array_nulls = off",
    "default_transaction_isolation = serializable",
    "statement_timeout = '50ms'",
    "lock_timeout = '1ms'",
    "idle_in_transaction_session_timeout = '150ms'",
    "idle_session_timeout = '150ms'",
    "transaction_timeout = '150ms'",
]


def everything(database: str) -> str:
    """Each of them, set for the database."""
    query(database, "CREATE SCHEMA elsewhere")
    query(database, "CREATE TABLE elsewhere.stream_offset (wrong int)")
    for setting in SETTINGS[1:]:
        query(database, f'ALTER DATABASE "{name_of(database)}" SET {setting}')
    return database


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_the_database_changes_nothing(database: str, setting: str) -> None:
    engine = open_engine(database, application_name="test")
    names = "synchronous_commit client_encoding DateStyle IntervalStyle TimeZone search_path bytea_output array_nulls "
    names += "standard_conforming_strings extra_float_digits default_transaction_isolation statement_timeout "
    names += "lock_timeout idle_in_transaction_session_timeout idle_session_timeout transaction_timeout"

    def seen() -> dict[str, str]:
        with mapped_errors(), engine.connect() as connection:
            return {name: str(connection.scalar(text(f"SHOW {name}"))) for name in names.split()}

    before = seen()
    query(database, f'ALTER DATABASE "{name_of(database)}" SET {setting}')
    assert seen() == before
    assert before["synchronous_commit"] == "on"


def test_all_of_them_at_once_change_nothing_from_ingest_to_verify(
    database: str, tansu_topics: KafkaConfig, verb: Verb
) -> None:
    everything(database)
    Sender(tansu_topics).send(*EVENTS)
    ingest_once(database, tansu_topics)
    assert audit(database, tansu_topics, duplicate_window=1000).ok
    code, said = verb(database, "verify", config=tansu_topics)
    assert code == Exit.DONE, said
    code, said = verb(database, "user", "ann", "--json", config=tansu_topics)
    assert code == Exit.DONE
    assert "2026-01-01T00:00:30" in said
    assert verb(database, "migrate")[0] == Exit.DONE
    query(database, f'ALTER DATABASE "{name_of(database)}" RESET ALL')  # for the reading below
    assert taken(database).identities == {identity(each) for each in EVENTS[:20]} | {identity(EVENTS[20])}


def test_what_address_and_environment_say_changes_nothing(
    database: str, tansu_topics: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")
    monkeypatch.setenv("PGDATESTYLE", "German, DMY")
    monkeypatch.setenv("PGTZ", "Asia/Kolkata")
    monkeypatch.setenv("PGOPTIONS", "-c synchronous_commit=off -c IntervalStyle=iso_8601")
    url = f"{database}&client_encoding=latin1"
    Sender(tansu_topics).send(*EVENTS)
    ingest_once(url, tansu_topics)
    engine = open_engine(url, application_name="test")
    with mapped_errors(), engine.connect() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        assert connection.scalar(text("SHOW IntervalStyle")) == "postgres"
        assert connection.scalar(text("SHOW client_encoding")) == "UTF8"
    assert audit(url, tansu_topics, duplicate_window=1000).ok


def test_a_long_or_foreign_name_of_a_learner_is_no_reason_to_refuse(database: str) -> None:
    engine = open_engine(database, application_name=f"driftline-train-{'ü' * 40}")
    with mapped_errors(), engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1


def test_a_commit_that_waits_for_more_than_durability_is_kept(database: str) -> None:
    query(database, f'ALTER DATABASE "{name_of(database)}" SET synchronous_commit = remote_apply')
    engine = open_engine(database, application_name="test")
    with mapped_errors(), engine.connect() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "remote_apply"


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_of_another_encoding_is_refused_in_one_sentence(
    encoded: Callable[[str], str], encoding: str, verb: Verb
) -> None:
    url = encoded(encoding)
    for words in (["migrate"], ["ingest"], ["status"], ["verify"]):
        code, said = verb(url, *words)
        assert code == Exit.REFUSED, said
        assert f"has the encoding {encoding}" in said
        assert "ENCODING 'UTF8'" in said


# -- rights --


def test_migrate_without_rights_says_the_servers_reason_and_what_to_grant(database: str, role: str, verb: Verb) -> None:
    migrate.downgrade(database, "base")
    query(database, "DROP TABLE alembic_version")
    code, said = verb(as_role(database, role), "migrate")
    assert code == Exit.REFUSED
    assert "permission denied for schema public" in said
    assert "GRANT USAGE, CREATE ON SCHEMA public" in said
    assert "InFailedSqlTransaction" not in said
    query(database, f'GRANT USAGE, CREATE ON SCHEMA public TO "{role}"')
    code, said = verb(as_role(database, role), "migrate")
    assert code == Exit.DONE, said


def test_a_role_without_rights_on_the_tables_is_refused_by_name(database: str, role: str, verb: Verb) -> None:
    code, said = verb(as_role(database, role), "ingest")
    assert code == Exit.REFUSED
    assert "permission denied for table alembic_version" in said
    assert "GRANT SELECT, INSERT, UPDATE, DELETE" in said


def test_a_role_with_the_documented_rights_and_a_blank_in_its_name_can_do_all_of_it(
    database: str, role: str, tansu_topics: KafkaConfig, verb: Verb
) -> None:
    query(database, f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO "{role}"')
    query(database, f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO "{role}"')
    url = as_role(database, role)
    assert "%20" in url
    Sender(tansu_topics).send(*EVENTS)
    ingest_once(url, tansu_topics)
    code, said = verb(url, "verify", config=tansu_topics)
    assert code == Exit.DONE, said


def test_tables_that_a_search_path_led_into_another_schema_are_found(database: str, verb: Verb) -> None:
    query(database, "ALTER SCHEMA public RENAME TO tenant")
    query(database, "CREATE SCHEMA public")
    code, said = verb(database, "status")
    assert code == Exit.USAGE
    assert "the tables stand in schema 'tenant'" in said
    query(database, "DROP SCHEMA public")
    query(database, "ALTER SCHEMA tenant RENAME TO public")
    code, said = verb(database, "status")
    assert code == Exit.DONE, said


# -- addresses --


def test_of_several_hosts_the_one_that_answers_is_used_by_every_verb(
    database: str, tansu_topics: KafkaConfig, verb: Verb
) -> None:
    address = conninfo_to_dict(database)
    hosts = f"postgresql://postgres@/{address['dbname']}?host=127.0.0.1,{address['host']}&port=1,5432"
    hosts += "&target_session_attrs=read-write"
    Sender(tansu_topics).send(*EVENTS)
    ingest_once(hosts, tansu_topics)
    code, said = verb(hosts, "verify", config=tansu_topics)
    assert code == Exit.DONE, said


@pytest.mark.parametrize("edge", ["\n", " ", "\r\n"])
def test_a_line_end_behind_the_address_is_no_part_of_the_database(database: str, edge: str, verb: Verb) -> None:
    user = make_url(database)
    socket = user.query["host"]
    for url in (database, f"host={socket} dbname={user.database} user=postgres"):
        code, said = verb(url + edge, "dlq", "list", "--json")
        assert code == Exit.DONE, said


def test_a_database_that_is_not_there_and_a_role_that_is_not_are_wrong_calls(database: str, verb: Verb) -> None:
    for url, why in (
        (make_conninfo(database, dbname="nowhere"), 'database "nowhere" does not exist'),
        (make_conninfo(database, user="nobody there"), 'role "nobody there" does not exist'),
    ):
        code, said = verb(url, "status")
        assert code == Exit.USAGE
        assert why in said
        engine = open_engine(url, application_name="test")
        with pytest.raises(Denied, match="does not exist"), mapped_errors(), engine.connect():
            pass
    assert issubclass(Denied, Unavailable)


def test_an_address_with_a_password_that_is_not_encoded_is_refused_without_repeating_it(verb: Verb) -> None:
    for url in ("postgresql://me:hun@ter2@db/d", "postgresql://me:hun/ter2@db/d", "postgresql://me:x@db:hunter2/d"):
        for words in (["migrate"], ["verify"], ["ingest"]):
            code, said = verb(url, *words)
            assert code == Exit.USAGE
            assert "hun" not in said
            assert "ter2" not in said
            assert "Traceback" not in said


# -- what the server says while it runs --


def test_a_session_of_a_server_that_became_read_only_is_not_used_again(database: str) -> None:
    query(database, "CREATE SEQUENCE x")
    engine = open_engine(database, application_name="test", pooled=True)
    with mapped_errors(), engine.begin() as connection:
        first = driver(connection).info.backend_pid
    with pytest.raises(Unavailable, match="read-only"), mapped_errors(), engine.begin() as connection:
        connection.execute(text("SELECT set_config('transaction_read_only', 'on', true), nextval('x')"))
    with mapped_errors(), engine.begin() as connection:
        assert driver(connection).info.backend_pid != first
    engine.dispose()


def test_a_table_that_is_gone_is_a_refusal_and_not_a_crash(database: str) -> None:
    engine = open_engine(database, application_name="test")
    gone = r'"nowhere" does not exist.*driftline migrate'
    with pytest.raises(Unfit, match=gone), mapped_errors(), engine.begin() as connection:
        connection.execute(text("SELECT * FROM nowhere"))
