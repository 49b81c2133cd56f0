"""Connections to Postgres, and what its errors mean for the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

MINIMUM_SERVER_VERSION = 17
"""`transaction_timeout` (protocol, rule 1) came with PostgreSQL 17."""


class Unavailable(ConnectionError):
    """Postgres is out of reach, or the outcome of a commit is unknown: drop memory, come again later."""


class TooOld(RuntimeError):
    """The server is older than Driftline's promise needs."""


def open_engine(url: str, *, application_name: str, transaction_timeout_s: float = 0, pooled: bool = False) -> Engine:
    """An engine whose sessions commit durably.

    :param transaction_timeout_s: Postgres ends a transaction open for longer; 0 = never.
    :param pooled: keep connections between uses (for a process that serves many callers).
    """
    timeout_ms = int(transaction_timeout_s * 1000)
    options = {
        "application_name": application_name,
        # Set here and not left to the server: with it off, a commit we reported may be lost.
        "options": f"-c synchronous_commit=on -c transaction_timeout={timeout_ms} -c timezone=UTC",
        "connect_timeout": 5,
    }
    parsed = make_url(url).set(drivername="postgresql+psycopg")
    if pooled:
        return create_engine(parsed, connect_args=options, pool_pre_ping=True, pool_size=4, hide_parameters=True)
    return create_engine(parsed, connect_args=options, poolclass=NullPool, hide_parameters=True)


def check_server(connection: Connection) -> None:
    """:raises TooOld: the server is older than MINIMUM_SERVER_VERSION."""
    version = connection.scalar(text("SELECT current_setting('server_version_num')::int / 10000"))
    if version < MINIMUM_SERVER_VERSION:
        raise TooOld(f"PostgreSQL {version} answers; Driftline needs {MINIMUM_SERVER_VERSION} or newer")


def driver(connection: Connection) -> psycopg.Connection:
    """The psycopg connection below SQLAlchemy's, for COPY and for results in binary."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turns the driver's errors that mean "gone, or unsure" into `Unavailable`; the others pass.

    :raises Unavailable: the connection broke, was terminated or timed out, or the server is starting,
        stopping, full or without memory: nothing the statement itself could help.
    """
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(error, DBAPIError) and error.connection_invalidated:
            raise Unavailable(_sentence(cause)) from error
        if isinstance(cause, psycopg.Error) and _is_outage(cause):
            raise Unavailable(_sentence(cause)) from error
        raise


# Classes of SQLSTATE that time, an operator or a retry mends: 08 connection, 25P04 transaction timeout,
# 40 rolled back (serialization, deadlock), 53 out of resources, 55P03 lock timeout, 57 operator.
_OUTAGE = ("08", "25P04", "40", "53", "55P03", "57")


def _is_outage(error: psycopg.Error) -> bool:
    state = error.sqlstate
    if state is None:  # the client noticed first: no connection, or it broke
        return isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    return state.startswith(_OUTAGE)


def _sentence(error: BaseException | None) -> str:
    """The server's first sentence; not its DETAIL and CONTEXT, which quote rows."""
    said = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    return " ".join((said or str(error)).split())[:300] or type(error).__name__
