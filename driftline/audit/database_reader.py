"""The audit's own look at Postgres: one transaction that sees one moment, read under settings of its own.

Apart from the address it shares nothing with the sessions that wrote: what URL, role, database or pooler say of
DateStyle, encoding, schemas or time limits counts for neither. The settings are the transaction's, so even a
pooler that changes servers between transactions changes nothing.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.conninfo import make_conninfo

from runtime.lifecycle import OperatorActionRequired
from storage.postgres.address import parameters

_SETTINGS = {
    "client_encoding": "UTF8",
    "datestyle": "ISO, MDY",
    "intervalstyle": "postgres",
    "timezone": "UTC",
    "search_path": "public",
    "extra_float_digits": "1",
    "bytea_output": "hex",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",  # it waits while Kafka is read
    "transaction_timeout": "0",
}


def one_moment(url: str) -> psycopg.Connection[tuple[Any, ...]]:
    """A connection in the transaction of an audit, REPEATABLE READ READ ONLY.

    :raises Refused: the database is not UTF8, or a setting cannot be had: what it holds could be misread.
    """
    given = {**parameters(url), "client_encoding": "UTF8", "application_name": "driftline-verify"}
    connection = psycopg.connect(make_conninfo("", **{"connect_timeout": "5", **given}), prepare_threshold=None)
    connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    connection.read_only = True
    try:
        _settle(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _settle(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    for name, value in _SETTINGS.items():
        connection.execute("SELECT set_config(%s, %s, true)", (name, value))
    for name, value in {**_SETTINGS, "server_encoding": "UTF8"}.items():
        [(found,)] = connection.execute("SELECT current_setting(%s)", (name,)).fetchall()
        if found != value:
            raise OperatorActionRequired(
                f"it has {name} = {found!r}, where only {value!r} is read rightly",
                where="Postgres",
                hint="keep the tables in a UTF8 database, and lead DRIFTLINE_POSTGRES_URL past what changes sessions",
            )
