"""All settings, with their units. The only place that reads the environment.

Sources, strongest first: environment variables (DRIFTLINE_KAFKA_BOOTSTRAP, DRIFTLINE_INGEST__BATCH_RECORDS),
then the TOML file named by DRIFTLINE_CONFIG or `driftline.toml` in the working directory, then the defaults.
Only the command line builds `Settings`; below it, processes take plain groups and values.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from runtime.lifecycle import ConfigurationError
from runtime.redaction import HIDDEN

PREFIX = "DRIFTLINE_"
CONFIG = "DRIFTLINE_CONFIG"
_NOT_SETTINGS = re.compile(r"DRIFTLINE_(CONFIG$|TEST_)")
_SECRET_OPTION = re.compile(r"password|secret|token|credential|jaas|assertion|\.pem|oauthbearer\.config", re.I)
_SECRET_OF_STORE = re.compile(_SECRET_OPTION.pattern + r"|^key$|account_key|connection_string|passwd|^pass$", re.I)
_SECRET_VALUE = re.compile(
    r"(?P<name>(?:^|[?&;,\s])[\w.-]*(?:passwo?r?d|passphrase|pwd|secret|token|credential|signature|sig|"
    r"(?:api|access|account|client|private|shared)[_-]?key)[\w.-]*\s*=\s*)"
    r"(?:'(?:[^'\\]|\\.)*'|.*?(?=[&;,\s]\s*[\w.-]+\s*=|\s|$))",
    re.I | re.DOTALL,
)

# What Kubernetes gives each container of a namespace for a Service named driftline, driftline-score, ..: told by name
# and by what stands there, so that a misspelt setting is still refused.
_SERVICE = rf"{PREFIX}(?:[A-Z0-9]+_)*"
_PROTOCOL = "TCP|UDP|SCTP"
_SERVICE_LINKS = tuple(
    (re.compile(name), re.compile(value, re.I))
    for name, value in (
        (rf"{_SERVICE}SERVICE_HOST", r"[0-9a-f.:]+"),
        (rf"{_SERVICE}SERVICE_PORT(_[A-Z0-9_]+)?", r"\d{1,5}"),
        (rf"{_SERVICE}PORT(_\d+_({_PROTOCOL}))?", rf"({_PROTOCOL})://\[?[0-9a-f.:]+\]?:\d{{1,5}}"),
        (rf"{_SERVICE}PORT_\d+_({_PROTOCOL})_PROTO", _PROTOCOL),
        (rf"{_SERVICE}PORT_\d+_({_PROTOCOL})_PORT", r"\d{1,5}"),
        (rf"{_SERVICE}PORT_\d+_({_PROTOCOL})_ADDR", r"[0-9a-f.:]+"),
    )
)


_NOT_WHOLE = (
    "a secret must not be empty, nor begin or end with a blank or a line end (an unset variable? a file's last line?)"
)


def _whole(secret: str) -> bool:
    """Whether it is one: an empty token would let everybody in, and a blank is seen by nobody."""
    return bool(secret) and (secret == secret.strip() or secret.lstrip().startswith("-----BEGIN"))


def _whole_secret(given: SecretStr) -> SecretStr:
    if not _whole(given.get_secret_value()):
        raise ValueError(_NOT_WHOLE)
    return given


def _check_whole(given: Mapping[str, Any], secret: re.Pattern[str]) -> None:
    for name, value in given.items():
        if isinstance(value, Mapping):
            _check_whole(value, secret)
        elif isinstance(value, str) and secret.search(name) and not _whole(value):
            raise ValueError(f"{name}: {_NOT_WHOLE}")


def _whole_store(given: dict[str, Any]) -> dict[str, Any]:
    _check_whole(given, _SECRET_OF_STORE)
    return given


Secret = Annotated[SecretStr, AfterValidator(_whole_secret)]
Port = Annotated[
    Annotated[int, Field(ge=0, le=65535)] | None,
    BeforeValidator(lambda given: None if given in ("none", "") else given),
]
OptionValue = Annotated[
    str,
    BeforeValidator(
        # As librdkafka spells it: true and not True.
        lambda given: str(given).lower() if isinstance(given, bool | int | float) else given
    ),
]
Learner = Annotated[str, Field(min_length=1)]
EventTopic = Literal["events.user", "events.payment", "events.relational", "labels", "items"]
SequenceTopic = Literal["events.user", "events.payment", "events.relational"]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
PORT = 'TCP port of /metrics, /healthz and /readyz; 0 = any free one, "none" = no server'


class _Group(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IngestSettings(_Group):
    """`driftline ingest`."""

    group: str = Field(default="driftline-ingest", description="consumer group")
    batch_records: Count = Field(default=60_000, description="records: a batch is committed when it holds so many")
    batch_bytes: Count = Field(default=64 * 2**20, description="bytes of record values: or so much")
    linger_s: Seconds = Field(default=0.1, description="seconds: or when its first record is so old")
    duplicate_window: Count = Field(
        default=1_000_000, description="offsets a partition: how far back a repeated event is recognised"
    )
    session_timeout_s: Annotated[float, Field(ge=1)] = Field(
        default=6.0, description="seconds without a heartbeat after which the group gives the partitions away"
    )
    port: Port = Field(default=9101, description=PORT)


class TrainSettings(_Group):
    """`driftline train`."""

    learner: Learner = Field(default="prompttpp", description="which learner")
    seed: int = Field(default=0, ge=0, description="seed of weights and of every draw")
    step_rows: Count = Field(default=32, description="rows of one learning step")
    step_linger_s: Seconds = Field(default=1.0, description="seconds a step that is not full waits for more rows")
    merge_wait_s: Seconds = Field(
        default=2.0, description="seconds the merge waits for a silent partition before passing it by"
    )
    snapshot_every_s: Seconds = Field(default=60.0, description="seconds between snapshots")
    options: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="options of learners, by their names, as JSON or as tables [train.options.NAME] of the file: "
        '{"prompttpp": {"hidden": 64}}; `driftline learners NAME` lists them',
    )
    tasks: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="options of what asks the learner and the arms beside it, by kind of task, as JSON: "
        '{"ranking": {"negatives": 20}}',
    )
    horizon_days: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default_factory=lambda: {"fraud": 30.0},
        description="days of event time after which silence counts as a negative label, by task, as JSON: "
        '{"fraud": 30}; for tasks not named silence says nothing',
    )
    correction_days: Annotated[float, Field(gt=0)] = Field(
        default=180.0,
        description="days of event time behind which a silence is corrected no more by a label that comes after it; "
        "`maintain` keeps what a correction needs for so long (chargebacks take 120 days)",
    )
    clock_resolution_s: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="seconds: width of the tick of the producers' clocks; gaps are known only up to it"
    )
    threads: Count = Field(default=1, description="torch threads; part of what makes weights repeatable")
    device: str = Field(default="cpu", description="torch device")
    port: Port = Field(default=9102, description=PORT)


class ScoreSettings(_Group):
    """`driftline score`."""

    learner: Learner = Field(default="prompttpp", description="whose snapshots answer")
    host: str = Field(default="127.0.0.1", description="address the HTTP server listens on")
    port: int = Field(
        default=9103,
        ge=0,
        le=65535,
        description="TCP port of the HTTP server, /metrics included; 0 = any free one",
    )
    batch_size: Count = Field(default=64, description="requests answered in one pass")
    batch_wait_s: Seconds = Field(default=0.002, description="seconds a pass waits to fill")
    max_queue: Count = Field(default=4_096, description="requests waiting; more are answered 429 at once")
    token: Secret | None = Field(
        default=None, description="what `Authorization: Bearer` must carry under /v1; none = everybody may ask"
    )
    group: str = Field(default="driftline-score", description="consumer group of `scores.requests`")
    session_timeout_s: Annotated[float, Field(ge=1)] = Field(
        default=10.0, description="seconds without a heartbeat after which the group gives the partitions away"
    )
    kafka_requests: Count = Field(
        default=256, description="requests of `scores.requests` in hand at a time; HTTP shares the queue with them"
    )
    poll_s: Annotated[float, Field(gt=0)] = Field(default=1.0, description="seconds between looks for a newer snapshot")
    threads: Count = Field(default=1, description="torch threads")
    device: str = Field(default="auto", description='torch device; "auto" = cuda where there is one')


class DriftSettings(_Group):
    """`driftline drift`."""

    group: str = Field(
        default="driftline-drift", description="consumer group; its state is kept in topics whose names begin so"
    )
    session_timeout_s: Annotated[float, Field(ge=1)] = Field(
        default=10.0, description="seconds without a heartbeat after which the group gives the partitions away"
    )
    port: Port = Field(default=9104, description=PORT)


class MaintainSettings(_Group):
    """`driftline maintain`."""

    every_s: Annotated[float, Field(gt=0)] = Field(default=15.0, description="seconds between two passes")
    compact_rows: Annotated[int, Field(ge=2)] = Field(
        default=16, description="rows: a user's sequence is compacted when ingest has added so many"
    )
    compact_users: Count = Field(
        default=100_000, description="users compacted in one pass, those with the most rows first"
    )
    keep_snapshots: Count = Field(
        default=10, description="live snapshots kept of each learner's branch; pinned ones and parents stay beside them"
    )
    log_days: dict[EventTopic, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="days of record time behind the newest record that the log keeps, by topic, as JSON: "
        '{"events.user": 90}; topics not named are kept for ever',
    )
    state_days: dict[SequenceTopic, Annotated[float, Field(gt=0)]] = Field(
        default_factory=dict,
        description="days of event time behind the newest event that users' sequences keep, by topic, as JSON; what "
        "the log still holds stays, and so does each user's newest history; topics not named are kept for ever",
    )
    state_events: Annotated[int, Field(ge=256)] = Field(
        default=4096,
        description="events of each user that stay however old; `maintain` trims nothing and ends (exit code 3) if a "
        "learner of the database asks for longer histories",
    )
    port: Port = Field(default=9105, description=PORT)


class ExportSettings(_Group):
    """`driftline export`."""

    target: str | None = Field(
        default=None,
        repr=False,  # a password may stand in it
        description="where bundles go: a path or any fsspec URI; not set = the folder bundles in data_dir",
    )
    options: Annotated[dict[str, Any], AfterValidator(_whole_store)] = Field(
        default_factory=dict,
        repr=False,
        description='options of the fsspec implementation as JSON, e.g. {"endpoint_url": "https://..."}',
    )
    every_s: Annotated[float, Field(ge=1)] = Field(default=300.0, description="seconds between two passes")
    keep: Count = Field(default=5, description="bundles kept of each learner; the one latest.json names stays anyway")
    port: Port = Field(default=9106, description=PORT)


class Settings(BaseSettings):
    """Everything that can be set. Build it with `load`, which explains what is wrong."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    postgres_url: SecretStr | None = Field(default=None, description="postgresql://user:password@host:port/database")
    kafka_bootstrap: str | None = Field(default=None, description="host:port[,host:port...] of a Kafka cluster")
    kafka_options: dict[str, OptionValue] = Field(
        default_factory=dict,
        repr=False,
        description='more librdkafka options as JSON, e.g. {"security.protocol": "SSL"}; those that carry the promise '
        "are refused",
    )
    topic_prefix: str = Field(default="", pattern=r"^[A-Za-z0-9._-]*$", description="stands before each topic's name")
    data_dir: Path = Field(default=Path("driftline-data"), description="folder of files that outlive a process")
    log_format: Literal["json", "console"] = Field(default="json", description="how log lines on stderr look")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="user ids, and texts of errors that may hold them, show at debug only"
    )
    admin_host: str = Field(default="127.0.0.1", description="address /metrics, /healthz and /readyz listen on")
    failpoint: str = Field(default="", description="for tests: kill this process at NAME[:n-th passage]")
    ingest: IngestSettings = IngestSettings()
    train: TrainSettings = TrainSettings()
    score: ScoreSettings = ScoreSettings()
    drift: DriftSettings = DriftSettings()
    maintain: MaintainSettings = MaintainSettings()
    export: ExportSettings = ExportSettings()

    @field_validator("kafka_options")
    @classmethod
    def _whole_kafka(cls, given: dict[str, str]) -> dict[str, str]:
        _check_whole(given, _SECRET_OPTION)
        return given

    @property
    def snapshots(self) -> Path:
        """Folder of snapshot files."""
        return self.data_dir / "snapshots"

    @property
    def bundles(self) -> str:
        """Where bundles go: a path or a URI."""
        return self.export.target or str((self.data_dir / "bundles").absolute())

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over what is passed (the file's content)."""
        return env_settings, init_settings

    def redacted(self) -> dict[str, Any]:
        """As plain values, fit for a screen: secrets hidden, the password inside a URL too."""
        shown = self.model_dump(mode="json")
        if self.postgres_url is not None:
            shown["postgres_url"] = hide_password(self.postgres_url.get_secret_value())
        shown["kafka_options"] = {
            name: HIDDEN if _SECRET_OPTION.search(name) else hide_password(value)
            for name, value in self.kafka_options.items()
        }
        shown["export"]["options"] = dict.fromkeys(self.export.options, HIDDEN)
        if self.export.target is not None:
            shown["export"]["target"] = hide_password(self.export.target)
        return shown

    def secrets(self) -> frozenset[str]:
        """Each value that no log line may hold: of these settings, and of variables that libraries read themselves."""
        found = {value for name, value in self.kafka_options.items() if _SECRET_OPTION.search(name)}
        found |= {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
        found |= set(_texts(self.export.options))
        for url in (self.postgres_url and self.postgres_url.get_secret_value(), self.export.target):
            found |= _secrets_of(url or "")
        if self.score.token is not None:
            found.add(self.score.token.get_secret_value())
        return frozenset(found)


def load(config: Path | None = None) -> Settings:
    """Settings from the environment and the file (`config`, else DRIFTLINE_CONFIG, else ./driftline.toml).

    :raises Usage: an unknown or unfit setting, by its name; an unreadable file. Values are not repeated:
        they may be secret.
    """
    _refuse_unknown(os.environ)
    file, values = _read_file(config)
    try:
        return Settings(**values)
    except ValidationError as error:
        problems = [
            f"{_name(problem['loc'])}: "
            + (
                "no such setting"
                if problem["type"] == "extra_forbidden"
                else problem["msg"].removeprefix("Value error, ")
            )
            for problem in error.errors(include_input=False)
        ]
    except SettingsError as error:
        problems = [f"{error}: it must be JSON"]
    raise ConfigurationError(
        "unfit settings\n  " + "\n  ".join(problems),
        where=f"environment and {file}" if file else "environment",
        hint="correct or unset them",
    )


def hide_password(url: str) -> str:
    """A URL or `name=value ...` without its secrets, wherever they stand (`user:password@`, `?password=`, `?secret=`).

    A password may hold an unencoded @, /, ? or #: everything up to the last @ counts as one.
    """
    url = re.sub(r"(://[^:@/]*)[^:]*:.*@", rf"\1:{HIDDEN}@", url, flags=re.DOTALL)
    return _SECRET_VALUE.sub(rf"\g<name>{HIDDEN}", url)


_SECRET_VARIABLE = re.compile(r"(?i)^(?!DRIFTLINE_).*(password|secret|token|credential|account_key|connection_string)")
_PLAIN_OPTIONS = frozenset(
    {"endpoint_url", "region_name", "addressing_style", "signature_version", "profile", "protocol", "host", "project"}
)
"""Options of fsspec implementations that are known to be no secret; any other may be one."""


def _texts(options: Mapping[str, Any]) -> Iterator[str]:
    """The texts of options that may be secret, wherever they stand; of one that is a URL its secrets."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _texts(value)
        elif isinstance(value, list):
            yield from _texts({f"{name}[{n}]": one for n, one in enumerate(value)})
        elif isinstance(value, str):
            yield from _secrets_of(value) if name in _PLAIN_OPTIONS or "://" in value else (value,)


def _secrets_of(url: str) -> set[str]:
    """The password of a URL, as it is and decoded, and what its query gives to a name that sounds like a secret."""
    found = set(re.findall(r"://[^/@:]*:(.*)@", url))
    for name, value in re.findall(r"[?&]([^=&]+)=([^&\s]*)", url):
        if _SECRET_OPTION.search(name) or name.lower() in ("sig", "signature", "key"):
            found.add(value)
    return found | {unquote(value) for value in found}


def _refuse_unknown(environment: Mapping[str, str]) -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    given = [name for name in environment if name.upper().startswith(PREFIX) and not _NOT_SETTINGS.match(name)]
    unknown = sorted(
        name
        for name in given
        if name.upper().split("__")[0] not in known and not _is_service_link(name, environment[name])
    )
    if unknown:
        raise ConfigurationError(
            f"unknown setting{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}",
            where="environment",
            hint=f"correct or unset it; known: {', '.join(sorted(known))} (in a group: {PREFIX}INGEST__NAME)",
        )


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes set it for a Service, and nobody for Driftline."""
    return any(named.fullmatch(name) and valued.fullmatch(value) for named, valued in _SERVICE_LINKS)


def _read_file(config: Path | None) -> tuple[Path | None, dict[str, Any]]:
    named = config or (Path(os.environ[CONFIG]) if os.environ.get(CONFIG) else None)
    file = named or Path("driftline.toml")
    if named is None and not file.exists():
        return None, {}
    try:
        return file, tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigurationError(
            f"unreadable: {error}", where=str(file), hint=f"correct the file or {CONFIG}"
        ) from None


def _name(location: tuple[int | str, ...]) -> str:
    return PREFIX + "__".join(str(part).upper() for part in location)
