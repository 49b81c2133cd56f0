"""Snapshots: whole or not there, live or not seen, and a spoilt one replaced by learning again."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection
from structlog.testing import capture_logs

from learners.learner_config import LearnerConfig
from runtime.kafka import KafkaConfig
from runtime.lifecycle import Exit, OperatorActionRequired
from storage.learning import journal, snapshot_files, snapshot_registry
from storage.learning.journal import Step, WriterLease
from storage.learning.snapshot_files import BadSnapshot, Unwritable
from storage.log import event_log
from storage.log.offsets import Fenced
from streams.train.progress import Undelivered
from streams.train.snapshot_writer import LiveSnapshot, restore, write_snapshot
from streams.train.step_runner import StepRunner
from streams.train.watermark import Front
from tests.integration.feeding import eventually
from tests.integration.learning import School, schools

TENSORS = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.array(7), "empty": np.zeros((0, 4))}
MANIFEST = {"schema_version": snapshot_files.SCHEMA_VERSION, "sha256": snapshot_files.digest(TENSORS)}
SHA256 = MANIFEST["sha256"]
NAMES = [f"one.{str(SHA256)[:16]}.json", f"one.{str(SHA256)[:16]}.safetensors"]
PLAN = LearnerConfig(learner="markov", seed=0, options={}, resolution_us=1_000_000)


@pytest.fixture
def school(database: str, tansu_topics: KafkaConfig, tmp_path: Path) -> Iterator[School]:
    with schools(database, tansu_topics, tmp_path) as made:
        yield made


# -- files --


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    snapshot_files.write(tmp_path, "one", TENSORS, MANIFEST)
    tensors, manifest = snapshot_files.read(tmp_path, "one", sha256=snapshot_files.digest(TENSORS))
    assert manifest == MANIFEST
    assert list(tensors) == ["a", "b", "empty"]
    assert all(np.array_equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert sorted(file.name for file in tmp_path.iterdir()) == NAMES


def test_the_digest_covers_names_types_shapes_and_bytes_and_no_order() -> None:
    one = np.arange(6, dtype=np.int64)
    digests = {
        snapshot_files.digest(tensors)
        for tensors in (
            {"a": one},
            {"b": one},
            {"a": one.reshape(2, 3)},
            {"a": one.astype(np.uint64)},
            {"a": one[::-1]},
            {"a": one, "b": one[:0]},
        )
    }
    assert len(digests) == 6
    assert snapshot_files.digest({"a": one, "b": one + 1}) == snapshot_files.digest({"b": one + 1, "a": one})


def _missing(file: Path) -> None:
    file.unlink()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def _changed(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _of_another_schema(file: Path) -> None:
    described = file.with_suffix(".json")
    described.write_text(json.dumps({**json.loads(described.read_text()), "schema_version": 99}))


def _without_manifest(file: Path) -> None:
    file.with_suffix(".json").unlink()


def _with_half_a_manifest(file: Path) -> None:
    described = file.with_suffix(".json")
    described.write_text(described.read_text()[:-5])


SPOILT = [
    (_missing, "missing"),
    (_cut, "unreadable"),
    (_changed, "hash"),
    (_empty, "unreadable"),
    (_of_another_schema, "schema"),
    (_without_manifest, "missing"),
    (_with_half_a_manifest, "unreadable"),
]


@pytest.mark.parametrize(("spoil", "fault"), SPOILT)
def test_a_spoilt_file_is_refused_by_its_name(tmp_path: Path, spoil: Callable[[Path], None], fault: str) -> None:
    snapshot_files.write(tmp_path, "one", TENSORS, MANIFEST)
    spoil(snapshot_files.path_of(tmp_path, "one", snapshot_files.digest(TENSORS)))
    with pytest.raises(BadSnapshot, match=str(tmp_path / "one")) as refused:
        snapshot_files.read(tmp_path, "one", sha256=snapshot_files.digest(TENSORS))
    assert refused.value.fault == fault


def test_another_snapshot_under_this_name_is_refused(tmp_path: Path) -> None:
    snapshot_files.write(tmp_path, "one", {"a": np.ones(3)}, MANIFEST)
    with pytest.raises(BadSnapshot, match=r"one\.\w+\.safetensors holds other bytes than were written"):
        snapshot_files.read(tmp_path, "one", sha256=snapshot_files.digest(TENSORS))


@pytest.mark.parametrize("file_number", [1, 2])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_number: int) -> None:
    with monkeypatch.context() as patched:
        _fill_disk(patched, at=file_number)
        with pytest.raises(Unwritable, match=r"one\.\w+\.safetensors: No space left on device"):
            snapshot_files.write(tmp_path, "one", TENSORS, MANIFEST)
    assert list(tmp_path.iterdir()) == []
    snapshot_files.write(tmp_path, "one", TENSORS, MANIFEST)
    snapshot_files.read(tmp_path, "one", sha256=snapshot_files.digest(TENSORS))


def test_a_full_disk_does_not_spoil_what_stood_there_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot_files.write(tmp_path, "one", TENSORS, MANIFEST)
    _fill_disk(monkeypatch, at=2)
    with pytest.raises(Unwritable):
        snapshot_files.write(tmp_path, "one", TENSORS, {**MANIFEST, "more": 1})
    _, manifest = snapshot_files.read(tmp_path, "one", sha256=snapshot_files.digest(TENSORS))
    assert manifest == MANIFEST


def test_both_files_and_then_their_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = list[tuple[bool, list[str]]]()
    sync = os.fsync

    def spy(descriptor: int) -> None:
        is_folder = os.path.isdir(f"/proc/self/fd/{descriptor}")
        named = sorted(file.name for file in tmp_path.iterdir() if not file.name.startswith("."))
        synced.append((is_folder, named))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", spy)
    snapshot_files.write(tmp_path, "one", TENSORS, MANIFEST)
    assert synced == [(False, []), (False, []), (True, NAMES)]


def test_what_an_earlier_epoch_left_unfinished_is_removed_and_what_a_later_one_is_writing_is_not(
    tmp_path: Path,
) -> None:
    for epoch in (4, 6):
        (tmp_path / f".one.0123456789abcdef.safetensors.{epoch}").write_bytes(b"half")
    snapshot_files.write(tmp_path, "one", TENSORS, MANIFEST, epoch=5)
    assert sorted(file.name for file in tmp_path.iterdir()) == [".one.0123456789abcdef.safetensors.6", *NAMES]


def test_two_that_disagree_on_a_snapshots_bytes_write_two_files_and_both_are_removed_with_it(tmp_path: Path) -> None:
    other = {"a": np.ones(3)}
    for tensors in (TENSORS, other):
        snapshot_files.write(tmp_path, "one", tensors, {**MANIFEST, "sha256": snapshot_files.digest(tensors)})
    snapshot_files.write(tmp_path, "one-more", other, {**MANIFEST, "sha256": snapshot_files.digest(other)})
    for tensors in (TENSORS, other):
        found, _ = snapshot_files.read(tmp_path, "one", sha256=snapshot_files.digest(tensors))
        assert list(found) == sorted(tensors)
    snapshot_files.remove(tmp_path, "one")
    assert {file.name.partition(".")[0] for file in tmp_path.iterdir()} == {"one-more"}


def _fill_disk(patched: pytest.MonkeyPatch, *, at: int) -> None:
    """The n-th fsync meets a full disk."""
    sync, calls = os.fsync, iter(range(1, 100))

    def full(descriptor: int) -> None:
        if next(calls) == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    patched.setattr(os, "fsync", full)


# -- publishing --


def seat_of(connection: Connection) -> WriterLease:
    with connection.begin():
        lease, _ = journal.acquire_lease(connection, learner="markov", version="1", config=PLAN.as_json())
    return lease


def publish_in(school: School, connection: Connection, lease: WriterLease, **given: Any) -> LiveSnapshot:
    values: dict[str, Any] = {
        "step": 1,
        "parent": None,
        "folder": school.folder,
        "losses": {},
        "actions": (),
        "delivered": lambda: None,
    }
    runner = given.pop("runner", None) or StepRunner(PLAN, PLAN.fresh(), {}, front=None)
    return write_snapshot(connection, lease, runner, PLAN, **{**values, **given})


def statuses(school: School) -> dict[str, str]:
    return {row.id: row.status for row in school.query("SELECT id, status FROM snapshot")}


def test_a_snapshot_is_registered_written_told_and_only_then_live(school: School) -> None:
    seen = list[tuple[dict[str, str], list[str]]]()

    def delivered() -> None:
        seen.append((statuses(school), sorted(file.name for file in school.folder.iterdir())))

    with school.engine.connect() as connection:
        published = publish_in(school, connection, seat_of(connection), delivered=delivered)
    name = "markov-1-0000000001"
    [(status, files)] = seen
    assert status == {name: "writing"}
    assert files == [school.file(name).with_suffix(".json").name, school.file(name).name]
    assert statuses(school) == {name: "live"}
    assert published.id == name


def test_a_restored_course_has_the_front_it_had(school: School) -> None:
    """Which of its next rows are late depends on 33 record times, not on one."""
    times = [*range(40), 4_102_444_800_000_000, 12, 13]
    runner = StepRunner(PLAN, PLAN.fresh(), {}, front=Front().after(times))
    with school.engine.connect() as connection:
        published = publish_in(school, connection, seat_of(connection), runner=runner)
        with connection.begin():
            found = snapshot_registry.find(connection, published.id)
    assert found is not None
    again = restore(PLAN, found, school.folder)
    assert again.recent == runner.recent
    assert found.front == event_log.time_of(24)
    of_before = replace(found, manifest={**(found.manifest or {}), "record_times": None})
    assert restore(PLAN, of_before, school.folder).front == 24, "made by a version that kept one time"


def test_before_its_files_are_written_it_is_registered(school: School) -> None:
    school.folder.touch()  # a file where the folder should be
    with school.engine.connect() as connection, pytest.raises(Unwritable):
        publish_in(school, connection, seat_of(connection))
    assert statuses(school) == {"markov-1-0000000001": "writing"}


def test_without_its_progress_acknowledged_it_does_not_become_live(school: School) -> None:
    def undelivered() -> None:
        raise Undelivered("not acknowledged")

    with school.engine.connect() as connection:
        lease = seat_of(connection)
        with pytest.raises(Undelivered):
            publish_in(school, connection, lease, delivered=undelivered)
        assert set(statuses(school).values()) == {"writing"}
        publish_in(school, connection, lease)
        assert set(statuses(school).values()) == {"live"}


def test_a_zombie_publishes_nothing(school: School) -> None:
    with school.engine.connect() as zombie, school.engine.connect() as other:
        lease = seat_of(zombie)
        with pytest.raises(Fenced):
            publish_in(school, zombie, lease, delivered=lambda: seat_of(other) and None)
        assert set(statuses(school).values()) == {"writing"}
        with pytest.raises(Fenced):
            publish_in(school, zombie, lease, step=2)
        assert len(statuses(school)) == 1
        step = Step(number=0, rows=(), front=None, idle=(), late=0, snapshot=False, actions=())
        with zombie.begin(), pytest.raises(Fenced):
            journal.append(zombie, lease, step)
    assert school.journalled() == 0


def test_a_zombie_that_computes_other_bytes_spoils_no_file_of_its_successor(school: School) -> None:
    """It slept between registering the snapshot and writing its file; its successor has another device class."""
    with school.engine.connect() as zombie, school.engine.connect() as other:
        lease = seat_of(zombie)
        successors = list[LiveSnapshot]()

        class Asleep(StepRunner):
            def tensors(self) -> dict[str, Any]:
                successors.append(publish_in(school, other, seat_of(other)))
                return {**super().tensors(), "rounded otherwise": np.ones(1)}

        with pytest.raises(Fenced):
            publish_in(school, zombie, lease, runner=Asleep(PLAN, PLAN.fresh(), {}, front=None))
    [published] = successors
    [row] = school.query("SELECT status, sha256 FROM snapshot")
    assert (row.status, row.sha256) == ("live", published.sha256)
    assert len(list(school.folder.glob("*.safetensors"))) == 2, "the zombie did write"
    snapshot_files.read(school.folder, published.id, sha256=row.sha256)


def test_a_file_that_a_fenced_process_left_is_in_nobodys_way(school: School) -> None:
    class Other(StepRunner):
        def tensors(self) -> dict[str, Any]:
            return {**super().tensors(), "rounded otherwise": np.ones(1)}

    def fenced() -> None:
        raise Fenced("another took over while it waited")

    with school.engine.connect() as connection:
        with pytest.raises(Fenced):
            publish_in(
                school,
                connection,
                seat_of(connection),
                runner=Other(PLAN, PLAN.fresh(), {}, front=None),
                delivered=fenced,
            )
        published = publish_in(school, connection, seat_of(connection))
    snapshot_files.read(school.folder, published.id, sha256=published.sha256)
    assert set(statuses(school).values()) == {"live"}


def test_repeating_to_other_bytes_than_were_published_is_refused_and_touches_no_file(school: School) -> None:
    with school.engine.connect() as connection:
        lease = seat_of(connection)
        published = publish_in(school, connection, lease)
        file = school.file(published.id)
        file.write_bytes(b"spoilt")
        school.query("UPDATE snapshot SET sha256 = 'other'")
        with pytest.raises(OperatorActionRequired, match="it was published with other") as refused:
            publish_in(school, connection, lease)
    assert refused.value.code is Exit.REFUSED
    assert file.read_bytes() == b"spoilt"


# -- train and its snapshots --


def test_a_row_without_a_live_file_is_ignored(school: School) -> None:
    school.write(16)
    expected = school.undisturbed()
    first = school.train()
    assert first.sha256 == expected
    with school.engine.connect() as connection:
        lease = seat_of(connection)
        with connection.begin():
            new = snapshot_registry.NewSnapshot(
                id="markov-1-0000000009", learner="markov", branch=1, step=9, parent=None, cursor={}, front=None
            )
            snapshot_registry.begin(connection, lease, new)
    assert school.train().repeated_steps == 0
    school.write(8)
    school.train()
    [newest] = school.query("SELECT parent FROM snapshot WHERE status = 'live' ORDER BY step DESC LIMIT 1")
    assert newest.parent == first.snapshot_id


def test_each_snapshot_names_its_parent_and_its_files_carry_its_id_and_digest(school: School) -> None:
    school.write(24)
    school.train(snapshot_every_s=0)
    rows = school.query("SELECT id, parent, sha256, manifest FROM snapshot ORDER BY step")
    assert [row.parent for row in rows] == [None, *(row.id for row in rows[:-1])]
    assert sorted(file.name for file in school.folder.iterdir()) == sorted(
        f"{row.id}.{row.sha256[:16]}.{kind}" for row in rows for kind in ("json", "safetensors")
    )
    for row in rows:
        _, manifest = snapshot_files.read(school.folder, row.id, sha256=row.sha256)
        assert manifest == row.manifest
        assert (manifest["id"], manifest["parent"]) == (row.id, row.parent)


@pytest.mark.parametrize("spoil", [_missing, _changed, _of_another_schema])
def test_a_spoilt_snapshot_is_named_and_learnt_again_from_the_one_before(
    school: School, spoil: Callable[[Path], None]
) -> None:
    school.write(24)
    school.train(snapshot_every_s=0)
    *_, before, newest = live = school.live()
    spoil(school.file(newest))
    spoil(school.file(before))
    with capture_logs() as said:
        totals = school.train()
    named = [line for line in said if line["event"] == "train.bad_snapshot"]
    assert [line["snapshot"] for line in named] == [newest, before]
    assert all(str(school.folder / line["snapshot"]) in str(line["error"]) for line in named)
    assert (totals.repeated_steps, totals.snapshots) == (2, 2)
    assert school.live() == live
    for row in school.query("SELECT id, sha256 FROM snapshot"):
        snapshot_files.read(school.folder, row.id, sha256=row.sha256)  # the same bytes stand there again


def test_without_any_readable_snapshot_everything_is_learnt_again(school: School) -> None:
    school.write(24)
    school.train(snapshot_every_s=0)
    for one in school.live():
        _missing(school.file(one))
    totals = school.train()
    assert totals.repeated_steps == school.journalled() == 3
    for row in school.query("SELECT id, sha256 FROM snapshot"):
        snapshot_files.read(school.folder, row.id, sha256=row.sha256)


def test_a_full_disk_makes_train_unready_until_there_is_room_again(school: School) -> None:
    school.write(16)
    expected = school.undisturbed()
    school.folder.touch()
    found = list[str | None]()
    running = threading.Thread(target=lambda: found.append(school.train().sha256))
    running.start()
    eventually(lambda: "cannot write" in str(school.health.report()))
    assert not school.health.is_ready()
    assert set(statuses(school).values()) == {"writing"}
    school.folder.unlink()
    running.join(20)
    assert found == [expected]
    assert school.health.is_ready()
    assert len(school.live()) == 1
