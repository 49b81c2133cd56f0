"""SDIM as a learner: predict, score, learn, publish, and a state to go on from.

The paper's model is in `models/sdim.py`, what serves in `published.py`; here are the optimisers, the growing item
table and the publish clock. `predict` answers as the published version does, because that is what users get; the
weights since then train beside it and are scored as "fresh_<name>". In training the long branch sums published
vectors by published signatures, and passes the gradient on to the fresh rows: x = P + (E - E.detach()).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from learners.baselines.own_count import choices, ranked, ranking
from learners.blocks.lazy_tables import rows_adagrad
from learners.blocks.optimizers import adam, clip
from learners.blocks.popularity_counts import PopularityCounts
from learners.blocks.signature_table import build, read_counts
from learners.blocks.simhash import hash_matrix, signatures
from learners.contract.batch import Batch, Candidates, Context, Ints, Query, Target
from learners.contract.needs import Needs
from learners.contract.protocol import ForeignState, Losses, Prediction, Report, ServingOnly, State
from learners.contract.randomness import digest, uniform
from learners.contract.state_codec import (
    below,
    check_config,
    check_like,
    check_names,
    from_json_tensor,
    json_tensor,
    prefixed,
)
from learners.contract.string_index import UNKNOWN, UNKNOWN_NAME, StringIndex, rows_for
from learners.models.sdim.cache import UserTables
from learners.models.sdim.embedding_version import EmbeddingVersion, SignatureRow, first, next_version
from learners.models.sdim.network import (
    EncodedQuery,
    Items,
    Weights,
    ask,
    initial_weights,
    item_row,
    logits,
)
from learners.models.sdim.spec import SPEC, SDIMConfig
from learners.tasks.ranking_measures import chosen_of, measures, rank_loss

NOT_FINITE: Final = "a gradient was not finite: no weight moved"


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One pass through the fresh weights."""

    logits: Tensor
    """[B, C] float64."""
    leaves: Weights
    """What the gradient goes to; "items" are the embeddings of `rows`."""
    rows: Ints
    """[R] distinct rows of the item table."""


@dataclass(frozen=True, kw_only=True)
class RankingMemo:
    """What `score` and `learn` use again of `predict`."""

    asked: EncodedQuery
    candidates: Candidates
    step: int
    fresh: list[Forward] = field(default_factory=list)
    """Made by `score`, gone back through by `learn`."""


class SDIM:
    """The learner; see `learners/contract/protocol.py` for what each verb may touch."""

    version: Final = SPEC.version

    def __init__(self, config: SDIMConfig | None = None, name: str = SPEC.name) -> None:
        self.name: Final = name
        self.config: Final = config or SDIMConfig()
        c = self.config
        self._items = StringIndex(c.max_items)
        self._popularity = PopularityCounts(c.max_items)
        self._table = torch.zeros(rows_for(1), c.width)
        self._table[UNKNOWN] = item_row(c, UNKNOWN_NAME)
        self._weights = initial_weights(c)
        self._moments: Weights | None = initial_moments(c, len(self._table))
        self._steps = self._since = 0
        """Steps learnt, ever and since the last publication."""
        matrix = hash_matrix(c.seed, signatures=c.signatures, tau=c.tau, width=c.width)
        self._published = first(c, matrix, self._table[UNKNOWN])
        self._tables = UserTables(c.table_users, last_n=c.last_n, reserve=c.reserve)

    @property
    def needs(self) -> Needs:
        return SPEC.needs(self.config)

    def config_dict(self) -> dict[str, int | float]:
        """For the manifest."""
        return self.config.config_dict()

    # Tables for the serving cache

    @property
    def published(self) -> EmbeddingVersion:
        """What serves now: `embedding` and `hash_id` are the keys of its tables."""
        return self._published

    @property
    def touched(self) -> frozenset[str]:
        """Users whose sequence the newest step made longer: their stored rows are out of date."""
        return self._tables.touched

    def signature_rows(self, users: Iterable[str], published: EmbeddingVersion | None = None) -> list[SignatureRow]:
        """Rows for the users that are held, each as of the end of the newest step that touched its user. For the
        others see `without_window`.

        :param published: the version of this learner that serves; None: the newest.
        """
        return self._tables.rows(users, published or self._published)

    def without_window(self, users: Iterable[str]) -> list[str]:
        """The users of whom nothing is held: give their sequences to `take_sequences`, or let the reader rebuild."""
        return self._tables.missing(users)

    def take_sequences(self, users: Sequence[str], sequences: Context) -> None:
        """Holds these users from now on.

        :param sequences: stack n: the newest `last_n` behaviours of user n as of the end of the newest step.
        """
        self._tables.take(users, sequences)

    # Predict and score

    def predict(self, context: Context, query: Query) -> Prediction:
        """Logits of the published version.

        :raises ValueError: there are no candidates to rank.
        """
        candidates = ranked(query)
        asked = ask(context, query, candidates, last_n=self.config.last_n, short_n=self.config.short_n)
        return ranking(self._published.rank(asked), RankingMemo(asked=asked, candidates=candidates, step=self._steps))

    def score(self, prediction: Prediction, target: Target) -> Losses:
        """The published version's losses, and "fresh_<name>" of the weights since."""
        memo = self._memo(prediction)
        assert prediction.logits is not None
        losses = dict(measures(prediction.logits, memo.candidates, target))
        if self._moments is not None:
            if not memo.fresh:
                memo.fresh.append(self._forward(memo.asked, grad=torch.is_grad_enabled() and not self._unknown_turn))
            fresh = measures(memo.fresh[0].logits, memo.candidates, target)
            losses |= {f"fresh_{name}": loss for name, loss in fresh.items()}
        return losses

    def _memo(self, prediction: Prediction) -> RankingMemo:
        memo = prediction.memo
        if not isinstance(memo, RankingMemo) or memo.step != self._steps:
            raise ValueError("the prediction was not made by this learner with the weights it has now")
        return memo

    @property
    def _unknown_turn(self) -> bool:
        return self._steps % self.config.unknown_every == self.config.unknown_every - 1

    def _forward(self, asked: EncodedQuery, *, grad: bool, learning: bool = False) -> Forward:
        """One pass through the fresh weights; `learning` hides items on the turn for that."""
        names = self._hidden(asked.names) if learning and self._unknown_turn else asked.names
        strings = np.empty(len(names), dtype=np.object_)
        strings[:] = names
        rows, place = np.unique(self._items.numbers(strings), return_inverse=True)
        leaves = {name: weight.detach().requires_grad_(grad) for name, weight in self._weights.items()}
        leaves["items"] = self._table[torch.from_numpy(rows)].requires_grad_(grad)
        with torch.set_grad_enabled(grad):
            own = leaves["items"].index_select(0, torch.from_numpy(place))  # [U, D]
            served = self._published.items(names)
            items = Items(
                vectors=own,
                # Published values and buckets, so that what is trained is what a stored table will give.
                values=served.values + (own - own.detach()),
                signatures=served.signatures,
                popularity=torch.from_numpy(self._popularity.log_share(strings).astype(np.float32)),
            )
            return Forward(logits=logits(leaves, self.config, asked, items), leaves=leaves, rows=rows)

    def _hidden(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Some items as if they were not known, by hash(seed, step, item)."""
        c = self.config
        keys = np.asarray([digest(name) for name in names], dtype=np.uint64).view(np.int64)
        hide = uniform(c.seed, f"unknown\x1f{self._steps}", keys) < c.unknown_rate * c.unknown_every
        return tuple(UNKNOWN_NAME if hidden else name for name, hidden in zip(names, hide.tolist(), strict=True))

    # Learn

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        """One step on the mean rank loss of the rows that are ranked; then, when it is time, a publication."""
        if self._moments is None:
            raise ServingOnly
        items = choices(batch.target)
        if not items:
            self._tables.learn(batch, self._published)
            return Report(losses={})
        losses, moved = self._learn_ranks(batch, prediction)
        self._steps, self._since = self._steps + 1, self._since + 1
        numbered = self._learn_items(batch.context.item.tolist(), items)
        said = self._publish_if_due()
        self._tables.learn(batch, self._published)
        return Report(losses=losses, actions=(*(() if moved else (NOT_FINITE,)), *numbered, *said))

    def _learn_ranks(self, batch: Batch, prediction: Prediction | None) -> tuple[dict[str, float], bool]:
        """Losses as trained on, and whether every gradient was finite."""
        candidates = ranked(batch.query)
        chosen = chosen_of(candidates, batch.target)
        rows = chosen.any(-1).sum()
        if not rows:
            return {}, True
        memo = self._memo(prediction or self.predict(batch.context, batch.query))
        usable = [forward for forward in memo.fresh if forward.logits.requires_grad]
        forward = usable[0] if usable else self._forward(memo.asked, grad=True, learning=True)
        weight = torch.from_numpy(batch.target.weight)
        loss = (weight * rank_loss(forward.logits, candidates, chosen)).sum() / rows
        losses = {"rank": float(loss.detach())}
        if self._since % self.config.check_every == 0:
            losses |= self._health(memo.asked)
        return losses, self._move(forward, loss)

    def _move(self, forward: Forward, loss: Tensor) -> bool:
        """Backward pass and optimisers. A gradient that is not finite moves nothing, and the answer is False."""
        assert self._moments is not None
        names = list(forward.leaves)
        found = torch.autograd.grad(loss, [forward.leaves[name] for name in names], allow_unused=True)
        gradients = {
            name: torch.zeros_like(forward.leaves[name]) if gradient is None else gradient.contiguous()
            for name, gradient in zip(names, found, strict=True)
        }
        if not math.isfinite(clip(gradients.values(), self.config.clip_norm)):
            return False
        table, rows = gradients.pop("items"), torch.from_numpy(forward.rows)
        rows_adagrad(self._table, rows, table, self._moments["table.sum"], rate=self.config.table_rate)
        rates = dict.fromkeys(gradients, self.config.learning_rate)
        adam(self._weights, gradients, self._moments, step=self._steps + 1, rates=rates)
        return True

    def _health(self, asked: EncodedQuery) -> dict[str, float]:
        """ "collision": mean share of a user's behaviours in a candidate's bucket (2^-tau where items are spread
        evenly, 1 where all collide); "occupancy": entropy of the buckets' counts, as a share of its maximum."""
        served = self._published.items(asked.names)
        _, counts = build(
            served.values[asked.history], served.signatures[asked.history], asked.real, self.config.buckets
        )
        events = counts[:, :1].sum(-1, keepdim=True)
        some = events.flatten() > 0
        if not bool(some.any()):
            return {}
        hits = read_counts(counts / events.clamp_min(1.0), served.signatures[asked.candidate], asked.view)
        share = counts[some] / events[some]
        entropy = torch.special.entr(share).sum(-1).mean() / math.log(self.config.buckets)
        seen = asked.mask & some[asked.view].unsqueeze(1)
        return {"collision": float(hits.mean(-1)[seen].mean()), "occupancy": float(entropy)}

    def _learn_items(self, seen: Sequence[str | None], targets: Sequence[str]) -> tuple[str, ...]:
        """Numbers new items, after the step: they were ranked, and learnt, as UNKNOWN."""
        numbered = self._items.learn([*(item for item in seen if item is not None), *targets])
        more = rows_for(len(self._items)) - len(self._table)
        assert self._moments is not None
        if more > 0:
            self._table = torch.cat([self._table, self._table.new_zeros(more, self.config.width)])
            self._moments["table.sum"] = torch.cat([self._moments["table.sum"], torch.zeros(more)])
        for new in numbered:
            self._table[new.number] = item_row(self.config, new.name)
            self._moments["table.sum"][new.number] = 0.0
        self._popularity.learn(targets)
        return tuple(
            f"item {new.evicted!r} gave its row to {new.name!r}" for new in numbered if new.evicted is not None
        )

    # Publish

    def _publish_if_due(self) -> tuple[str, ...]:
        """P := E by the clock, or as soon as the signatures of too many items would be others."""
        c = self.config
        if c.publish_every == 0:
            self._publish()
            return ()
        drift = self.drift() if self._since % c.check_every == 0 else 0.0
        if self._since < c.publish_every and drift <= c.publish_drift:
            return ()
        self._publish()
        return (f"published {self._published.embedding}",)

    def drift(self) -> float:
        """Share of (item, signature) pairs that a publication now would change; an item that is not published
        counts as changed."""
        if len(self._items) == 1:
            return 0.0
        served = torch.from_numpy(self._published.numbers(self._items.names))
        fresh = self._table[: len(self._items)]
        centre = fresh.double().mean(0).float()
        changed = signatures(fresh[1:] - centre, self._published.matrix) != self._published.signatures[served]
        return float((changed | (served == UNKNOWN).unsqueeze(1)).double().mean())

    def _publish(self) -> None:
        names = np.empty(len(self._items), dtype=np.object_)
        names[0], names[1:] = UNKNOWN_NAME, self._items.names
        popularity = torch.from_numpy(self._popularity.log_share(names).astype(np.float32))
        vectors = self._table[: len(self._items)]
        self._published = next_version(self._published, self._items.names, vectors, popularity, self._weights)
        self._since = 0

    # State

    def forget(self, users: Container[str]) -> None:
        """Windows and tables of these users go; what is published is of items alone."""
        self._tables.forget(users)

    def serving_state(self) -> State:
        """Configuration and the published version: all that `predict` reads."""
        meta = {"name": self.name, "version": self.version, "config": self.config_dict()}
        return {"meta": json_tensor(meta), **prefixed("published.", self._published.state())}

    def state(self) -> State:
        """Everything that decides: "counts" holds steps, ever and since the last publication. Users' tables follow
        from sequences and are not in it."""
        if self._moments is None:
            raise ServingOnly
        tensors = {
            "table": self._table,
            **prefixed("weights.", self._weights),
            **prefixed("moments.", self._moments),
            "counts": torch.tensor([self._steps, self._since]),
        }
        return {
            **self.serving_state(),
            "vocabulary": self._items.state(),
            **prefixed("popularity.", self._popularity.state()),
            **{name: tensor.clone() for name, tensor in tensors.items()},
        }

    def load(self, state: State) -> None:
        """See the protocol; everything is checked before anything changes."""
        meta = from_json_tensor(state["meta"]) if "meta" in state else None
        own = {"name": self.name, "version": self.version}
        if not isinstance(meta, dict) or {name: meta.get(name) for name in own} != own:
            raise ForeignState(f"not a state of {self.name} version {self.version}")
        check_config(meta.get("config", {}), self.config_dict())
        published = EmbeddingVersion.from_state(self.config, below("published.", state))
        rest = {name: tensor for name, tensor in state.items() if name != "meta" and not name.startswith("published.")}
        if rest:
            self._load_learning(rest)
        else:
            self._moments = None
        self._published = published
        c = self.config
        self._tables = UserTables(c.table_users, last_n=c.last_n, reserve=c.reserve)

    def _load_learning(self, state: State) -> None:
        """Takes what a serving state has not.

        :raises ForeignState: before anything is changed.
        """
        c = self.config
        if "vocabulary" not in state:
            raise ForeignState("vocabulary is missing")
        items = StringIndex.from_state(state["vocabulary"])
        popularity = PopularityCounts.from_state(below("popularity.", state))
        rows = rows_for(len(items))
        weights, moments = initial_weights(c), initial_moments(c, rows)
        like = {
            "table": torch.zeros(rows, c.width),
            "counts": torch.zeros(2, dtype=torch.int64),
            **prefixed("weights.", weights),
            **prefixed("moments.", moments),
        }
        check_names(state, {"vocabulary", *like, *prefixed("popularity.", popularity.state())})
        for name, tensor in like.items():
            check_like(name, state[name], tensor)
        self._items, self._popularity = items, popularity
        self._table = state["table"].clone()
        # In our own order of names, not the state's (a file's is arbitrary): norms are summed in it.
        self._weights = {name: state[f"weights.{name}"].clone() for name in weights}
        self._moments = {name: state[f"moments.{name}"].clone() for name in moments}
        self._steps, self._since = (int(count) for count in state["counts"])


def initial_moments(config: SDIMConfig, rows: int) -> Weights:
    """Zero memory of the optimisers: Adam's two moments, and one sum per row of the item table."""
    moments = {"table.sum": torch.zeros(rows)}
    for name, weight in initial_weights(config).items():
        moments[f"{name}.m"], moments[f"{name}.v"] = torch.zeros_like(weight), torch.zeros_like(weight)
    return moments
