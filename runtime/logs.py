"""The log: one line an event on stderr, of 8,000 bytes at most, without people and without secrets.

What leaves the process goes through one place, whoever logs: our own calls, libraries, warnings, and errors that
nobody caught (in the main thread, another one, a destructor, an event loop). Local variables are never in it. At level
`debug` ids of people and the texts of all errors show; secrets do not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import re
import secrets
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence, Sized
from contextlib import suppress
from functools import partial
from itertools import islice
from numbers import Number
from types import TracebackType
from typing import Any, Final, Literal, TextIO

import structlog

from runtime.redaction import Secrets, escaped, masked, names_person, said
from runtime.traces import flat, trace

LINE_BYTES: Final = 8_000
"""Of a line, its end included; `up` puts a name before it, and that is still below 8 KiB."""
PERSONAL: Final = frozenset(
    {"user", "user_id", "user_ids", "actor_id", "counterpart_id", "payee_id", "subject_id", "request_id"}
    | {"key", "origin", "value", "body"}
)
"""Fields that name people, or may: a producer or a client chose what stands there."""
_OWN: Final = frozenset({"timestamp", "level", "logger"})
_CHARACTERS: Final = (4_000, 1_000, 200, 50)
"""Of a text; the first that makes the line short enough."""
_MEMBERS, _DEPTH = 40, 5
_SALT = secrets.token_bytes(16)


def configure_logging(
    format: Literal["json", "console"] = "json",
    level: str = "info",
    *,
    process: str = "",
    hidden: Iterable[str] = (),
) -> None:
    """Sends structlog, the standard library's logging, warnings and uncaught errors to stderr, times in UTC.

    Ids of people (fields `user_id`, `key`, ...) are replaced, unless `level` is "debug", by a digest that
    is stable within one process only.

    :param hidden: secrets, which no line may hold.
    """
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    line = _Line(format, process=process, people=level == "debug", secrets=Secrets(hidden))
    handler = _Handler(sys.stderr, people=level == "debug")
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, line],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def is_set_up() -> bool:
    """Whether this process writes a log."""
    return any(isinstance(handler, _Handler) for handler in logging.getLogger().handlers)


def catch_the_uncaught() -> None:
    """Errors that nobody caught, and warnings, become lines of the log. For a process of its own."""
    log = structlog.get_logger("uncaught")

    def in_main(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, where)
        else:
            log.critical("process.uncaught", exc_info=(kind, error, where))

    def in_thread(given: threading.ExceptHookArgs) -> None:
        if given.exc_value is not None and not isinstance(given.exc_value, SystemExit):
            log.critical("thread.uncaught", thread=given.thread and given.thread.name, exc_info=given.exc_value)

    def in_destructor(given: sys.UnraisableHookArgs) -> None:
        log.error("error.ignored", of=type(given.object).__name__, exc_info=given.exc_value)

    def warn(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        # Without the line of source that Python shows besides.
        log.warning("warning", kind=category.__name__, where=f"{filename}:{lineno}", said=masked(str(message)))

    sys.excepthook, threading.excepthook, sys.unraisablehook = in_main, in_thread, in_destructor
    warnings.showwarning = warn


class _Handler(logging.StreamHandler[TextIO]):
    """Takes errors and objects out of what libraries log before it becomes text."""

    def __init__(self, stream: TextIO, *, people: bool) -> None:
        super().__init__(stream)
        self._people = people

    def format(self, record: logging.LogRecord) -> str:
        """One line, whoever logged."""
        ours = isinstance(record.msg, dict)
        return super().format(record if ours or self._people else _of_library(record))

    def handleError(self, record: logging.LogRecord) -> None:
        """A line that cannot be made is no reason to print what it was to be made of."""
        with suppress(OSError, ValueError):  # nobody reads, or the stream is closed
            self.stream.write(json.dumps({"event": "log.failed", "level": "error", "logger": record.name}) + "\n")


def _of_library(record: logging.LogRecord) -> logging.LogRecord:
    record = copy.copy(record)
    given = record.args
    if isinstance(given, Mapping) and "%(" not in str(record.msg):
        record.args = (_shown(given),)
    elif isinstance(given, Mapping):
        record.args = {name: _shown(value) for name, value in given.items()}
    elif given:
        record.args = tuple(_shown(value) for value in given)
    if not isinstance(record.msg, str):
        record.msg = str(_shown(record.msg))
    if record.name == "asyncio":  # what follows is the repr of tasks and callbacks, with their arguments
        record.msg, record.args = _ASYNCIO.match(record.getMessage())[0].strip(), ()  # type: ignore[index]
    return record


_ASYNCIO: Final = re.compile(r"Exception in callback|[^<\n]*")


def _shown(value: object) -> object:
    """An argument of a library's log call."""
    if isinstance(value, BaseException):
        return said(value)
    return value if value is None or isinstance(value, str | Number) else f"<{type(value).__name__}>"


class _Line:
    """Makes an event a line."""

    def __init__(self, format: Literal["json", "console"], *, process: str, people: bool, secrets: Secrets) -> None:
        self._json = format == "json"
        self._process = process
        self._people = people
        self._secrets = secrets
        self._console = structlog.dev.ConsoleRenderer(colors=not self._json and sys.stderr.isatty())

    def __call__(self, logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        """The line, without its end."""
        if self._process:
            event["process"] = self._process  # whatever the thread
        error = _error(event.pop("exc_info", None))
        if error is not None:
            event["exception"] = trace(error, people=self._people)
        names = [] if error is None or self._people else sorted(names_person(error), key=len, reverse=True)
        for most in _CHARACTERS:
            shown = {
                name: self._plain(name, value, most, () if name == "exception" else names)  # it is clean already
                for name, value in event.items()
            }
            line = self._rendered(shown)
            if len(line.encode(errors="replace")) < LINE_BYTES:
                return line
        few = ("event", "level", "logger", "timestamp", "process")
        kept = {name: self._plain(name, str(event.get(name))[:200], 50, names) for name in few}
        return self._rendered({**kept, "cut": f"{len(line):,} characters"})

    def _rendered(self, event: dict[str, Any]) -> str:
        if self._json:
            return json.dumps(event)  # in ASCII: all that is unfit for a line stands escaped
        if "exception" in event:
            event["trace"] = flat(event.pop("exception"))
        return self._console(None, "", event)

    def _plain(self, name: str, value: Any, most: int, names: Sequence[str], depth: int = 0) -> Any:
        """A value as JSON has it, with texts of at most `most` characters."""
        if name in PERSONAL and not self._people:
            return _digest(value)
        if value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) < 2**64):
            return value
        if isinstance(value, Mapping | list | tuple | set | frozenset) and depth < _DEPTH:
            within = partial(self._plain, most=most, names=names, depth=depth + 1)
            if isinstance(value, Mapping):
                shown = {self._text(str(key), most, names): within(str(key), one) for key, one in _some(value.items())}
                return {**shown, **_left_out(value)}
            return [*(within("", one) for one in _some(value)), *_left_out(value).values()]
        return self._text(self._words(value), most, () if name in _OWN else names)

    def _words(self, value: object) -> str:
        try:
            if isinstance(value, BaseException) and not self._people:
                return said(value)
            return f"({len(value):,} bytes)" if isinstance(value, bytes) and not self._people else str(value)
        except Exception:  # its __str__ is wrong
            return f"<{type(value).__name__}>"

    def _text(self, text: str, most: int, names: Sequence[str]) -> str:
        for name in names:
            text = text.replace(name, "(hidden)")
        text = self._secrets.hide(text)
        if not self._json:
            text = escaped(text)
        return text if len(text) <= most else f"{text[:most]}...[{len(text) - most:,} characters cut]"


def _digest(value: object) -> str:
    plain = str(value).encode(errors="replace")
    return f"hidden:{hashlib.blake2b(plain, key=_SALT, digest_size=6).hexdigest()}"


def _some(members: Iterable[Any]) -> Iterator[Any]:
    return islice(members, _MEMBERS)


def _left_out(members: Sized) -> dict[str, str]:
    return {"...": f"[{len(members) - _MEMBERS:,} more]"} if len(members) > _MEMBERS else {}


def _error(given: object) -> BaseException | None:
    """Of what logging calls `exc_info`, the error."""
    if isinstance(given, tuple):
        given = given[1]
    elif given and not isinstance(given, BaseException):
        given = sys.exc_info()[1]
    return given if isinstance(given, BaseException) else None
