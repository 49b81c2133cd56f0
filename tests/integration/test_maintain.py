"""`maintain` and `erase` as processes: killed, stopped, without Postgres, beside everything else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from contracts import topics
from runtime.lifecycle import Exit
from storage.learning import journal, snapshot_files, snapshot_registry
from tests.integration.feeding import REPOSITORY, engine_of, event, eventually, query, relation, taken
from tests.integration.owning import MakeOwner

VIEW = 'SELECT * FROM user_event ORDER BY user_id, topic, partition, "offset", role'


class Verb:
    """Runs `driftline VERB` on a database, with its files in a folder."""

    def __init__(self, database: str, folder: Path) -> None:
        self.database, self.folder = database, folder
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *call: str, failpoint: str = "", **settings: object) -> subprocess.Popen[str]:
        """A process; settings are those of `maintain`."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("DRIFTLINE_")},
            "PYTHONPATH": str(REPOSITORY),
            "DRIFTLINE_POSTGRES_URL": self.database,
            "DRIFTLINE_DATA_DIR": str(self.folder),
            "DRIFTLINE_FAILPOINT": failpoint,
            "DRIFTLINE_MAINTAIN__PORT": "none",
            **{f"DRIFTLINE_MAINTAIN__{name.upper()}": str(value) for name, value in settings.items()},
        }
        command = [sys.executable, "-m", "driftline", *call]
        made = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=self.folder
        )
        self._running.append(made)
        return made

    def run(self, *call: str, failpoint: str = "", **settings: object) -> dict[str, Any]:
        """What it prints as JSON; {} if it was killed."""
        process = self.start(*call, failpoint=failpoint, **settings)
        out, err = process.communicate(timeout=60)
        if process.returncode == -signal.SIGKILL:
            return {}
        assert process.returncode == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def verb(database: str, tmp_path: Path) -> Iterator[Verb]:
    made = Verb(database, tmp_path)
    yield made
    made.end()


def fill(owner: MakeOwner) -> None:
    """Four users, some rows each."""
    one = owner((topics.USER, 0), (topics.RELATIONAL, 0))
    for n in range(6):
        one.write_events(event(f"a{n}", "ann", n), event(f"b{n}", "bob", n), event(f"c{n}", "cid", n))
        one.write_events(relation(f"r{n}", "ann", "bob", n), topic=topics.RELATIONAL)


def publish(database: str, folder: Path, steps: int) -> None:
    """Snapshots with files, one a step."""
    with engine_of(database).begin() as connection:
        lease, _ = journal.acquire_lease(connection, learner="markov", version="1", config={})
        for step in range(1, steps + 1):
            parent = f"s{step - 1}" if step > 1 else None
            made = snapshot_registry.NewSnapshot(
                id=f"s{step}", learner="markov", branch=1, step=step, parent=parent, cursor={1: step}, front=None
            )
            snapshot_registry.begin(connection, lease, made)
            sha256 = snapshot_files.digest({})
            snapshot_files.write(
                folder, made.id, {}, {"schema_version": snapshot_files.SCHEMA_VERSION, "sha256": sha256}
            )
            snapshot_registry.make_live(connection, lease, made.id, sha256=sha256, manifest={})


def files(folder: Path) -> set[str]:
    """Ids that have files."""
    return {file.name.partition(".")[0] for file in folder.iterdir()}


def test_one_pass_compacts_collects_and_says_so(database: str, owner: MakeOwner, verb: Verb, tmp_path: Path) -> None:
    fill(owner)
    publish(database, tmp_path / "snapshots", 5)
    before = query(database, VIEW)
    done = verb.run("maintain", "--once", "--json", compact_rows=6, keep_snapshots=2)
    assert (done["compacted_users"], done["rows_before"], done["rows_after"]) == (3, 30, 3)
    assert done["snapshots"] == 2
    assert files(tmp_path / "snapshots") == {"s3", "s4", "s5"}
    assert query(database, "SELECT id, status FROM snapshot ORDER BY id") == [(f"s{n}", "live") for n in (3, 4, 5)]
    assert query(database, VIEW) == before
    again = verb.run("maintain", "--once", "--json", compact_rows=6, keep_snapshots=2)
    assert (again["rows_before"], again["snapshots"]) == (0, 0)


@pytest.mark.parametrize(
    "point",
    ["before_compact_commit", "after_compact_commit", "after_mark", "after_unlink", "before_trim_commit"],
)
def test_killed_anywhere_nothing_is_lost_and_the_next_pass_finishes(
    database: str, owner: MakeOwner, verb: Verb, tmp_path: Path, point: str
) -> None:
    fill(owner)
    publish(database, tmp_path / "snapshots", 5)
    before = query(database, VIEW)
    settings: dict[str, Any] = {"compact_rows": 6, "keep_snapshots": 2, "log_days": '{"events.user": 1}'}
    assert verb.run("maintain", "--once", "--json", failpoint=f"maintain.{point}", **settings) == {}
    assert query(database, VIEW) == before
    taken(database)
    verb.run("maintain", "--once", "--json", **settings)
    assert query(database, VIEW) == before
    taken(database)
    assert files(tmp_path / "snapshots") == {"s3", "s4", "s5"}
    assert query(database, "SELECT count(*) FROM snapshot") == [(3,)]
    assert query(database, "SELECT count(*) FROM user_segment WHERE stream_id <> 0") == [(0,)]


def test_it_trims_nothing_and_ends_while_a_learner_asks_for_more_than_is_to_stay(
    database: str, owner: MakeOwner, verb: Verb
) -> None:
    fill(owner)
    with engine_of(database).begin() as connection:
        born = {"seed": 0, "options": {"last_n": 300}, "resolution_us": 1}
        journal.acquire_lease(connection, learner="prompttpp", version="2", config=born)
    settings: dict[str, Any] = {"compact_rows": 6, "state_days": '{"events.user": 1}'}
    process = verb.start("maintain", "--once", "--json", state_events=299, **settings)
    _, err = process.communicate(timeout=60)
    assert process.returncode == Exit.REFUSED
    assert "prompttpp for 300" in err
    assert "DRIFTLINE_MAINTAIN__STATE_EVENTS to 300" in err
    assert query(database, "SELECT count(*) FROM user_segment WHERE stream_id = 0") == [(0,)], "nothing was begun"
    assert verb.run("maintain", "--once", "--json", state_events=300, **settings)["compacted_users"] == 3


def test_it_is_ready_after_a_pass_waits_for_postgres_and_drains_on_sigterm(
    database: str, owner: MakeOwner, verb: Verb, free_port: int
) -> None:
    fill(owner)
    process = verb.start("maintain", every_s=0.2, port=free_port, compact_rows=6)

    def ready() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/readyz", timeout=2) as answer:
                return bool(json.load(answer)["ready"])
        except urllib.error.HTTPError as refused:
            refused.close()
            return False
        except OSError:
            return False

    eventually(ready, within_s=30)
    assert query(database, "SELECT count(*) FROM user_segment WHERE stream_id <> 0") == [(0,)]
    query(database, "ALTER TABLE snapshot RENAME TO away")
    query(database, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%maintain'")
    query(database, "ALTER TABLE away RENAME TO snapshot")
    eventually(ready, within_s=30)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0


@pytest.mark.parametrize("step", ["suppressed", "log", "others", "letters", "sequences"])
def test_an_erasure_killed_anywhere_is_called_again_and_finishes(
    database: str, owner: MakeOwner, verb: Verb, step: str
) -> None:
    fill(owner)
    assert verb.run("erase", "bob", "--yes", "--json", failpoint=f"erase.after_{step}") == {}
    verb.run("erase", "bob", "--yes", "--json")
    found = taken(database)
    assert {user for user, *_ in found.sequences} == {"ann", "cid"}
    assert query(database, "SELECT count(*) FROM vocabulary WHERE value = 'bob'") == [(0,)]


def test_users_to_erase_may_stand_in_a_file(database: str, owner: MakeOwner, verb: Verb, tmp_path: Path) -> None:
    fill(owner)
    (tmp_path / "asked.txt").write_text("ann\n\ncid\n")
    done = verb.run("erase", "--from", "asked.txt", "--yes", "--json")
    assert (done["users"], done["log_rows"], done["entries"], done["others"]) == (2, 18, 18, 1)
    assert {user for user, *_ in taken(database).sequences} == {"bob"}
