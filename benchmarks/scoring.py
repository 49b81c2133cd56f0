"""How fast `driftline score` answers, alone and crowded, with and without models being swapped.

    python -m benchmarks.scoring --json build/bench/scoring.json

Postgres, the server (a process of its own) and the clients share this machine. Clients are closed loops over
kept-open connections: each sends its next request when its answer is there. Ratios mean more than figures,
which depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing as mp
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import psutil
import pyarrow as pa
import torch
from sqlalchemy import text

from benchmarks.servers import create_database, postgres
from learners.build import build, build_cohort
from learners.synthetic import random_batch, random_histories
from runtime.lifecycle import Stop
from runtime.settings import ScoreSettings
from runtime.telemetry import Health, configure_logging
from scoring.questions import Question, query_of
from scoring.score import Score
from storage import journal, log, migrate, offsets, registry, sequences, snapshots
from storage.engine import open_engine
from storage.offsets import Advance, Stream
from storage.sequences import HistoryAsk
from storage.vocabulary import Vocabulary

USERS: Final = 5_000
EVENTS: Final = 48
"""Events a user, written in BATCHES batches: a user's state is in as many rows."""
BATCHES: Final = 4
CLIENTS: Final = (1, 8, 64)
SWAP_CLIENTS: Final = 8
SWAP_EVERY_S: Final = 5.0
QUANTILES: Final = (0.1, 0.5, 0.9)
STATES: Final = 4


@dataclass(frozen=True, kw_only=True)
class Run:
    """One measurement."""

    clients: int
    swap_every_s: float | None
    seconds: float
    requests: int
    swaps: int
    p50_ms: float
    p99_ms: float
    worst_ms: float

    @property
    def per_s(self) -> float:
        return self.requests / self.seconds


class World:
    """Sequences and snapshots as `ingest` and `train` would have left them."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self._engine = open_engine(url, application_name="benchmark")
        self._step = 0
        cohort = build_cohort("prompttpp")
        self._states = []
        for seed in range(STATES):
            cohort.step(random_batch(seed, 32, 24))
            self._states.append({name: tensor.numpy().copy() for name, tensor in cohort.state().items()})
        self.snapshot_bytes = sum(array.nbytes for array in self._states[0].values())

    def fill(self) -> None:
        histories = random_histories(7, USERS, EVENTS)
        vocabulary = Vocabulary(self._engine)
        share = EVENTS // BATCHES
        for batch in range(BATCHES):
            part = slice(batch * share, (batch + 1) * share)
            rows = [
                (f"user-{n}", at, name)
                for n, h in enumerate(histories)
                for at, name in zip(h.at[part], h.type[part], strict=True)
            ]
            with self._engine.begin() as connection:
                offsets.register(connection, {_STREAM: 0})
                (claim,) = offsets.claim(connection, offsets.streams(connection))
                first, after = claim.next_offset, claim.next_offset + len(rows)
                table = _table(rows, first)
                counts = log.Counts(read=len(rows), accepted=len(rows))
                segment = log.NewSegment(claim=claim, first=first, next=after, counts=counts, rows=table)
                log.append(connection, [segment])
                new = sequences.NewEvents(claim=claim, first_offset=first, topic_kind=sequences.USER, rows=table)
                sequences.append(connection, [new], vocabulary)
                offsets.advance(connection, [Advance(claim=claim, first=first, next=after)])

        with self._engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("VACUUM ANALYZE"))  # as autovacuum would within a minute

    def publish(self) -> None:
        """Makes the next snapshot live."""
        self._step += 1
        tensors = self._states[self._step % STATES]
        sha256 = snapshots.digest(tensors)
        config = {"seed": 0, "options": {}}
        snapshot = registry.Snapshot(
            id=registry.snapshot_id("prompttpp", 1, self._step),
            learner="prompttpp",
            branch=1,
            step=self._step,
            parent=None,
            status="writing",
            pinned=False,
            irreproducible=False,
            cursor={},
            front=None,
            sha256=None,
            manifest=None,
            created_at=_NOW,
            live_at=None,
        )
        manifest = {
            "schema_version": 1,
            "learner": "prompttpp",
            "learner_version": "1",
            "config": config,
            "sha256": sha256,
        }
        with self._engine.begin() as connection:
            seat, _ = journal.take_seat(connection, learner="prompttpp", version="1", config=config)
            registry.begin(connection, seat, snapshot)
            snapshots.write(self.folder, snapshot.id, tensors, manifest)
            registry.make_live(connection, seat, snapshot.id, sha256=sha256, manifest=manifest)

    def bare_pass_ms(self, rows: int) -> dict[str, float]:
        """Milliseconds of the two things an answer cannot do without: reading histories, and the model's pass."""
        learner = build("prompttpp")
        learner.load(
            {
                n.removeprefix("learner/"): torch.from_numpy(a)
                for n, a in self._states[0].items()
                if n.startswith("learner/")
            }
        )
        learner.load(learner.serving_state())
        questions = [Question(f"user-{n}", None) for n in range(rows)]
        asks = [HistoryAsk(user=q.user, before=2**62, last_n=learner.needs.last_n) for q in questions]
        reads, passes = [], []
        with self._engine.connect() as connection:
            cursor = offsets.watermark(connection)
            for _ in range(9):
                started = time.perf_counter()
                histories = sequences.histories(connection, asks, cursor)
                read = time.perf_counter()
                learner.predict(*query_of(questions, histories, QUANTILES))
                reads.append(read - started)
                passes.append(time.perf_counter() - read)
        return {"read_ms": 1e3 * median(reads), "pass_ms": 1e3 * median(passes)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", type=Path, help="file for the figures")
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=5.0, help="of one run; those with swaps take 12 s")
    given = arguments.parse_args()
    busy = psutil.cpu_percent(interval=1.0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, postgres(Path(folder)) as admin:
        os.chmod(folder, 0o755)
        world = World(create_database(admin, "scoring"), Path(folder) / "snapshots")
        migrate.upgrade(world.url)
        world.fill()
        world.publish()
        bare = {rows: world.bare_pass_ms(rows) for rows in CLIENTS}
        with _server(world) as port:
            asyncio.run(_measure(port, clients=8, seconds=2.0))
            runs = []
            for _ in range(given.runs):
                runs += [asyncio.run(_measure(port, clients=n, seconds=given.seconds)) for n in CLIENTS]
                runs += [
                    asyncio.run(_measure(port, clients=SWAP_CLIENTS, seconds=12.0, world=w)) for w in (None, world)
                ]
    report = _report(runs, bare, busy=busy, snapshot_bytes=world.snapshot_bytes)
    print(_table_of(report))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**report, "runs": [asdict(run) for run in runs]}, indent=2) + "\n")


# -- the server, in a process of its own --


@contextmanager
def _server(world: World) -> Iterator[int]:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(world.url, world.folder, theirs))
    process.start()
    try:
        port: int = ours.recv()
        yield port
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(15)


def _serve(url: str, folder: Path, pipe: Pipe) -> None:
    configure_logging("console", "warning", process="score")
    stop, health = Stop(), Health()
    score = Score(postgres_url=url, snapshots=folder, settings=ScoreSettings(port=0), health=health, stop=stop)
    pipe.send(score.port)
    with stop.on_signals():
        score.run()


# -- the clients --


async def _measure(port: int, *, clients: int, seconds: float, world: World | None = None) -> Run:
    """Closed loops for `seconds`; with a world a newer snapshot goes live every SWAP_EVERY_S."""
    await _until_ready(port)
    end = time.perf_counter() + seconds
    swapping = asyncio.create_task(_swap(world, end))
    loops = [_client(port, end, random.Random(seed)) for seed in range(clients)]
    waits = np.concatenate(await asyncio.gather(*loops)) * 1e3
    return Run(
        clients=clients,
        swap_every_s=SWAP_EVERY_S if world else None,
        seconds=seconds,
        requests=len(waits),
        swaps=await swapping,
        p50_ms=float(np.percentile(waits, 50)),
        p99_ms=float(np.percentile(waits, 99)),
        worst_ms=float(waits.max()),
    )


async def _client(port: int, end: float, choice: random.Random) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    waits = []
    while (started := time.perf_counter()) < end:
        user = "nobody" if choice.random() < 0.01 else f"user-{choice.randrange(USERS)}"
        status, _ = await _request(reader, writer, "POST /v1/score", json.dumps({"user_id": user}).encode())
        if status != 200:
            raise RuntimeError(f"a request was answered {status}")
        waits.append(time.perf_counter() - started)
    writer.close()
    await writer.wait_closed()
    return waits


async def _request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str, body: bytes = b""
) -> tuple[int, bytes]:
    writer.write(f"{what} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    size = int(head.partition("content-length: ")[2].split("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(size)


async def _until_ready(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (await _request(reader, writer, "GET /readyz"))[0] != 200:
        await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()


async def _swap(world: World | None, end: float) -> int:
    swaps = 0
    while world is not None and time.perf_counter() + SWAP_EVERY_S < end:
        await asyncio.sleep(SWAP_EVERY_S / 2 if swaps == 0 else SWAP_EVERY_S)
        await asyncio.to_thread(world.publish)
        swaps += 1
    return swaps


# -- figures --


def _report(
    runs: Sequence[Run], bare: dict[int, dict[str, float]], *, busy: float, snapshot_bytes: int
) -> dict[str, Any]:
    plain = [run for run in runs if run.swap_every_s is None and run.seconds < 12.0]
    levels = {n: _medians([run for run in plain if run.clients == n]) for n in CLIENTS}
    calm = _medians([run for run in runs if run.swap_every_s is None and run.seconds >= 12.0])
    swapped = _medians([run for run in runs if run.swap_every_s is not None])
    return {
        "clients": levels,
        "calm": calm,
        "swapped": swapped,
        "bare": bare,
        "ratios": {
            "p99 with swaps / without": swapped["p99_ms"] / calm["p99_ms"],
            "worst with swaps / without": swapped["worst_ms"] / calm["worst_ms"],
            "requests/s with swaps / without": swapped["per_s"] / calm["per_s"],
            "requests/s, 64 clients / 1": levels[64]["per_s"] / levels[1]["per_s"],
            "p50 of 1 client / bare read and pass": levels[1]["p50_ms"] / sum(bare[1].values()),
            "p50 of 64 clients / bare read and pass of 64": levels[64]["p50_ms"] / sum(bare[64].values()),
        },
        "machine": {
            "cores": psutil.cpu_count(),
            "busy_before_percent": busy,
            "torch": torch.__version__,
            "users": USERS,
            "events_a_user": EVENTS,
            "snapshot_bytes": snapshot_bytes,
        },
    }


def _medians(runs: Sequence[Run]) -> dict[str, float]:
    names = ("per_s", "p50_ms", "p99_ms", "worst_ms")
    return {name: median(getattr(run, name) for run in runs) for name in names} | {"runs": len(runs)}


def _table_of(report: dict[str, Any]) -> str:
    rows = [(f"{n} clients", report["clients"][n]) for n in CLIENTS]
    rows += [
        (f"{SWAP_CLIENTS} clients, 12 s", report["calm"]),
        (f"{SWAP_CLIENTS}, a swap every {SWAP_EVERY_S:.0f} s", report["swapped"]),
    ]
    lines = [f"{'':28}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'worst ms':>10}"]
    lines += [
        f"{name:28}{r['per_s']:>12,.0f}{r['p50_ms']:>9,.1f}{r['p99_ms']:>9,.1f}{r['worst_ms']:>10,.1f}"
        for name, r in rows
    ]
    lines += [
        f"{n} rows bare: read {b['read_ms']:.1f} ms, pass {b['pass_ms']:.1f} ms" for n, b in report["bare"].items()
    ]
    lines += [f"{value:>8.2f}  {name}" for name, value in report["ratios"].items()]
    return "\n".join([*lines, f"machine busy before: {report['machine']['busy_before_percent']:.0f} %"])


_STREAM = Stream(topic="events.user", partition=0, topic_id="benchmark", cluster_id="benchmark")
_NOW = log.time_of(0)


def _table(rows: Sequence[tuple[str, int, str]], first: int) -> pa.Table:
    n = len(rows)
    times = pa.array([at for _, at, _ in rows], pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    none = pa.nulls(n, pa.string())
    columns = [
        pa.array(range(first, first + n), pa.int64()),
        times,
        times,
        pa.array([str(first + i) for i in range(n)]),
        pa.array([user for user, _, _ in rows]),
        pa.array([name for _, _, name in rows]),
        none,
        pa.nulls(n, pa.int64()),
        none,
        none,
        pa.array(["benchmark"] * n),
    ]
    return pa.table(columns, schema=log.EVENT_ROWS)


if __name__ == "__main__":
    main()
