"""What serves: item vectors, their signatures and the weights around them, unchanged until the next publication.

Reference: Cao et al., CIKM 2022, 4.4, https://arxiv.org/abs/2205.10249: a table server sums behaviours, and the ranker
hashes candidates, with the SAME vectors. A version is these vectors; a table of one version says nothing to
another. Within a version nothing moves, not even for an item that came later: it is UNKNOWN until the next.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from learners.blocks.signature_table import SignatureTable
from learners.blocks.simhash import hash_id, signatures
from learners.contract.batch import Candidates, Context, Ints, Query, Strings
from learners.contract.protocol import ForeignState, State
from learners.contract.state_codec import below, check_like, from_json_tensor, json_tensor, prefixed
from learners.contract.string_index import UNKNOWN
from learners.models.sdim.network import (
    EncodedQuery,
    Items,
    Weights,
    ask,
    initial_weights,
    logits,
    with_tables,
)
from learners.models.sdim.spec import SDIMConfig


class StaleRow(LookupError):
    """The user's row does not stand for what is asked: rebuild the table from the user's sequence."""


@dataclass(frozen=True, kw_only=True)
class SignatureRow:
    """A user's table as it is stored: key (user, embedding, hash_id)."""

    user: str
    embedding: str
    """Version of the item vectors, `EmbeddingVersion.embedding`."""
    hash_id: str
    table: SignatureTable
    events: int
    """Behaviours in the table: the user's newest, at most `last_n`."""
    last_at: int
    """Microseconds; event time of the newest behaviour in the table."""
    oldest: tuple[tuple[int, str], ...]
    """(event time, item) of the oldest behaviours in it, oldest first: what leaves a full window next."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingVersion:
    """One version. Frozen; the next publication makes another."""

    number: int
    """0: before any learning."""
    config: SDIMConfig
    matrix: Tensor
    """[G, tau, D] of the hash; the same in all versions."""
    names: tuple[str, ...]
    """Items of the rows 1, 2, ..; row 0 is UNKNOWN."""
    vectors: Tensor
    """[I, D]"""
    popularity: Tensor
    """[I] log-frequency."""
    weights: Weights
    embedding: str = field(init=False)
    """Name of the version: its number and a digest of its vectors, so that a branch taken back to an older state
    does not meet tables of the future it left."""
    hash_id: str = field(init=False)
    centre: Tensor = field(init=False)
    """[D] mean of the vectors, taken away before hashing."""
    signatures: Tensor = field(init=False)
    """[I, G]"""
    rows: Mapping[str, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.vectors.contiguous().numpy().tobytes(), digest_size=8)
        for name in self.names:
            digest.update(name.encode("utf-8", "surrogatepass") + b"\x00")
        set_field = object.__setattr__
        set_field(self, "embedding", f"{self.number}-{digest.hexdigest()}")
        set_field(self, "hash_id", hash_id(self.matrix))
        set_field(self, "centre", self.vectors.double().mean(0).float())
        set_field(self, "signatures", self.sign(self.vectors))
        set_field(self, "rows", {name: row for row, name in enumerate(self.names, start=1)})

    def sign(self, vectors: Tensor) -> Tensor:
        """[..., D] -> [..., G]: signatures around this version's centre."""
        return signatures(vectors - self.centre, self.matrix)

    def numbers(self, names: Sequence[str]) -> Ints:
        """Row of each item; UNKNOWN (0) for one this version does not know."""
        return np.asarray([self.rows.get(name, UNKNOWN) for name in names], dtype=np.int64)

    def items(self, names: Sequence[str]) -> Items:
        """The items of a step, as this version has them."""
        row = torch.from_numpy(self.numbers(names))
        vectors = self.vectors[row]
        return Items(vectors=vectors, values=vectors, signatures=self.signatures[row], popularity=self.popularity[row])

    @torch.no_grad()
    def rank(self, asked: EncodedQuery) -> Tensor:
        """[B, C] logits from whole windows."""
        return logits(self.weights, self.config, asked, self.items(asked.names))

    def table(self, items: Sequence[str]) -> SignatureTable:
        """A table of these behaviours."""
        return SignatureTable.of(*self.parts(items), self.config.buckets)

    def parts(self, items: Sequence[str]) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.float32]], Ints]:
        """Vectors [N, D] and signatures [N, G] as a table adds and takes them away."""
        row = torch.from_numpy(self.numbers(items))
        return self.vectors[row].numpy(), self.signatures[row].numpy()

    # State

    def state(self) -> State:
        """Tensors; what follows from the others (centre, signatures, names of versions) is left out."""
        return {
            "number": torch.tensor(self.number),
            "matrix": self.matrix.clone(),
            "names": json_tensor(list(self.names)),
            "vectors": self.vectors.clone(),
            "popularity": self.popularity.clone(),
            **{f"weights.{name}": weight.clone() for name, weight in self.weights.items()},
        }

    @classmethod
    def from_state(cls, config: SDIMConfig, state: State) -> EmbeddingVersion:
        """:raises ForeignState: not a published version of this configuration."""
        own = {"number", "matrix", "names", "vectors", "popularity"}
        like = prefixed("weights.", initial_weights(config))
        if set(state) != own | set(like):
            raise ForeignState(f"names of a published version differ: {sorted(set(state) ^ (own | set(like)))[:8]}")
        names = from_json_tensor(state["names"])
        if not isinstance(names, list) or len(set(names)) != len(names):
            raise ForeignState("the names of published items are not distinct")
        like |= {
            "number": torch.tensor(0),
            "matrix": torch.zeros(config.signatures, config.tau, config.width),
            "vectors": torch.zeros(len(names) + 1, config.width),
            "popularity": torch.zeros(len(names) + 1),
        }
        for name, tensor in like.items():
            check_like(name, state[name], tensor)
        found = below("weights.", state)
        return cls(
            number=int(state["number"]),
            config=config,
            matrix=state["matrix"].clone(),
            names=tuple(str(name) for name in names),
            vectors=state["vectors"].clone(),
            popularity=state["popularity"].clone(),
            # In our own order of names, not the state's.
            weights={name: found[name].clone() for name in initial_weights(config)},
        )

    # Serving without a long history

    def moved_on(self, row: SignatureRow, later: Sequence[tuple[int, str]], *, now: int) -> SignatureTable:
        """The user's table at `now`: the row and the behaviours that came after the row's cursor.

        :param later: (event time in microseconds, item) of the behaviours in [row's cursor, watermark), sorted by
            event time; those at or after `now` are left out, as everywhere.
        :raises StaleRow: another version or hash; `now` lies inside the row; or more behaviours must leave the
            window than the row's reserve names.
        """
        if (row.embedding, row.hash_id) != (self.embedding, self.hash_id):
            raise StaleRow(f"row of {row.embedding}/{row.hash_id}, asked of {self.embedding}/{self.hash_id}")
        if row.events and now <= row.last_at:
            raise StaleRow(f"the row holds behaviours up to {row.last_at}, asked as of {now} (microseconds)")
        seen = [event for event in later if event[0] < now]
        leaving = max(0, row.events + len(seen) - self.config.last_n)
        # Of equal times the row's own go first: they came first.
        order = sorted(
            [(at, 0, n) for n, (at, _) in enumerate(row.oldest)] + [(at, 1, n) for n, (at, _) in enumerate(seen)]
        )
        # Behind the last one named nobody knows whether an unnamed behaviour is older than a late one.
        named = [place for place, (_, new, _) in enumerate(order, start=1) if not new]
        if leaving > (len(order) if len(row.oldest) == row.events else max(named, default=0)):
            raise StaleRow(f"{leaving} behaviours leave the window, the row names {len(row.oldest)}")
        gone, late = order[:leaving], {n for _, new, n in order[:leaving] if new}
        table = row.table.copy()
        table.take_away(*self.parts([row.oldest[n][1] for _, new, n in gone if not new]))
        table.add(*self.parts([item for n, (_, item) in enumerate(seen) if n not in late]))
        return table

    def rank_row(self, table: SignatureTable, short: Context, candidates: Strings) -> Tensor:
        """Logits of one user's candidates: `rank_rows` of one row.

        :param candidates: [C] item ids; :returns: [C] float64.
        """
        shape = (1, len(candidates))
        shown = Candidates(item=candidates[None, :], mask=np.ones(shape, np.bool_), log_q=np.zeros(shape))
        return self.rank_rows([table], short, shown)[0]

    @torch.no_grad()
    def rank_rows(self, tables: Sequence[SignatureTable], short: Context, candidates: Candidates) -> Tensor:
        """Logits of B users' candidates: no long history is read.

        :param tables: B, as of the time asked, from `moved_on`.
        :param short: B stacks, each user's newest `short_n` behaviours (or more) before the time asked.
        :returns: [B, C] float64; 0 where the mask of `candidates` is False.
        """
        rows, n = np.arange(len(tables), dtype=np.int64), self.config.short_n
        query = Query(stack=rows, visible=np.diff(short.offsets), now=np.zeros_like(rows))
        asked = ask(short, query, candidates, last_n=n, short_n=n)
        sums = torch.from_numpy(np.stack([table.sums for table in tables]))
        counts = torch.from_numpy(np.stack([table.counts for table in tables]).astype(np.float32))
        return with_tables(self.weights, self.config, asked, self.items(asked.names), sums, counts)


def first(config: SDIMConfig, matrix: Tensor, unknown: Tensor) -> EmbeddingVersion:
    """The version before any learning: it knows no item."""
    return EmbeddingVersion(
        number=0,
        config=config,
        matrix=matrix,
        names=(),
        vectors=unknown.clone().unsqueeze(0),
        popularity=torch.zeros(1),
        weights=initial_weights(config),
    )


def next_version(
    before: EmbeddingVersion, names: Sequence[str], vectors: Tensor, popularity: Tensor, weights: Weights
) -> EmbeddingVersion:
    """The next version, with copies of what has been learnt.

    :param names: items of the rows 1, 2, ..; :param vectors: [I, D]; :param popularity: [I].
    """
    return replace(
        before,
        number=before.number + 1,
        names=tuple(names),
        vectors=vectors.detach().clone(),
        popularity=popularity.clone(),
        weights={name: weight.detach().clone() for name, weight in weights.items()},
    )


def serving(state: Mapping[str, Tensor], config: SDIMConfig) -> EmbeddingVersion:
    """The published version inside a `serving_state()` (or a `state()`).

    :raises ForeignState: there is none.
    """
    return EmbeddingVersion.from_state(config, below("published.", state))
