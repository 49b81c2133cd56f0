"""How fast `driftline score` answers, alone and crowded, with and without models being swapped.

    python -m benchmarks.scoring --json build/bench/scoring.json
    python -m benchmarks.scoring --learner sdim --json build/bench/scoring-sdim.json

Postgres, the server (a process of its own) and the clients share this machine. Clients are closed loops over
kept-open connections: each sends its next request when its answer is there. Ratios mean more than figures,
which depend on what else the machine does. With SDIM requests name CANDIDATES items each, every user has a signature
table that lacks the last few events, and with each swap the item vectors are others: the tables of the users seen
last are written anew behind it, as many in 5 s as `train` writes, the rest are built from sequences.
`benchmarks.scoring_histories` measures SDIM's answers by length of history.
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import psutil
import torch

from benchmarks.scoring_worlds import CATALOGUE, Row, World, next_event_states, ranking_states, shopping
from benchmarks.servers import create_database, postgres
from learners.contract.made_up.streams import random_histories
from learners.registry import build
from runtime.admin_app import Health
from runtime.lifecycle import Stop
from runtime.logs import configure_logging
from runtime.settings import ScoreSettings
from scoring.heads import user_state
from scoring.heads.request_decoding import Question, candidates_of, query_of
from scoring.serve.process import Score
from storage import migrate
from storage.log import offsets
from storage.sequences import history_reader
from storage.sequences.user_sequences import HistoryAsk

USERS: Final = 5_000
EVENTS: Final = 48
"""Events a user, written in BATCHES batches: a user's state is in as many rows."""
BATCHES: Final = 4
CLIENTS: Final = (1, 8, 64)
SWAP_CLIENTS: Final = 8
SWAP_EVERY_S: Final = 5.0
QUANTILES: Final = (0.1, 0.5, 0.9)
CANDIDATES: Final = 50
NEW_EVENTS: Final = 3
"""Behind the cursor of each user's table."""
PORTION: Final = 256
"""Tables that `train` writes in SWAP_EVERY_S."""


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


class Asked:
    """A filled world, and what is asked of it."""

    def __init__(self, url: str, folder: Path, learner: str) -> None:
        ranks = learner == "sdim"
        states = ranking_states({}) if ranks else next_event_states()
        self.world = World(url, folder, learner=learner, states=states, options={})
        self._ranks = ranks
        self._bought: dict[str, list[Row]] = {}
        self._next_offset = 0
        self._names = [f"user-{n}" for n in range(USERS)]

    def fill(self) -> None:
        if self._ranks:
            self._bought = shopping(7, self._names, EVENTS)
            rows = list(self._bought.values())
        else:
            found = random_histories(7, USERS, EVENTS)
            rows = [
                [Row(user, int(at), str(name)) for at, name in zip(history.at, history.type, strict=True)]
                for user, history in zip(self._names, found, strict=True)
            ]
        share = EVENTS // BATCHES
        for batch in range(BATCHES):
            self._next_offset = self.world.write(
                [one for own in rows for one in own[batch * share : (batch + 1) * share]]
            )
        self.world.publish()
        if self._ranks:
            self.world.write_tables(self.world.published(), self._bought, self._next_offset)
            newer = shopping(8, self._names, EVENTS + NEW_EVENTS).values()
            self.world.write([one for own in newer for one in own[EVENTS:]])
        self.world.settle()

    def publish(self) -> None:
        """The next snapshot, and a portion of tables of its version."""
        self.world.publish()
        if self._ranks:
            some = random.Random(self.world.step).sample(self._names, PORTION)
            self.world.write_tables(
                self.world.published(), {user: self._bought[user] for user in some}, self._next_offset
            )

    def restore(self) -> None:
        """Every user's table again, of the version that serves."""
        if self._ranks:
            self.world.write_tables(self.world.published(), self._bought, self._next_offset)
            self.world.settle()

    def body(self, choice: random.Random) -> bytes:
        """A request."""
        user = "nobody" if choice.random() < 0.01 else choice.choice(self._names)
        if not self._ranks:
            return json.dumps({"user_id": user}).encode()
        return json.dumps({"user_id": user, "candidates": some_items(choice, CANDIDATES), "top": 10}).encode()

    def bare_pass_ms(self, rows: int) -> dict[str, float]:
        """Milliseconds of the two things an answer cannot do without: reading user state, and the model's pass."""
        questions = [Question(name, None) for name in self._names[:rows]]
        one = self._bare_ranking(questions) if self._ranks else self._bare_next_event(questions)
        reads, passes = [], []
        for _ in range(9):
            started = time.perf_counter()
            found = one[0]()
            read = time.perf_counter()
            one[1](found)
            reads.append(read - started)
            passes.append(time.perf_counter() - read)
        return {"read_ms": 1e3 * median(reads), "pass_ms": 1e3 * median(passes)}

    def _bare_next_event(self, questions: Sequence[Question]) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        learner = build("prompttpp")
        tensors = {name: torch.from_numpy(array) for name, array in self.world.state.items()}
        learner.load({n.removeprefix("learner/"): t for n, t in tensors.items() if n.startswith("learner/")})
        learner.load(learner.serving_state())
        asks = [HistoryAsk(user=q.user, before=q.before, last_n=learner.needs.last_n) for q in questions]

        def read() -> Any:
            with self.world.engine.connect() as connection:
                return history_reader.read(connection, asks, offsets.watermark(connection))

        return read, lambda found: learner.predict(*query_of(questions, found, QUANTILES))

    def _bare_ranking(self, questions: Sequence[Question]) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
        published, choice = self.world.published(), random.Random(1)
        candidates = candidates_of([some_items(choice, CANDIDATES) for _ in questions])

        def read() -> Any:
            with self.world.engine.connect() as connection:
                return user_state.read(connection, published=published, learner="sdim", questions=questions)

        def rank(found: Any) -> Any:
            shorts = user_state.context_of([one.short for one in found])
            return published.rank_rows([one.table for one in found], shorts, candidates)

        return read, rank


def some_items(choice: random.Random, count: int) -> list[str]:
    """Of the catalogue."""
    return [f"item {number}" for number in choice.sample(range(CATALOGUE), count)]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--learner", choices=("prompttpp", "sdim"), default="prompttpp")
    arguments.add_argument("--json", type=Path, help="file for the figures")
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=5.0, help="of one run; those with swaps take 12 s")
    given = arguments.parse_args()
    busy = psutil.cpu_percent(interval=1.0)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, postgres(Path(folder)) as admin:
        os.chmod(folder, 0o755)
        url = create_database(admin, "scoring")
        migrate.upgrade(url)
        asked = Asked(url, Path(folder) / "snapshots", given.learner)
        asked.fill()
        bare = {rows: asked.bare_pass_ms(rows) for rows in CLIENTS}
        with server(asked.world) as port:
            asyncio.run(_measure(port, asked, clients=8, seconds=2.0))
            runs = []
            for _ in range(given.runs):
                runs += [asyncio.run(_measure(port, asked, clients=n, seconds=given.seconds)) for n in CLIENTS]
                runs.append(asyncio.run(_measure(port, asked, clients=SWAP_CLIENTS, seconds=12.0)))
                # Swaps come last in a round: behind them most tables are of versions that serve no more.
                with _publisher(asked) as swap:
                    runs.append(asyncio.run(_measure(port, asked, clients=SWAP_CLIENTS, seconds=12.0, swap=swap)))
                asked.restore()
    report = _report(runs, bare, busy=busy, snapshot_bytes=asked.world.snapshot_bytes)
    print(_table_of(report))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps({**report, "runs": [asdict(run) for run in runs]}, indent=2) + "\n")


# -- the server, in a process of its own --


@contextmanager
def server(world: World) -> Iterator[int]:
    """Port of a `score` over the world, while the block runs."""
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(world.url, world.folder, world.learner, theirs))
    process.start()
    try:
        port: int = ours.recv()
        yield port
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(15)


def _serve(url: str, folder: Path, learner: str, pipe: Pipe) -> None:
    configure_logging("console", "warning", process="score")
    stop, health, settings = Stop(), Health(), ScoreSettings(port=0, learner=learner)
    score = Score(postgres_url=url, snapshots=folder, settings=settings, health=health, stop=stop)
    pipe.send(score.port)
    with stop.on_signals():
        score.run()


@contextmanager
def _publisher(asked: Asked) -> Iterator[Callable[[], None]]:
    """Publishes when called, in a process of its own: what `train` does must not slow the clients' clocks down."""
    ours, theirs = mp.Pipe()
    process = mp.get_context("fork").Process(target=_publish, args=(asked, theirs))
    process.start()

    def publish() -> None:
        ours.send(True)
        asked.world.step = ours.recv()

    try:
        yield publish
    finally:
        ours.send(False)
        process.join(15)


def _publish(asked: Asked, pipe: Pipe) -> None:
    while pipe.recv():
        asked.publish()
        pipe.send(asked.world.step)


# -- the clients --


async def _measure(
    port: int, asked: Asked, *, clients: int, seconds: float, swap: Callable[[], None] | None = None
) -> Run:
    """Closed loops for `seconds`; with swaps a newer snapshot goes live every SWAP_EVERY_S."""
    await until_ready(port)
    end = time.perf_counter() + seconds
    swapping = asyncio.create_task(_swap(swap, end))
    loops = [_client(port, end, asked, random.Random(seed)) for seed in range(clients)]
    waits = np.concatenate(await asyncio.gather(*loops)) * 1e3
    return Run(
        clients=clients,
        swap_every_s=SWAP_EVERY_S if swap else None,
        seconds=seconds,
        requests=len(waits),
        swaps=await swapping,
        p50_ms=float(np.percentile(waits, 50)),
        p99_ms=float(np.percentile(waits, 99)),
        worst_ms=float(waits.max()),
    )


async def _client(port: int, end: float, asked: Asked, choice: random.Random) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    waits = []
    while (started := time.perf_counter()) < end:
        status, _ = await request(reader, writer, "POST /v1/score", asked.body(choice))
        if status != 200:
            raise RuntimeError(f"a request was answered {status}")
        waits.append(time.perf_counter() - started)
    writer.close()
    await writer.wait_closed()
    return waits


async def request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str, body: bytes = b""
) -> tuple[int, bytes]:
    writer.write(f"{what} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    size = int(head.partition("content-length: ")[2].split("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(size)


async def until_ready(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (await request(reader, writer, "GET /readyz"))[0] != 200:
        await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()


async def _swap(publish: Callable[[], None] | None, end: float) -> int:
    swaps = 0
    while publish is not None and time.perf_counter() + SWAP_EVERY_S < end:
        await asyncio.sleep(SWAP_EVERY_S / 2 if swaps == 0 else SWAP_EVERY_S)
        await asyncio.to_thread(publish)
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


if __name__ == "__main__":
    main()
