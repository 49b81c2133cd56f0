"""Newer snapshots take over; unfit ones do not."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import save_file
from structlog.testing import capture_logs

if TYPE_CHECKING:
    from structlog.typing import EventDict

    from tests.integration.score.conftest import Running, Serve, World

Spoil = Callable[[Path], object]


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def put_another_file_there(file: Path) -> None:
    save_file({"weights": np.ones(3)}, file)


def test_a_newer_snapshot_takes_over_under_load_without_an_error(serve: Serve, world: World, people: list[str]) -> None:
    running = serve()
    stop = threading.Event()

    def load(user: str) -> list[str]:
        seen = []
        while not stop.is_set():
            seen.append(running.ask(user)["snapshot_id"])
        return seen

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, user) for user in people[:4]]
        try:
            before = world.publish(2)
            running.until(lambda: running.model() == before)
            after = world.publish(3)
            running.until(lambda: running.model() == after)
            last = running.ask(people[0])["snapshot_id"]
        finally:
            stop.set()
    for one in loads:
        answered = one.result()  # raises what any request raised
        assert answered == sorted(answered)  # never back to an older one
    assert last == after


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [(flip_a_byte, "hash"), (truncate, "unreadable"), (put_another_file_there, "hash"), (Path.unlink, "missing")],
)
def test_a_spoilt_newest_snapshot_is_refused_by_name_and_the_previous_one_goes_on(
    serve: Serve, world: World, people: list[str], spoil: Spoil, fault: str
) -> None:
    running = serve()
    good, before = running.model(), _refusals(running, fault)
    with capture_logs() as logs:
        bad = world.publish(2, spoil=spoil)
        refused = _wait_for_refusal(running, logs, bad)
        for user in people[:20]:  # each batch sees the newer one in the registry
            assert running.ask(user)["snapshot_id"] == good
    assert str(world.file(2)) in refused["why"]
    assert len([line for line in logs if line["event"] == "score.snapshot_refused"]) == 1
    assert _refusals(running, fault) == before + 1
    assert running.ready()


@pytest.mark.parametrize(
    ("changed", "fault", "said"),
    [
        ({"learner_version": "0"}, "foreign", "version '0'"),
        ({"learner": "markov"}, "foreign", "is of learner 'markov'"),
        ({"schema_version": 99}, "schema", "another schema version"),
        ({"config": {"seed": 0, "options": {"nonsense": 1}}}, "unfit", "cannot serve"),
    ],
)
def test_a_snapshot_of_another_learner_or_schema_is_refused_and_counted_by_reason(
    serve: Serve, world: World, people: list[str], changed: dict[str, Any], fault: str, said: str
) -> None:
    running = serve()
    before = _refusals(running, fault)
    with capture_logs() as logs:
        bad = world.publish(2, **changed)
        refused = _wait_for_refusal(running, logs, bad)
    assert said in refused["why"]
    assert _refusals(running, fault) == before + 1
    assert running.ask("user-1")["snapshot_step"] == 1


def test_a_start_falls_back_to_the_newest_snapshot_that_can_be_read(serve: Serve, world: World) -> None:
    good = world.publish(1)
    world.publish(2, spoil=truncate)
    world.publish(3, spoil=flip_a_byte)
    assert serve().ask("anybody")["snapshot_id"] == good


def _refusals(running: Running, fault: str) -> float:
    """As /metrics says."""
    families = text_string_to_metric_families(running.client.get("/metrics").text)
    found = [sample for family in families for sample in family.samples if sample.labels.get("reason") == fault]
    return sum(sample.value for sample in found if sample.name == "driftline_score_snapshots_refused_total")


def _wait_for_refusal(running: Running, logs: list[EventDict], snapshot: str) -> EventDict:
    def refusals() -> list[EventDict]:
        return [line for line in logs if line["event"] == "score.snapshot_refused" and line["snapshot"] == snapshot]

    running.until(refusals)
    return refusals()[0]
