"""An HTTP server in a thread of its own, so that signals stay with the process."""

from __future__ import annotations

import socket
import threading

import uvicorn
from starlette.types import ASGIApp

from runtime.lifecycle import ConfigurationError

_BACKLOG = 2048


class Server:
    """Binds its port at once (`port`), answers after `start`."""

    def __init__(self, *, host: str, port: int) -> None:
        """:raises Usage: the address cannot be listened on."""
        # asyncio turns Nagle's algorithm off only where the protocol is spelt out; with it on, each reply waits
        # 40 ms for an acknowledgement that the client delays.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((host, port))
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            raise ConfigurationError(
                f"cannot listen: {error.strerror}", where=f"{host}:{port}", hint="set another port"
            ) from None
        self.port: int = self._socket.getsockname()[1]
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def start(self, application: ASGIApp, *, drain_s: float) -> None:
        """
        :param drain_s: seconds that `close` leaves to replies being sent.
        """
        config = uvicorn.Config(
            application,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=max(1, int(drain_s)),
        )
        # uvicorn takes signals over only in the main thread.
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def close(self, timeout_s: float) -> None:
        """Closes the port, sends what is ready to be sent, and ends."""
        if self._uvicorn is not None and self._thread is not None:
            self._uvicorn.should_exit = True
            self._thread.join(timeout_s)
        self._socket.close()
