"""The local stack starts, answers, keeps what it should, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from driftline.local.embedded import broker, local_stack, postgres
from runtime import kafka
from runtime.kafka import KafkaConfig
from runtime.lifecycle import ConfigurationError

REPOSITORY = Path(__file__).parents[2]


def test_both_parts_answer_and_end_with_the_block() -> None:
    before = set(psutil.Process().children(recursive=True))
    with local_stack() as stack:
        assert stack.embedded_postgres
        assert stack.embedded_broker
        assert not stack.postgres_kept
        with psycopg.connect(stack.postgres_url) as connection:
            assert connection.execute("SELECT current_database()").fetchone() == ("driftline",)
        assert kafka.cluster_id(KafkaConfig(stack.kafka_bootstrap)).startswith("driftline-")
        children = set(psutil.Process().children(recursive=True)) - before
        assert len(children) >= 2
    assert not [child for child in children if child.is_running()]


def test_a_data_folder_keeps_postgres_and_the_broker_is_another(tmp_path: Path) -> None:
    clusters = []
    for run in range(2):
        with local_stack(data=tmp_path / "data") as stack:
            assert stack.postgres_kept == (run == 1)
            clusters.append(kafka.cluster_id(KafkaConfig(stack.kafka_bootstrap)))
            with psycopg.connect(stack.postgres_url) as connection:
                connection.execute("CREATE TABLE IF NOT EXISTS run (n int)")
                connection.execute("INSERT INTO run VALUES (%s)", (run,))
                kept = connection.execute("SELECT count(*) FROM run").fetchone()
            assert kept == (run + 1,)
    assert len(set(clusters)) == 2


def test_a_data_folder_in_use_is_refused_with_the_reason(tmp_path: Path) -> None:
    with postgres(tmp_path / "pg"), pytest.raises(ConfigurationError, match="lock file"), postgres(tmp_path / "pg"):
        pass


def test_parts_given_by_address_are_not_started() -> None:
    before = psutil.Process().children()
    with local_stack(postgres_url="postgresql://elsewhere/d", kafka_bootstrap="elsewhere:9092") as stack:
        assert (stack.embedded_postgres, stack.embedded_broker) == (False, False)
        assert stack.kafka_bootstrap == "elsewhere:9092"
        assert psutil.Process().children() == before


def test_two_brokers_live_side_by_side() -> None:
    with broker() as first, broker() as second:
        assert kafka.cluster_id(KafkaConfig(first)) != kafka.cluster_id(KafkaConfig(second))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent was killed")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_children_end_with_their_parent_however_it_ends(number: signal.Signals) -> None:
    code = (
        "from driftline.local.embedded import local_stack\n"
        "import time\n"
        "with local_stack():\n    print('up', flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=REPOSITORY
    )
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"up\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(parent.pid, number)
    parent.wait(30)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert alive == []


def test_what_a_killed_stack_left_is_deleted_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    left = Path(tempfile.mkdtemp(prefix="driftline-broker-", dir="/tmp"))
    (left / "in-use").touch()
    with broker() as first:
        assert left.exists()  # too young to be sure that nobody is about to lock it
        monkeypatch.setattr("driftline.local.embedded._SETTLED_S", 0.0)
        with broker():
            assert not left.exists()
            assert all(folder.exists() for folder in _locked_folders())
            assert kafka.cluster_id(KafkaConfig(first))


def _locked_folders() -> list[Path]:
    files = [Path(file.path) for file in psutil.Process().open_files()]
    return [file.parent for file in files if file.name == "in-use"]


def test_it_is_up_within_seconds() -> None:
    start = time.monotonic()
    with local_stack():
        assert time.monotonic() - start < 30
