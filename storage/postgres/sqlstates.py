"""What each error of Postgres means for a process: every class of SQLSTATE, decided once.

OUTAGE   time, an operator or a retry mends it: drop memory, wait, try again, not ready meanwhile
DENIED   an outage for whoever runs, a wrong call for a start: the server lets this client not in
UNFIT    going on could lose or misread something, or can never work: stop, exit code 3, a person decides
BUG      a statement of ours was wrong, or the error belongs to the caller (a constraint): it passes as it is
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

import psycopg

from storage.postgres.faults import Denied, Unavailable, Unfit


class Verdict(Enum):
    """See the module."""

    OUTAGE = "outage"
    DENIED = "denied"
    UNFIT = "unfit"
    BUG = "bug"


_O, _D, _U, _B = Verdict.OUTAGE, Verdict.DENIED, Verdict.UNFIT, Verdict.BUG

VERDICTS: dict[str, tuple[Verdict, str]] = {
    "00": (_B, "success is no error"),
    "01": (_B, "a warning is no error"),
    "02": (_B, "no data: a statement of ours"),
    "03": (_B, "SQL statement not yet complete: a statement of ours"),
    "08": (_O, "the connection broke; PgBouncer gives 08P01 to all its own errors, each mended by a new connection"),
    "09": (_B, "a trigger: none is ours"),
    "0A": (_U, "this server lacks what Driftline needs (a relative of Postgres, an extension in the way)"),
    "0B": (_B, "invalid transaction initiation: a statement of ours"),
    "0F": (_B, "locators: a statement of ours"),
    "0L": (_B, "grantor: a statement of ours"),
    "0P": (_B, "SET ROLE: none is ours"),
    "0Z": (_B, "diagnostics: a function, none is ours"),
    "10": (_B, "XQuery: none is ours"),
    "20": (_B, "CASE: a function, none is ours"),
    "21": (_B, "cardinality: a statement of ours"),
    "22": (_B, "data that Postgres cannot hold: the codecs refuse it before"),
    "23": (_B, "a constraint: the caller knows what it means"),
    "24": (_B, "cursor state: a statement of ours"),
    "25": (_B, "transaction state: a statement of ours"),
    "25006": (_O, "read-only: a standby, a failover under way, or somebody has set it so"),
    "25P03": (_O, "idle_in_transaction_session_timeout: this process stood still, and the transaction is gone"),
    "25P04": (_O, "transaction_timeout: this process or the server stood still, and the transaction is gone"),
    "26": (_U, "a prepared statement is gone: a pooler changed the session in between"),
    "27": (_B, "triggered data change: none is ours"),
    "28": (_D, "credentials or pg_hba.conf"),
    "2B": (_B, "dependent privileges: a statement of ours"),
    "2D": (_B, "transaction termination: a statement of ours"),
    "2F": (_B, "a function, none is ours"),
    "34": (_B, "cursor name: a statement of ours"),
    "38": (_B, "external routine: none is ours"),
    "39": (_B, "external routine: none is ours"),
    "3B": (_B, "savepoint: a statement of ours"),
    "3D": (_D, "no such database (it may be on its way back: a restore)"),
    "3F": (_U, "schema public is not there, or this role may not use it"),
    "40": (_O, "rolled back: serialization, deadlock, or an unknown outcome"),
    "42": (_B, "a statement of ours"),
    "42501": (_U, "this role may not do it"),
    "42P01": (_U, "a table is not there, or this role may not use its schema"),
    "42P05": (_U, "a prepared statement of somebody else: a pooler changed the session in between"),
    "42703": (_U, "a column is not there: the tables are of another version"),
    "44": (_B, "WITH CHECK OPTION: none is ours"),
    "53": (_O, "disk full, memory, connections: an operator mends it, and nothing was half done"),
    "54": (_B, "too complex or too large: a statement of ours"),
    "55": (_O, "an object in use or not ready: a lock, a recovery, an index being rebuilt"),
    "55P02": (_U, "a setting that this session must have cannot be set"),
    "55P04": (_B, "an enum value: none is ours"),
    "57": (_O, "an operator: cancelled, shutting down, starting, database dropped"),
    "58": (_O, "the operating system below Postgres: I/O errors may pass, and nothing was half done"),
    "58P01": (_U, "a file of the database is gone"),
    "58P02": (_U, "a file of the database stands where none should"),
    "72": (_O, "snapshot too old: read again"),
    "F0": (_O, "the server's configuration file: an operator"),
    "HV": (_B, "foreign data: none is ours"),
    "P0": (_B, "PL/pgSQL: a trigger of somebody else"),
    "XX": (_U, "the server found itself in a state it does not know: damage, until somebody has looked"),
}
"""SQLSTATE, or its first letters -> verdict and reason; the longest that fits counts."""

# What a server or a pooler says when it lets a client not in. During connection libpq gives no SQLSTATE, so their
# sentences are all there is; in another language it is an outage, with the server's own words.
_DENIALS = (
    "authentication failed",
    "authentication required",
    "no password supplied",
    "pg_hba.conf",
    'role "',
    "is not permitted to log in",
    '" does not exist',
    "no such database",
    "no such user",
    "permission denied for database",
    "is not currently accepting connections",
    "unsupported startup parameter",
    "certificate verify failed",
    "does not support ssl",
    "does not match host name",
    "root certificate file",
    "unrecognized configuration parameter",
    "invalid connection option",
)
_PASSING = ("too many connections", "starting up", "shutting down", "recovery")
_STATEMENT_POOLING = "statement pooling"

_TODO = {
    "0A": "use PostgreSQL itself, 17 or newer",
    "26": "let the pooler give each client a server of its own (PgBouncer: pool_mode = session), or leave it out",
    "3F": "CREATE SCHEMA public, or grant the role USAGE on it (docs/operations.md, Roles)",
    "42501": "let the tables' owner grant what is missing (docs/operations.md, Roles): GRANT USAGE, CREATE ON SCHEMA "
    "public for `migrate`; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public and USAGE ON ALL "
    "SEQUENCES for the processes",
    "42P05": "let the pooler give each client a server of its own (PgBouncer: pool_mode = session), or leave it out",
    "42P01": "`driftline migrate`; or is it the right database, and may the role use schema public?",
    "42703": "`driftline migrate`, with the version that runs",
    "55P02": "take it out of the URL's options, or let the role set it",
    "58": "look at the server's log and disk; restore from a backup if files are gone",
    "XX": "look at the server's log and disk; restore from a backup if it is damaged; then start again",
}


def verdict(state: str) -> tuple[Verdict, str]:
    """What a SQLSTATE means, and why. A class that is not in the table (of a later Postgres, an extension) is a BUG."""
    fits = _longest(state, VERDICTS)
    return (_B, "a class that Postgres 18 does not have") if fits is None else VERDICTS[fits]


def fault_of(error: psycopg.Error, *, broken: bool = False) -> Unavailable | Unfit | None:
    """What a driver's error is for the caller; None = let it pass as it is.

    :param broken: the connection is gone, whatever the error says of itself.
    """
    state, said = error.sqlstate, sentence(error)
    if state is None:
        return _of_the_client(error, said, broken=broken)
    found, why = verdict(state)
    if state[:2] == "0A" and error.diag.source_function == "RevalidateCachedQuery":
        found, why = Verdict.OUTAGE, "tables were migrated under a session; a new one knows them"
    if found is Verdict.UNFIT:
        todo = _TODO[_longest(state, _TODO) or "XX"]
        return Unfit(f"Postgres refuses: {said} ({why}; SQLSTATE {state})", hint=todo)
    if found is Verdict.DENIED:
        return Denied(f"{said} ({why})")
    if found is Verdict.OUTAGE or broken:
        return Unavailable(f"{said} ({why})" if state == "25006" or state[:2] in ("53", "58") else said)
    return None


def sentence(error: BaseException | None) -> str:
    """The server's first sentence, at most 300 characters; not its DETAIL and CONTEXT, which quote rows."""
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((said or str(error)).split())[:300] or type(error).__name__


def _of_the_client(error: psycopg.Error, said: str, *, broken: bool) -> Unavailable | Unfit | None:
    """The client noticed first: no connection, it broke, or a pooler's farewell came instead of an answer."""
    if not broken and not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError | psycopg.InternalError):
        return None
    lower = said.lower()
    if _STATEMENT_POOLING in lower:
        return Unfit(f"a pooler in statement mode answers: {said}", hint=_TODO["26"])
    if any(word in lower for word in _DENIALS) and not any(word in lower for word in _PASSING):
        return Denied(said)
    return Unavailable(said)


def _longest(state: str, table: Mapping[str, object]) -> str | None:
    return next((state[:length] for length in (5, 2) if state[:length] in table), None)
