"""Health, and the small HTTP server that shows it and the metrics (they are in `metrics`, the log in `logs`)."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterable
from io import StringIO
from socketserver import TCPServer, ThreadingMixIn
from types import TracebackType
from typing import Any, TextIO
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import structlog
from prometheus_client import make_wsgi_app

from runtime import metrics
from runtime.lifecycle import ConfigurationError

_log = structlog.get_logger(__name__)


class Health:
    """Whether the process does its work, part by part. Thread-safe.

    A process is ready when it has parts and each is; a part named in the constructor is not ready until
    somebody says so.
    """

    def __init__(self, *parts: str) -> None:
        self._lock = threading.Lock()
        self._parts: dict[str, tuple[bool, str]] = dict.fromkeys(parts, (False, "starting"))
        self._watched: dict[str, Callable[[], str]] = {}
        metrics.ready.follow(lambda: float(self.is_ready()))

    def set_ready(self, part: str, ready: bool, why: str = "") -> None:
        """Says how a part is. `why` is for people: what is missing and what it waits for."""
        with self._lock:
            self._parts[part] = (ready, why)

    def watch(self, part: str, trouble: Callable[[], str]) -> None:
        """Asks, whenever somebody asks for the health, what keeps a part from being ready; "" = nothing.

        For what a process that is stuck cannot say itself.
        """
        with self._lock:
            self._watched[part] = trouble

    def is_ready(self) -> bool:
        """Whether all parts are."""
        parts = self._now()
        return bool(parts) and all(ready for ready, _ in parts.values())

    def report(self) -> dict[str, dict[str, bool | str]]:
        """Part -> {"ready": ..., "why": ...}."""
        return {part: {"ready": ready, "why": why} for part, (ready, why) in self._now().items()}

    def _now(self) -> dict[str, tuple[bool, str]]:
        with self._lock:
            parts, watched = dict(self._parts), dict(self._watched)
        return parts | {part: (False, why) for part, trouble in watched.items() if (why := trouble())}


class AdminServer:
    """A thread that serves /metrics, /healthz (it answers) and /readyz (200 or 503, JSON with reasons).

    :param port: TCP port; 0 = any free one (see `self.port`), None = no server.
    :raises Usage: the port is taken.
    """

    def __init__(self, health: Health, *, port: int | None, host: str = "127.0.0.1") -> None:
        self.port: int | None = None
        self._server: WSGIServer | None = None
        if port is None:
            return
        try:
            self._server = make_server(host, port, _pages(health), server_class=_Server, handler_class=_QuietHandler)
        except OSError as error:
            raise ConfigurationError(
                f"cannot listen: {error.strerror}", where=f"{host}:{port}", hint='set another port, or "none"'
            ) from None
        self.port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops serving."""
        if self._server is not None:
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            self._server = None

    def __enter__(self) -> AdminServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pages(health: Health) -> WSGIApplication:
    numbers = make_wsgi_app(metrics.REGISTRY)

    def guarded(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        try:
            return answer(environ, start)
        except Exception:
            _log.exception("admin.failed")
            raise

    def answer(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        body: dict[str, object]
        if path == "/metrics":
            page: Iterable[bytes] = numbers(environ, start)
            return page
        if path == "/healthz":
            status, body = "200 OK", {"alive": True}
        elif path == "/readyz":
            ready = health.is_ready()
            status, body = (
                "200 OK" if ready else "503 Service Unavailable",
                {"ready": ready, "parts": health.report()},
            )
        else:
            status, body = "404 Not Found", {"pages": ["/metrics", "/healthz", "/readyz"]}
        start(status, [("Content-Type", "application/json")])
        return [json.dumps(body).encode() + b"\n"]

    return guarded


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        """As inherited, without asking a name server for our name (that may take many seconds)."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that left, or said nothing for too long, is no news; anything else is one line."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("admin.failed")


class _QuietHandler(WSGIRequestHandler):
    timeout = 10  # seconds a client may take to send its request

    def get_stderr(self) -> TextIO:
        """Where wsgiref prints tracebacks, of clients that left among them: nowhere. `_pages` says its own errors."""
        return StringIO()

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: a scrape every few seconds is no news."""
