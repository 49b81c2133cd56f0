"""`export` and `bundle check` as processes: killed, stopped, without their target, on a machine that has nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from sqlalchemy import text
from structlog.testing import capture_logs

from driftline.cli import run
from runtime.admin_app import Health
from runtime.kafka import KafkaConfig
from runtime.lifecycle import DriftlineError, Exit, Stop
from runtime.settings import ExportSettings
from scoring.export.bundle import EXAMPLE, MANIFEST, WEIGHTS, BadBundle, parse
from scoring.export.bundle_check import check
from scoring.export.bundle_target import LATEST, BundleTarget
from scoring.export.process import Export, ExportTotals
from storage.engine import Unavailable, mapped_errors
from storage.learning import snapshot_gc, snapshot_registry
from tests.integration.feeding import REPOSITORY, eventually
from tests.integration.learning import School, schools
from tests.integration.test_train_ranking import shop

pytestmark = pytest.mark.timeout(300)  # many processes are started


class Exporter:
    """Runs `driftline export` on a school's database and snapshots, into the folder `bundles`."""

    def __init__(self, school: School, folder: Path) -> None:
        self.school, self.folder = school, folder
        self.target = folder / "bundles"
        self._running: list[subprocess.Popen[str]] = []

    def start(self, *call: str, failpoint: str = "", **settings: object) -> subprocess.Popen[str]:
        """A process; settings are those of `export`."""
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(REPOSITORY),
            "DRIFTLINE_POSTGRES_URL": self.school.database,
            "DRIFTLINE_DATA_DIR": str(self.school.folder.parent),
            "DRIFTLINE_FAILPOINT": failpoint,
            "DRIFTLINE_EXPORT__TARGET": str(self.target),
            "DRIFTLINE_EXPORT__PORT": "none",
            **{f"DRIFTLINE_EXPORT__{name.upper()}": str(value) for name, value in settings.items()},
        }
        made = subprocess.Popen(
            [sys.executable, "-m", "driftline", "export", *call],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=self.folder,
        )
        self._running.append(made)
        return made

    def killed(self, failpoint: str) -> None:
        """One pass, in a process that is killed on the way."""
        process = self.start("--once", failpoint=failpoint)
        _, log = process.communicate()
        assert process.returncode == -signal.SIGKILL, log

    def once(self, **settings: Any) -> ExportTotals:
        """One pass, in this process."""
        return Export(
            postgres_url=self.school.database,
            snapshots=self.school.folder,
            target=str(self.target),
            settings=ExportSettings(**settings),
            health=Health("export"),
            stop=Stop(),
        ).run(once=True)

    @property
    def latest(self) -> str | None:
        """The snapshot that the pointer leads to."""
        told = BundleTarget(str(self.target)).latest("markov")
        return None if told is None else told["id"]

    def answers(self) -> list[str]:
        """Snapshots of all bundles that are seen; each must answer."""
        target = BundleTarget(str(self.target))
        return [
            check(parse(target.files("markov", name), where=name), where=name).snapshot
            for name in target.manifests("markov")
        ]

    def end(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def school(database: str, tansu_topics: KafkaConfig, tmp_path: Path) -> Iterator[School]:
    with schools(database, tansu_topics, tmp_path) as made:
        yield made


@pytest.fixture
def exporter(school: School, tmp_path: Path) -> Iterator[Exporter]:
    made = Exporter(school, tmp_path)
    yield made
    made.end()


def learn(school: School, learner: str = "markov") -> str:
    """Something more is learnt; the new snapshot."""
    shop(school, 24)
    school.train(learner=learner)
    with school.engine.connect() as connection:
        return snapshot_registry.newest_live(connection, learner)[0].id


def bundle(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`driftline bundle ...` with nothing in its environment, in an empty folder."""
    empty = folder / "empty"
    empty.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "driftline", "bundle", *words],
        env={"PYTHONPATH": str(REPOSITORY), **environment},
        cwd=empty,
        capture_output=True,
        text=True,
        check=False,
    )


def checked(place: Path, folder: Path, **environment: str) -> list[dict[str, Any]]:
    """What `bundle check` finds in good bundles."""
    done = bundle("check", str(place), "--json", folder=folder, **environment)
    assert done.returncode == Exit.DONE, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_each_learners_newest_weights_answer_on_a_machine_that_has_nothing(
    school: School, exporter: Exporter, tmp_path: Path
) -> None:
    shop(school, 72)
    wanted = {"prompttpp": learn(school, "prompttpp"), "sdim": learn(school, "sdim")}
    process = exporter.start("--once", "--json")
    out, log = process.communicate()
    assert process.returncode == 0, log
    done = json.loads(out)
    assert (done["passes"], done["bundles"], done["refused"]) == (1, 2, 0)
    found = checked(exporter.target, tmp_path)
    assert {one["learner"]: one["snapshot"] for one in found} == wanted
    assert all(one["exact"] and one["figures"] > 5 for one in found)
    manifest = json.loads((exporter.target / "sdim" / found[1]["bundle"] / MANIFEST).read_bytes())
    [row] = school.query("SELECT sha256, cursor FROM snapshot WHERE id = :id", id=wanted["sdim"])
    assert (manifest["snapshot"]["sha256"], manifest["snapshot"]["cursor"]) == (row.sha256, row.cursor)
    assert "rank" in manifest["snapshot"]["losses"]["learner"]
    example = json.loads((exporter.target / "sdim" / found[1]["bundle"] / EXAMPLE).read_bytes())
    assert sum(item.startswith("item ") for item in example["request"]["candidates"]) > 5
    written = {file: file.stat().st_mtime_ns for file in exporter.target.glob(f"*/*/{WEIGHTS}")}
    exporter.once()
    again = {file: file.stat().st_mtime_ns for file in exporter.target.glob(f"*/*/{WEIGHTS}")}
    assert again == written, "another process makes the same two bundles, and writes none anew"


@pytest.mark.parametrize(
    "failpoint",
    ["export.before_move:1", "export.before_move:2", "export.before_move:3", "export.before_pointer"],
)
def test_killed_anywhere_no_half_bundle_is_seen_and_the_next_pass_finishes(
    school: School, exporter: Exporter, failpoint: str
) -> None:
    first = learn(school)
    exporter.once()
    second = learn(school)
    exporter.killed(failpoint)
    assert exporter.latest == first
    assert exporter.answers() == ([second, first] if failpoint == "export.before_pointer" else [first])
    exporter.once()
    assert exporter.latest == second
    assert exporter.answers() == [second, first]


def test_retention_keeps_the_newest(school: School, exporter: Exporter, tmp_path: Path) -> None:
    made = []
    for _ in range(4):
        made.append(learn(school))
        exporter.once(keep=2)
    listed = json.loads(bundle("list", str(exporter.target), "--json", folder=tmp_path).stdout)
    assert [(one["snapshot"], one["latest"]) for one in listed] == [(made[3], True), (made[2], False)]


def test_without_its_target_it_is_not_ready_says_so_once_and_goes_on_when_it_is_there(
    school: School, exporter: Exporter, free_port: int
) -> None:
    learn(school)
    exporter.target.write_text("a file where the folder should be")
    process = exporter.start(port=free_port, every_s=1)
    eventually(lambda: "bundles" in why(free_port), within_s=120, why="it says what is missing")
    time.sleep(3)
    exporter.target.unlink()
    eventually(lambda: why(free_port) == "ready", within_s=120, why="it is ready again")
    assert exporter.latest is not None
    second = learn(school)
    eventually(lambda: exporter.latest == second, within_s=120, why="the next one is exported")
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, log = process.communicate()
    assert process.returncode == 0, log
    assert time.monotonic() - started < 10
    assert log.count("export.again") == 1, log


def why(port: int) -> str:
    """What /readyz says: "ready", or why not."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
            return "ready"
    except urllib.error.HTTPError as refused:
        with refused:
            return str(json.load(refused)["parts"]["export"]["why"])
    except OSError:
        return "away"


def test_a_write_that_hangs_does_not_keep_it_from_ending(school: School, exporter: Exporter) -> None:
    learn(school)
    exporter.target = exporter.folder / "slow"
    (exporter.target / "markov").mkdir(parents=True)
    os.mkfifo(exporter.target / "markov" / LATEST)  # whoever reads it waits for a writer
    process = exporter.start()
    eventually(lambda: waits_for(process.pid), within_s=120, why="it waits for the target")
    process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    _, log = process.communicate()
    assert process.returncode == 0, log
    assert "export.left" in log
    assert time.monotonic() - started < 10


def waits_for(pid: int) -> bool:
    """Whether one of its threads waits to open a pipe."""
    tasks = Path(f"/proc/{pid}/task")
    return any("wait_for_partner" in (task / "wchan").read_text() for task in tasks.iterdir())


def test_a_snapshot_that_cannot_be_read_is_told_and_the_one_before_it_is_exported(
    school: School, exporter: Exporter
) -> None:
    first, second = learn(school), learn(school)
    school.file(second).write_bytes(b"damaged")
    with capture_logs() as said:
        assert exporter.once().refused == 1
    assert exporter.latest == first
    assert second in [line.get("snapshot") for line in said]
    third = learn(school)
    exporter.once()
    assert exporter.latest == third
    school.file(third).unlink()
    exporter.once()
    assert exporter.latest == third, "the pointer does not go back"
    for file in school.folder.iterdir():
        file.unlink()
    (exporter.target / "markov" / LATEST).unlink()
    with pytest.raises(DriftlineError, match=r"no snapshot of markov can be exported: .* is missing"):
        exporter.once()


def test_a_copy_that_was_damaged_at_the_target_is_written_anew(school: School, exporter: Exporter) -> None:
    snapshot = learn(school)
    exporter.once()
    [weights] = exporter.target.glob(f"*/*/{WEIGHTS}")
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BadBundle, match="other bytes"):
        exporter.answers()
    with capture_logs() as said:
        exporter.once()
    assert "export.damaged" in [line["event"] for line in said]
    assert exporter.answers() == [snapshot]


def test_collection_waits_for_a_snapshot_that_is_being_read(school: School) -> None:
    first, second = learn(school), learn(school)
    school.query("UPDATE snapshot SET parent = NULL WHERE id = :id", id=second)
    with school.engine.begin() as reading:
        assert snapshot_registry.hold(reading, first)
        with school.engine.connect() as collecting:
            collecting.execute(text("SET LOCAL lock_timeout = '200ms'"))
            with pytest.raises(Unavailable), mapped_errors():
                snapshot_gc.mark(collecting, keep=1)
    with school.engine.begin() as collecting:
        assert snapshot_gc.mark(collecting, keep=1) == 1
    with school.engine.begin() as reading:
        assert not snapshot_registry.hold(reading, first), "what is marked is not begun to be exported"


# -- bundle check, from outside --


@pytest.fixture
def exported(school: School, exporter: Exporter) -> Path:
    """A good bundle."""
    learn(school, "prompttpp")
    exporter.once()
    [manifest] = exporter.target.glob(f"prompttpp/*/{MANIFEST}")
    return manifest.parent


def test_a_damaged_bundle_is_refused_with_what_and_where(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (WEIGHTS, EXAMPLE, MANIFEST):
        good = (exported / name).read_bytes()
        (exported / name).write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
        assert run(["bundle", "check", str(exported)]) == Exit.REFUSED
        assert f"{exported}/{name}" in capsys.readouterr().err
        (exported / name).write_bytes(good)
    assert run(["bundle", "check", str(exported)]) == Exit.DONE
    assert run(["bundle", "check", str(exported / "nowhere")]) == Exit.USAGE
    assert "no bundle is there" in capsys.readouterr().err


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="this machine has one class only")
def test_with_other_instructions_the_answer_is_the_same_within_the_tolerance(exported: Path, tmp_path: Path) -> None:
    [found] = checked(exported, tmp_path, ATEN_CPU_CAPABILITY="default")
    assert not found["exact"]
    assert "/DEFAULT/" in found["device_class"]


def test_a_bundle_is_checked_over_http(exported: Path, tmp_path: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=exported.parent)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            done = bundle("check", f"http://127.0.0.1:{server.server_port}", folder=tmp_path)
        finally:
            server.shutdown()
            thread.join()
    assert done.returncode == Exit.DONE, done.stderr
    assert "to the last bit" in done.stdout


ALONE = """
import pathlib, sys
for name in ("sqlalchemy", "psycopg", "confluent_kafka", "pyarrow", "pydantic", "msgspec", "structlog", "fsspec"):
    sys.modules[name] = None
from scoring.export.bundle import parse
from scoring.export.bundle_check import check
files = {file.name: file.read_bytes() for file in pathlib.Path(sys.argv[1]).iterdir()}
print(check(parse(files, where="here"), where="here").exact)
"""


def test_torch_numpy_and_safetensors_are_enough_to_answer(exported: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(exported)],
        env={"PYTHONPATH": str(REPOSITORY)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr
