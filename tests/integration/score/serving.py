"""`driftline score` as a process of its own, for tests that kill it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.kafka import KafkaConfig

if TYPE_CHECKING:
    from tests.integration.score.conftest import World


@contextmanager
def score_process(
    world: World, kafka: KafkaConfig, log: Path, *, failpoint: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """Runs while the block does; killed at its end."""
    environment = {
        **os.environ,
        "DRIFTLINE_POSTGRES_URL": world.url,
        "DRIFTLINE_KAFKA_BOOTSTRAP": kafka.bootstrap,
        "DRIFTLINE_TOPIC_PREFIX": kafka.prefix,
        "DRIFTLINE_DATA_DIR": str(world.folder.parent),
        "DRIFTLINE_SCORE__GROUP": f"{kafka.prefix}score",
        "DRIFTLINE_SCORE__SESSION_TIMEOUT_S": "2",
        "DRIFTLINE_FAILPOINT": failpoint,
    }
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "driftline", "score", "--port", "0"], env=environment, stdout=out, stderr=out
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
