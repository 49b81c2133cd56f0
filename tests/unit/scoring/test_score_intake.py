"""Requests wait for their batch, within bounds."""

from __future__ import annotations

import threading

import pytest

from contracts.scoring import ScoreRequest
from scoring.errors import Overloaded, Stopping
from scoring.serve.request_queue import RequestQueue, Waiting


def waiting(user: str = "ann") -> Waiting:
    return Waiting(ScoreRequest(user_id=user), lambda reply: None)


def intake(*, batch_size: int = 2, batch_wait_s: float = 0.0, max_queue: int = 5) -> RequestQueue:
    return RequestQueue(batch_size=batch_size, batch_wait_s=batch_wait_s, max_queue=max_queue)


def test_batches_are_full_and_in_order_of_arrival() -> None:
    queue = intake()
    requests = [waiting(str(n)) for n in range(5)]
    for one in requests:
        queue.put(one)
    assert [queue.take(1.0) for _ in range(3)] == [requests[:2], requests[2:4], requests[4:]]
    assert queue.take(0.0) == []


def test_a_batch_that_fills_does_not_wait() -> None:
    queue = intake(batch_wait_s=60.0)
    queue.put(waiting())
    late = threading.Timer(0.01, lambda: queue.put(waiting()))
    late.start()
    assert len(queue.take(60.0)) == 2
    late.join()


def test_a_full_queue_refuses() -> None:
    queue = intake(max_queue=1)
    queue.put(waiting())
    with pytest.raises(Overloaded, match="1 requests are waiting"):
        queue.put(waiting())


def test_a_closed_queue_takes_nothing_in_and_gives_out_what_it_has() -> None:
    queue = intake()
    queue.put(waiting())
    queue.close()
    with pytest.raises(Stopping):
        queue.put(waiting())
    assert len(queue.take(60.0)) == 1
    assert queue.take(60.0) == []
