"""Connections to Postgres, and what its errors mean for the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from storage.postgres import sessions
from storage.postgres.address import parameters
from storage.postgres.faults import BadAddress, Denied, TooOld, Unavailable, Unfit
from storage.postgres.sessions import OVERDUE_S, Server, Session
from storage.postgres.sqlstates import fault_of

__all__ = [
    "BadAddress", "Denied", "SameServer", "TooOld", "Unavailable", "Unfit", "driver", "mapped_errors", "open_engine",
]  # fmt: skip


class SameServer:
    """Holds connections to one Postgres: what one of them knows, the others must not write to another server.

    After a failover, or when a backup was restored, system identifier or timeline differ (protocol, rule 1).
    """

    def __init__(self) -> None:
        self._known: Server | None = None

    def check(self, found: Server | None) -> None:
        """:raises Unavailable: another server than the first one answers: drop memory and begin anew."""
        self._known = self._known or found
        if found is not None and found != self._known:
            raise Unavailable(f"another Postgres answers ({found}, before {self._known}): a failover, or a restore")


def open_engine(
    url: str,
    *,
    application_name: str,
    transaction_timeout_s: float = 0,
    pooled: bool = False,
    answer_s: float | None = None,
    overdue_s: float = OVERDUE_S,
    same: SameServer | None = None,
) -> Engine:
    """An engine whose sessions commit durably and read what was written; see `storage.postgres.sessions`.

    :param transaction_timeout_s: Postgres ends a transaction open for longer; 0 = never.
    :param pooled: keep connections between uses (for a process that serves many callers).
    :param answer_s: seconds an answer is waited for; default: a little longer than `transaction_timeout_s`.
    :param overdue_s: seconds without an answer after which the process is not ready.
    :param same: connections to another server than the first are refused.
    :raises BadAddress: the URL cannot be read.
    """
    address = parameters(url)
    if pooled:
        engine = create_engine("postgresql+psycopg://", pool_pre_ping=True, pool_size=4, hide_parameters=True)
    else:
        engine = create_engine("postgresql+psycopg://", poolclass=NullPool, hide_parameters=True)

    def connect(dialect: Any, record: Any, given: Any, options: dict[str, Any]) -> Session:
        made = sessions.connect(
            address,
            application_name=application_name,
            transaction_timeout_s=transaction_timeout_s,
            answer_s=answer_s,
            overdue_s=overdue_s,
            **options,
        )
        if same is not None:
            try:
                same.check(sessions.server_of(made))
            except BaseException:
                made.close()
                raise
        return made

    event.listen(engine, "do_connect", connect)
    event.listen(engine, "begin", _check_pooler)
    event.listen(engine, "handle_error", _leave_read_only)
    return engine


def _check_pooler(connection: Connection) -> None:
    raw = driver(connection)
    if isinstance(raw, Session) and raw.pooled:
        sessions.check_ours(raw)


def _leave_read_only(context: ExceptionContext) -> None:
    """A session of a server that became read-only is of no more use: the next one may meet the new primary."""
    if isinstance(context.original_exception, psycopg.errors.ReadOnlySqlTransaction):
        context.is_disconnect = True


def driver(connection: Connection) -> psycopg.Connection:
    """The psycopg connection below SQLAlchemy's, for COPY and for results in binary."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    return raw


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turns the driver's errors into what they mean for the caller (`storage.postgres.sqlstates`); the others pass.

    :raises Unavailable: the connection broke, was terminated or timed out, or the server is starting, stopping,
        read-only, full or without memory: nothing the statement itself could help.
    :raises Unfit: rights, tables or the server's own state forbid to go on.
    """
    try:
        yield
    except (DBAPIError, psycopg.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        broken = isinstance(error, DBAPIError) and error.connection_invalidated
        if not isinstance(cause, psycopg.Error) or (fault := fault_of(cause, broken=broken)) is None:
            raise
        raise fault from error
