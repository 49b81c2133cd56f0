"""What a request costs: from a stored row, nothing depends on the length of the history (Cao et al., 2022, table 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter

import numpy as np
import pytest
import torch

from learners.blocks.signature_table import read
from learners.contract.batch import Candidates, Query
from learners.contract.made_up.shop import Purchase, context_of
from learners.contract.made_up.streams import words
from learners.contract.state_codec import prefixed
from learners.models.sdim.embedding_version import EmbeddingVersion, SignatureRow, next_version
from learners.models.sdim.learner import SDIM
from learners.models.sdim.network import initial_weights
from learners.models.sdim.spec import SDIMConfig

ITEMS = 2_000
NAMES = [f"item {n}" for n in range(ITEMS)]
CANDIDATES = words(NAMES[:1000])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def published(last_n: int, width: int) -> EmbeddingVersion:
    config = SDIMConfig(last_n=last_n, width=width, table_users=0)
    vectors = torch.randn(ITEMS + 1, width, generator=torch.Generator().manual_seed(0))
    return next_version(SDIM(config).published, NAMES, vectors, torch.zeros(ITEMS + 1), initial_weights(config))


def row_of(served: EmbeddingVersion, events: list[Purchase]) -> SignatureRow:
    return SignatureRow(
        user="user",
        embedding=served.embedding,
        hash_id=served.hash_id,
        table=served.table([event.item for event in events]),
        events=len(events),
        last_at=events[-1].at,
        oldest=tuple((event.at, event.item) for event in events[:32]),
    )


def history(length: int) -> list[Purchase]:
    return [Purchase(n, n, "user", NAMES[n * 7 % ITEMS]) for n in range(length)]


def fastest(*calls: Callable[[], object], rounds: int = 40) -> list[float]:
    """Seconds of each call at its best, the calls taken in turn so that a busy machine meets all of them."""
    best = [np.inf] * len(calls)
    for _ in range(rounds):
        for number, call in enumerate(calls):
            started = perf_counter()
            call()
            best[number] = min(best[number], perf_counter() - started)
    return best


def request(served: EmbeddingVersion, events: list[Purchase]) -> Callable[[], object]:
    """Three behaviours came after the row; the newest 16 are at hand."""
    row, newest = row_of(served, events), len(events)
    later = [(newest + n, NAMES[n]) for n in range(3)]
    short = context_of([events[-16:]])
    return lambda: served.rank_row(served.moved_on(row, later, now=2**62), short, CANDIDATES)


@pytest.mark.slow
def test_a_request_costs_the_same_whether_the_history_is_a_thousand_or_fifty_thousand_long() -> None:
    """Seen: 1.75 and 1.78 ms for 1,000 candidates, the whole network included."""
    calls = [request(published(length + 8, 32), history(length)) for length in (1_000, 50_000)]
    short, long = fastest(*calls)
    assert long / short == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_a_request_is_three_times_faster_than_attention_over_the_whole_history() -> None:
    """The interest alone, 1,000 candidates, 1,024 behaviours, width 128; items' signatures are stored. Seen: 4.7."""
    served, events = published(1_024, 128), history(1_024)
    items = served.items([event.item for event in events])
    asked = served.items(CANDIDATES.tolist())
    table = torch.from_numpy(row_of(served, events).table.sums).unsqueeze(0)

    def signed() -> object:
        return read(table, asked.signatures.unsqueeze(0), torch.zeros(1, dtype=torch.int64))

    def attended() -> object:
        return (asked.vectors @ items.vectors.T / 0.5).softmax(-1) @ items.vectors

    signature_s, attention_s = fastest(signed, attended)
    assert attention_s / signature_s >= 3.0


@pytest.mark.slow
def test_ranking_from_a_row_is_faster_than_from_the_sequence() -> None:
    served, events = published(50_000, 32), history(50_000)
    context, count = context_of([events]), np.asarray([len(events)], dtype=np.int64)
    shown = Candidates(item=CANDIDATES[None, :], mask=np.ones((1, 1000), bool), log_q=np.zeros((1, 1000)))
    learner = SDIM(served.config)
    learner.load({"meta": learner.serving_state()["meta"], **prefixed("published.", served.state())})
    query = Query(stack=count * 0, visible=count, now=count * 0, candidates=shown)
    row_s, sequence_s = fastest(request(served, events), lambda: learner.predict(context, query), rounds=3)
    assert sequence_s / row_s > 3.0
