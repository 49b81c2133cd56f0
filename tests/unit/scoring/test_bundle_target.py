"""Where bundles go: whole or not seen, on a disk, in an object store's way, and over a network."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from runtime.lifecycle import ConfigurationError
from scoring.export.bundle import EXAMPLE, MANIFEST, WEIGHTS, Bundle, parse, seal
from scoring.export.bundle_target import ABANDONED_S, LATEST, Away, BundleTarget

KINDS = ["file", "memory", "ftp"]


@pytest.fixture(scope="module")
def ftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of an FTP server's root."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("ftp")
    command = [sys.executable, "-m", "pyftpdlib", "-w", "-i", "127.0.0.1", "-p", str(port), "-d", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 30
        while not _listens(port) and time.monotonic() < end:
            time.sleep(0.05)
        yield f"ftp://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(params=KINDS)
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place of each kind."""
    match request.param:
        case "file":
            return str(tmp_path / "bundles")
        case "memory":
            return f"memory://{tmp_path.name}-{os.getpid()}/bundles"
        case _:
            server: str = request.getfixturevalue("ftp")
            return f"{server}/{tmp_path.name}/bundles"


def bundle(step: int, branch: int = 1) -> Bundle:
    """Small, and each its own."""
    snapshot = {"id": f"s-{branch}-{step}", "branch": branch, "step": step}
    return seal({"snapshot": snapshot}, {"weights": torch.full((3,), step)}, {"answer": step})


def publish(target: BundleTarget, one: Bundle) -> None:
    target.put("markov", one)
    target.point("markov", one)


def test_what_is_put_is_read_back_and_named_by_the_pointer(uri: str) -> None:
    target, one = BundleTarget(uri), bundle(1)
    target.prepare()
    assert target.folders() == []
    assert target.latest("markov") is None
    publish(target, one)
    seen = BundleTarget(uri)
    assert seen.folders() == ["markov"]
    assert parse(seen.files("markov", one.id), where=uri) == one
    assert seen.latest("markov") == {"bundle": one.id, "learner": "markov", "id": "s-1-1", "branch": 1, "step": 1}
    assert seen.folders("markov") == [one.id, LATEST], "nothing unfinished is left"
    assert BundleTarget(f"{uri}/markov/{one.id}").files() == one.files


def test_the_pointer_moves_to_the_next_bundle(uri: str) -> None:
    target = BundleTarget(uri)
    for step in (1, 2):
        publish(target, bundle(step))
        latest = target.latest("markov")
        assert latest is not None
        assert latest["step"] == step
    assert list(target.manifests("markov")) == [bundle(2).id, bundle(1).id]


class Killed(BaseException):
    """Stands for kill -9: nothing is cleaned up."""


@pytest.mark.parametrize("moved", [0, 1, 2])
def test_a_bundle_begun_is_not_seen_and_is_finished_by_the_next_try(uri: str, moved: int) -> None:
    target, one, left = BundleTarget(uri), bundle(1), [moved]

    def die() -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    with pytest.raises(Killed):
        target.put("markov", one, moving=die)
    seen = BundleTarget(uri)
    assert not seen.holds("markov", one.id)
    assert seen.manifests("markov") == {}
    assert MANIFEST not in seen.files("markov", one.id)
    seen.put("markov", one)
    assert parse(seen.files("markov", one.id), where=uri) == one


def test_a_damaged_bundle_is_written_anew(uri: str) -> None:
    target, one = BundleTarget(uri), bundle(1)
    target.put("markov", one)
    target._files.pipe_file(target._path("markov", one.id, WEIGHTS), b"damaged")
    target.put("markov", one)
    assert BundleTarget(uri).files("markov", one.id) == one.files


def test_retention_keeps_the_newest_and_the_one_that_is_pointed_at(uri: str) -> None:
    target = BundleTarget(uri)
    made = [bundle(1), bundle(2), bundle(3), bundle(1, branch=2)]
    for one in made:
        target.put("markov", one)
    assert target.retain("markov", 1) == [], "nothing goes as long as no pointer says what must stay"
    target.point("markov", made[0])
    gone = target.retain("markov", 2)
    assert gone == [made[1].id]
    assert set(target.manifests("markov")) == {made[0].id, made[2].id, made[3].id}
    assert target.folders("markov") == sorted([made[0].id, made[2].id, made[3].id, LATEST])
    assert target.retain("markov", 2) == []


def test_what_a_dead_process_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    target, one = BundleTarget(str(tmp_path)), bundle(1)
    publish(target, bundle(2))
    half, unfinished = tmp_path / "markov" / one.id, tmp_path / "markov" / f".writing-{one.id}-abcd"
    for folder in (half, unfinished):
        folder.mkdir()
        (folder / EXAMPLE).write_bytes(one.example)
    (tmp_path / "markov" / ".writing-abcd.json").write_bytes(b"{")
    now = datetime.now(UTC)
    assert target.sweep("markov", now) == []
    later = now + timedelta(seconds=ABANDONED_S + 60)
    assert target.sweep("markov", later) == sorted([".writing-abcd.json", unfinished.name, half.name])
    assert target.folders("markov") == [bundle(2).id, LATEST]


def test_strangers_files_beside_the_bundles_are_left_alone(tmp_path: Path) -> None:
    target = BundleTarget(str(tmp_path))
    publish(target, bundle(1))
    (tmp_path / "markov" / "README").write_text("ours")
    (tmp_path / "markov" / "notes").mkdir()
    publish(target, bundle(2))
    target.retain("markov", 1)
    target.sweep("markov", datetime.now(UTC) + timedelta(days=1))
    assert target.folders("markov") == sorted([bundle(2).id, LATEST, "README", "notes"])


def test_a_kind_of_place_that_fsspec_does_not_know_is_a_wrong_call() -> None:
    with pytest.raises(ConfigurationError, match="Protocol not known: gopher"):
        BundleTarget("gopher://somewhere/else")


@pytest.mark.parametrize("there", ["ftp://user:secret@127.0.0.1:1/x", "/proc/nowhere"])
def test_a_place_out_of_reach_is_told_without_its_password(there: str) -> None:
    with pytest.raises(Away) as caught:
        BundleTarget(there).prepare()
    assert there.replace("secret", "**********") in str(caught.value)
    assert "secret" not in str(caught.value)
