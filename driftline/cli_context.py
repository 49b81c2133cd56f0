"""What every verb starts from: the settings, completed by what a running `driftline up` says."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import Connection, Engine

from driftline.local import running_stack
from runtime import kafka
from runtime import settings as all_settings
from runtime.kafka import KafkaConfig
from runtime.lifecycle import ConfigurationError
from runtime.redaction import Secrets
from runtime.settings import Settings
from storage import migrate
from storage.engine import mapped_errors, open_engine

logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each connection
_UP = "`driftline up` in another terminal starts one here (in the same folder; else --stack DIR/stack.json)"


@dataclass
class Session:
    """One call of the command line."""

    config: Path | None = None
    """Settings file given by hand."""
    stack_file: Path | None = None
    """File of a running `up` given by hand; what it says then wins over the settings."""

    @classmethod
    def of(cls, settings: Settings) -> Session:
        """A call with these settings."""
        made = cls()
        made.settings = settings
        return made

    @cached_property
    def settings(self) -> Settings:
        """The settings. Addresses they lack come from a running `up`.

        :raises Usage: see `runtime.settings.load`; or no `up` runs where `--stack` says.
        """
        given = all_settings.load(self.config)
        running = running_stack.find(self.stack_file or given.data_dir / running_stack.NAME)
        if running is None:
            if self.stack_file is not None:
                raise ConfigurationError(
                    "no `driftline up` runs there", where=str(self.stack_file), hint="start it, or drop --stack"
                )
            return given
        if self.stack_file is not None:
            return _completed(given.model_copy(update={"postgres_url": None, "kafka_bootstrap": None}), running)
        return _completed(given, running)

    @property
    def postgres_url(self) -> str:
        """:raises Usage: there is none."""
        url = self.settings.postgres_url
        if url is None:
            raise ConfigurationError(
                "no Postgres is given", where="setting DRIFTLINE_POSTGRES_URL", hint=f"set it; or, {_UP}"
            )
        return url.get_secret_value()

    @cached_property
    def kafka(self) -> KafkaConfig:
        """How to reach Kafka, looked at before anything runs.

        :raises Usage: there is none; or an address or an option that cannot be (see `kafka.check`).
        """
        settings = self.settings
        if settings.kafka_bootstrap is None:
            raise ConfigurationError(
                "no Kafka is given", where="setting DRIFTLINE_KAFKA_BOOTSTRAP", hint=f"set it; or, {_UP}"
            )
        try:
            return kafka.check(KafkaConfig(settings.kafka_bootstrap, settings.kafka_options, settings.topic_prefix))
        except ConfigurationError as error:  # the client's words may repeat a value
            raise ConfigurationError(
                Secrets(settings.secrets()).hide(error.what), where=error.where, hint=error.hint
            ) from None

    def check_tables(self) -> None:
        """:raises Usage: the database is not at this version's tables. :raises Unavailable: it is away."""
        engine = open_engine(self.postgres_url, application_name="driftline")
        with mapped_errors(), engine.connect() as connection:
            _check_tables(connection, self.settings)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction in which all statements see the same moment, and none writes."""
        with mapped_errors(), self._engine().connect() as connection:
            _check_tables(connection, self.settings)
            connection = connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction, committed with the block."""
        with mapped_errors(), self._engine().connect() as connection:
            _check_tables(connection, self.settings)
            with connection.begin():
                yield connection

    def _engine(self) -> Engine:
        return open_engine(self.postgres_url, application_name="driftline-cli")


def _completed(given: Settings, running: running_stack.Stack) -> Settings:
    """A stack counts only where it is not contradicted: its database goes with its broker."""
    update: dict[str, object] = {"data_dir": Path(running.data_dir)}
    if given.postgres_url is None:
        update["postgres_url"] = SecretStr(running.postgres_url)
    elif given.postgres_url.get_secret_value() != running.postgres_url:
        return given
    if given.kafka_bootstrap is None:
        update["kafka_bootstrap"] = running.kafka_bootstrap
    elif given.kafka_bootstrap != running.kafka_bootstrap:
        return given
    return given.model_copy(update=update)


def _check_tables(connection: Connection, settings: Settings) -> None:
    current, wanted = migrate.current(connection), migrate.head()
    elsewhere = migrate.elsewhere(connection) if current is None else None
    connection.rollback()
    if current == wanted:
        return
    assert settings.postgres_url is not None
    where = all_settings.hide_password(settings.postgres_url.get_secret_value())
    if elsewhere is not None:
        raise ConfigurationError(
            f"the tables stand in schema {elsewhere!r}, where a search_path of the role or the database has led them",
            where=where,
            hint=f'move each to public: ALTER TABLE "{elsewhere}".... SET SCHEMA public (views, sequences too)',
        )
    raise ConfigurationError(
        "the database has no tables yet" if current is None else f"the tables are at revision {current}, not {wanted}",
        where=where,
        hint="`driftline migrate`",
    )
