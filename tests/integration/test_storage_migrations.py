"""The tables: reached by migrations, left by them, and those of `storage.schema`."""

from __future__ import annotations

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from storage import migrate
from storage.engine import open_engine
from storage.schema import metadata
from tests.integration.feeding import event, query
from tests.integration.owning import MakeOwner

TABLES = "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v', 'S')"


def test_up_down_and_up_again(database: str) -> None:
    before = set(query(database, TABLES))
    [key] = query(database, "SELECT suppression_key FROM installation")
    assert len(key[0]) == 32
    migrate.downgrade(database, "base")
    assert set(query(database, TABLES)) == {("alembic_version",)}
    assert migrate.upgrade(database) == migrate.head()
    assert set(query(database, TABLES)) == before
    assert query(database, "SELECT suppression_key FROM installation") != [key]


def test_events_outlive_a_way_down_and_up(database: str, owner: MakeOwner) -> None:
    owner().write_events(event("e1"), event("e2", "bob"))
    everything = "SELECT * FROM user_event ORDER BY user_id"
    before = query(database, everything)
    migrate.downgrade(database, "0001")
    assert query(database, everything) == before
    migrate.upgrade(database)
    assert query(database, everything) == before
    assert len(before) == 2


def test_migrating_again_changes_nothing(database: str) -> None:
    installation = query(database, "SELECT * FROM installation")
    migrate.upgrade(database)
    assert query(database, "SELECT * FROM installation") == installation


def test_the_migrations_lead_to_the_schema_of_the_code(database: str) -> None:
    engine = open_engine(database, application_name="test")
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
        assert migrate.current(connection) == migrate.head()


def test_a_database_never_migrated_says_so(database: str) -> None:
    migrate.downgrade(database, "base")
    engine = open_engine(database, application_name="test")
    with engine.connect() as connection:
        assert migrate.current(connection) is None
