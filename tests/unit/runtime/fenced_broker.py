"""A broker in the moment after its restart: it answers, and knows of nobody. Real ones are so for a blink only.

Speaks Kafka's protocol as far as a client needs to find its cluster: ApiVersions (key 18, up to version 3) and
Metadata (key 3, version 8); https://kafka.apache.org/protocol has the layouts. Run as a program it asks itself for the
cluster's id, again and again, and prints what comes.
"""

from __future__ import annotations

import socketserver
import struct
import sys
import threading
from typing import Final

from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import DriftlineError

CLUSTER: Final = b"cluster"
_VERSIONS: Final = {18: 3, 3: 8}
_NO_OPERATIONS: Final = -(2**31)


class Fenced(socketserver.ThreadingTCPServer):
    """It knows itself in its first `good` answers, and nobody after them."""

    daemon_threads = True

    def __init__(self, good: int) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        self._left = good

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def metadata(self) -> bytes:
        """Throttle, brokers, cluster id, controller, topics, operations."""
        self._left -= 1
        known = self._left >= 0
        host = b"127.0.0.1"
        itself = struct.pack(">ih9sih", 1, len(host), host, self.port, -1) if known else b""
        brokers = struct.pack(">ii", 0, int(known)) + itself
        cluster = struct.pack(f">h{len(CLUSTER)}s", len(CLUSTER), CLUSTER)
        return brokers + cluster + struct.pack(">iii", 1 if known else -1, 0, _NO_OPERATIONS)


def versions(asked: int) -> bytes:
    """Error, (key, from, to) of each request that is understood, throttle; from version 3 on with tags."""
    if asked < 3:
        known = b"".join(struct.pack(">hhh", key, 0, last) for key, last in _VERSIONS.items())
        return struct.pack(">hi", 0, len(_VERSIONS)) + known + (struct.pack(">i", 0) if asked else b"")
    known = b"".join(struct.pack(">hhhb", key, 0, last, 0) for key, last in _VERSIONS.items())
    return struct.pack(">hb", 0, len(_VERSIONS) + 1) + known + struct.pack(">ib", 0, 0)


class _Talk(socketserver.StreamRequestHandler):
    server: Fenced

    def handle(self) -> None:
        while len(head := self.rfile.read(4)) == 4:
            request = self.rfile.read(struct.unpack(">i", head)[0])
            key, version, number = struct.unpack(">hhi", request[:8])
            body = versions(version) if key == 18 else self.server.metadata()
            self.wfile.write(struct.pack(">ii", 4 + len(body), number) + body)


def main(good: int) -> None:
    """Prints the cluster's id, or why there is none, four times."""
    with Fenced(good) as broker:
        threading.Thread(target=broker.serve_forever, daemon=True).start()
        config = KafkaConfig(f"127.0.0.1:{broker.port}")
        client = kafka.admin(config)
        for _ in range(4):
            try:
                print(kafka.cluster_id(config, client=client, timeout_s=1.0))
            except DriftlineError as trouble:
                print(type(trouble).__name__)
        broker.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]))
