"""A session of Postgres on which the promise can stand: each setting it needs is set by statement and read back.

Not by startup options: a pooler drops them (PgBouncer's `ignore_startup_parameters`). Not left to the server, the
database, the role or the environment: with `synchronous_commit` off a commit that was reported may be lost, and
with another DateStyle or encoding it is read as something else.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo

from storage.postgres.address import server_settings
from storage.postgres.calls import CALLS
from storage.postgres.faults import TooOld, Unavailable, Unfit

RV = TypeVar("RV")

MINIMUM_SERVER_VERSION = 17
"""`transaction_timeout` (protocol, rule 1) came with PostgreSQL 17."""
CONNECT_S = 5
"""Seconds for each host, unless the address says otherwise."""
OVERDUE_S = 10.0
"""Seconds without an answer after which a process is not ready."""
GRACE_S = 5.0
"""Seconds after `transaction_timeout`, when the server would have ended it, until an answer is waited for no more."""
_NETWORK = {
    "connect_timeout": str(CONNECT_S),
    "keepalives": "1",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
"""A host that is gone is noticed within 25 s of silence, or 15 s after something was sent; the address may say
otherwise."""
_TOKEN = "driftline.cli_context"
_SETTINGS = {
    "client_encoding": "UTF8",
    "DateStyle": "ISO, MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "search_path": "public, pg_temp",
    "standard_conforming_strings": "on",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_deferrable": "off",
}
"""What statements and results are read under. `default_transaction_read_only` is not among them: whoever has set it
fences this server (a switch-over, a full disk), and a commit behind the fence would be lost."""
_LIMITS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout")
"""A role's limits are made for people's queries; they count only where the address itself names them."""
_COMMIT = "synchronous_commit"
_DURABLE = ("on", "remote_apply")
"""`remote_apply` is `on`, and waits for the standbys' readers too. The others report a commit that may be lost."""
_SET_COMMIT = (
    "pg_catalog.set_config('synchronous_commit', CASE pg_catalog.current_setting('synchronous_commit') "
    "WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, false)"
)
_WHERE = ("pg_catalog.pg_backend_pid()", "pg_catalog.current_setting('server_encoding')")
_SERVER = (
    "SELECT system_identifier, CASE WHEN pg_catalog.pg_is_in_recovery() "
    "THEN (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()) "
    "ELSE ('x' || pg_catalog.substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))"
    "::bit(32)::int END FROM pg_catalog.pg_control_system()"
)
_OURS = (
    f"SELECT pg_catalog.current_setting('{_TOKEN}', true), pg_catalog.current_setting('{_COMMIT}'), "
    "pg_catalog.pg_backend_pid()"
)
_POOLER_TODO = (
    "let the pooler give each client a server of its own (PgBouncer: pool_mode = session; `driftline` may have a "
    "database entry of its own there), or lead DRIFTLINE_POSTGRES_URL past it"
)
_UTF8_TODO = (
    "make one with CREATE DATABASE ... TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8' and lead "
    "DRIFTLINE_POSTGRES_URL there"
)


@dataclass(frozen=True)
class Server:
    """Which Postgres answers: another one after a failover or a restored backup."""

    system_identifier: int
    timeline: int


class Session(psycopg.Connection[Any]):
    """A connection whose waits are noted in `CALLS` and end at a limit."""

    name = "driftline"
    overdue_s = OVERDUE_S
    answer_s: float | None = None
    """Seconds an answer is waited for; then the connection is dropped. None = for ever."""
    backend: int | None = None
    """Number of the server's process, as the server says it."""
    token = ""
    pooled = False
    """A pooler stands between: the server's process is another than the one that greeted."""

    def wait(self, gen: PQGen[RV], *args: Any, **options: Any) -> RV:
        """As inherited, for at most `answer_s`."""
        began = time.monotonic()
        if self.answer_s is not None and len(args) < 2:
            options.setdefault("timeout", self.answer_s)
        with CALLS.waiting(id(self), limit_s=self.overdue_s, name=self.name):
            try:
                return super().wait(gen, *args, **options)
            except psycopg.OperationalError:
                if self.answer_s is None or time.monotonic() - began < self.answer_s:
                    raise
                self.pgconn.finish()  # not `close`: nothing is to be waited for
        raise psycopg.OperationalError(f"no answer within {self.answer_s:.0f} s; the connection was dropped")


def connect(
    address: Mapping[str, str],
    *,
    application_name: str,
    transaction_timeout_s: float = 0,
    answer_s: float | None = None,
    overdue_s: float = OVERDUE_S,
    **options: Any,
) -> Session:
    """A session with all that the promise stands on, set and read back.

    :param address: see `storage.postgres.address.parameters`.
    :param transaction_timeout_s: Postgres ends a transaction open for longer; 0 = never.
    :param answer_s: an answer is waited for no longer; default: a little longer than `transaction_timeout_s`.
    :param options: of `psycopg.connect`.
    :raises TooOld, Unfit: the promise cannot be had; the sentence names the setting, what was found, what to do.
    """
    if answer_s is None and transaction_timeout_s:
        answer_s = transaction_timeout_s + GRACE_S
    raw = _open(address, application_name, **options)
    try:
        raw.name, raw.answer_s, raw.overdue_s = application_name, answer_s, overdue_s
        _refuse_server(raw)
        given = server_settings(raw.info.options)
        _set_up(raw, _wanted(given, round(transaction_timeout_s * 1000)))
        if raw.pooled:
            _set_given(raw, given)
            with closing(_open(address, application_name, **options)) as other:
                _refuse_shared(raw, other)
        raw.autocommit = False
    except BaseException:
        raw.close()
        raise
    return raw


def server_of(raw: Session) -> Server | None:
    """Which server it is; None: this role may not ask (by default everybody may)."""
    try:
        with raw.transaction():
            return Server(*(raw.execute(_SERVER).fetchone() or (0, 0)))
    except psycopg.errors.InsufficientPrivilege:
        return None
    finally:
        raw.rollback()


def check_ours(raw: Session) -> None:
    """At the beginning of each transaction through a pooler: is this the session that `connect` has set up?

    :raises Unfit: the pooler has put another server under it, with settings of its own.
    """
    token, commit, backend = raw.execute(_OURS).fetchone() or (None, None, None)
    if token == raw.token and commit in _DURABLE:
        return
    raw.rollback()  # at once: the pooler's server is needed elsewhere
    raise _shared(
        f"the session was set up on server process {raw.backend}, and its next transaction met {backend}, which "
        f"another client has set up ({_COMMIT} is {commit!r})"
    )


def check(found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """:raises Unfit: a setting is not as it was set; by name."""
    for name, value in wanted.items():
        if found[name] != value:
            raise Unfit(
                f"Postgres has {name} = {found[name]!r} for this session, though it was set to {value!r}",
                hint="lead DRIFTLINE_POSTGRES_URL past whatever changes sessions in between",
            )
    if found[_COMMIT] not in _DURABLE:
        raise Unfit(
            f"Postgres has {_COMMIT} = {found[_COMMIT]!r} for this session, though it was set to 'on': a commit that "
            "was reported could be lost",
            hint="lead DRIFTLINE_POSTGRES_URL past whatever changes sessions in between",
        )


def _open(address: Mapping[str, str], application_name: str, **options: Any) -> Session:
    given = {**_NETWORK, **address, "application_name": application_name, "client_encoding": "UTF8"}
    with CALLS.waiting(id(given), limit_s=OVERDUE_S, name=application_name):
        return Session.connect(make_conninfo("", **given), autocommit=True, **options)


def _refuse_server(raw: Session) -> None:
    version = raw.info.server_version // 10_000
    if version < MINIMUM_SERVER_VERSION:
        raise TooOld(
            f"PostgreSQL {version} answers; Driftline needs {MINIMUM_SERVER_VERSION} or newer",
            hint="give a newer server",
        )
    _refuse_encoding(raw, raw.info.parameter_status("server_encoding") or "UTF8")  # some poolers do not say it


def _refuse_encoding(raw: Session, encoding: str) -> None:
    if encoding != "UTF8":
        raise Unfit(
            f"the database {raw.info.dbname!r} has the encoding {encoding}; ids and texts need UTF8", hint=_UTF8_TODO
        )


def _wanted(given: Mapping[str, str], timeout_ms: int) -> dict[str, str]:
    limits = {name: "0" for name in _LIMITS if name not in given}
    return {**_SETTINGS, **limits, "transaction_timeout": _normal(timeout_ms)}


def _normal(milliseconds: int) -> str:
    """As Postgres shows it: in the largest unit that divides it."""
    for size, unit in ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s")):
        if milliseconds and milliseconds % size == 0:
            return f"{milliseconds // size}{unit}"
    return f"{milliseconds}ms" if milliseconds else "0"


def _set_up(raw: Session, wanted: Mapping[str, str]) -> None:
    raw.token = uuid.uuid4().hex
    wanted = {**wanted, _TOKEN: raw.token}
    words = ["pg_catalog.set_config(%s, %s, false)"] * len(wanted)
    raw.execute(
        f"SELECT {_SET_COMMIT}, {', '.join(words)}".encode(), [word for item in wanted.items() for word in item]
    )
    names = [*wanted, _COMMIT]
    words = [*_WHERE, *(["pg_catalog.current_setting(%s)"] * len(names))]
    row: tuple[Any, ...] = raw.execute(f"SELECT {', '.join(words)}".encode(), names).fetchall()[0]
    raw.backend, encoding = row[:2]
    raw.pooled = raw.backend != raw.info.backend_pid
    found = dict(zip(names, row[2:], strict=True))
    if raw.pooled and found[_TOKEN] != raw.token:
        raise _shared("two statements of one client met two sessions")
    check(found, wanted)
    _refuse_encoding(raw, encoding)


def _set_given(raw: Session, given: Mapping[str, str]) -> None:
    """The address's own `options` again: a pooler may have dropped them. What the promise stands on stays."""
    ours = {name.lower() for name in (*_SETTINGS, _COMMIT, "transaction_timeout", "application_name")}
    for name, value in given.items():
        if name not in ours:
            raw.execute("SELECT pg_catalog.set_config(%s, %s, false)", (name, value))


def _refuse_shared(raw: Session, other: Session) -> None:
    """Whether the pooler gives a server to several clients in turn: then two clients meet on one, or one on two."""
    other.answer_s = CONNECT_S
    try:
        with other.transaction():
            [(taken,)] = other.execute("SELECT pg_catalog.pg_backend_pid()").fetchall()
            token, _, backend = raw.execute(_OURS).fetchone() or (None, None, None)
    except psycopg.OperationalError as error:
        if "statement pooling" in str(error):
            raise _shared(str(error).strip()) from error
        raise Unavailable(
            f"the pooler gave no second server within {CONNECT_S} s ({error}): its pool_size is too small, or its "
            "servers are busy"
        ) from error
    if taken == raw.backend or backend != raw.backend or token != raw.token:
        raise _shared("two clients met on one server process")


def _shared(why: str) -> Unfit:
    return Unfit(
        f"a pooler in transaction or statement mode answers: {why}; settings, locks and the owner of a stream are a "
        "session's",
        hint=_POOLER_TODO,
    )
