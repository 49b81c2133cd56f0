"""Brings a database to this version's tables."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from storage.engine import mapped_errors, open_engine

_ELSEWHERE = text("""
    SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relname IN ('alembic_version', 'stream_offset') AND c.relkind = 'r' AND n.nspname <> 'public'
    GROUP BY n.nspname HAVING count(*) = 2 ORDER BY n.nspname LIMIT 1
""")
_LOCK = 0x64726966746C  # "driftl": processes that start together migrate one after another


def upgrade(url: str) -> str:
    """Applies what is missing; returns the revision reached.

    :raises Unavailable: Postgres is out of reach.
    :raises Unfit: its version, its encoding or this role's rights are not enough.
    """
    engine = open_engine(url, application_name="driftline-migrate")
    with mapped_errors(), engine.connect() as connection:
        connection.execute(text("SELECT pg_advisory_lock(:lock)"), {"lock": _LOCK})
        connection.commit()
        try:
            command.upgrade(_config(connection), "head")
            connection.commit()
        finally:
            connection.rollback()  # else the unlocking fails in a failed transaction, and hides what failed
            connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": _LOCK})
            connection.commit()
    return head()


def downgrade(url: str, revision: str) -> None:
    """Back to `revision` ("base" = nothing left)."""
    engine = open_engine(url, application_name="driftline-migrate")
    with mapped_errors(), engine.connect() as connection:
        command.downgrade(_config(connection), revision)
        connection.commit()


def head() -> str:
    """The revision this version of the code needs."""
    revision = ScriptDirectory.from_config(_config(None)).get_current_head()
    assert revision is not None
    return revision


def current(connection: Connection) -> str | None:
    """The revision the database is at; None = never migrated."""
    return MigrationContext.configure(connection).get_current_revision()


def elsewhere(connection: Connection) -> str | None:
    """A schema other than public in which tables of ours stand; None = there is none."""
    found: str | None = connection.scalar(_ELSEWHERE)
    return found


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
