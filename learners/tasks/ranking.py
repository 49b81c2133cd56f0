"""What the arms of a ranking arm group are asked: the item that came, among items that did not.

Negatives are drawn from counts strictly before the event (the step's start), keyed by the event's identity, the same
for every arm; items of the event's basket are never among them. Half of them are uniform over the known items, half
as popular as the items were: `log_q` is the log-probability of that mixture (Yi et al., RecSys 2019, 3).
An item that nobody chose before the step is not ranked: it could not have been a negative, so being new would give it
away. A basket that reaches over a step is known as far as it has come.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass, replace
from typing import Final

import numpy as np
import torch

from learners.contract.batch import Batch, Bools, Candidates, Drawn, Floats, Ints, Strings, TargetKind
from learners.contract.protocol import ForeignState, State
from learners.contract.randomness import digest, uniform
from learners.contract.state_codec import check_config, check_like, check_names, from_json_tensor, json_tensor
from learners.contract.string_index import UNKNOWN, StringIndex, rows_for

SPARE: Final = 4
"""Draws for each negative wanted: those that fall into the basket are passed over."""
BASKETS: Final = 256
"""Newest baskets remembered over a step's end."""
KINDS: Final = (Drawn.UNIFORM, Drawn.POPULAR)


@dataclass(frozen=True, kw_only=True)
class RankingConfig:
    """Everything that decides what is asked."""

    seed: int = 0
    negatives: int = 10
    """Of each of the two kinds."""
    census_rate: float = 0.1
    """Share of rows, by event, that are also ranked in the whole catalogue; 0: none."""
    target_types: tuple[str, ...] = ()
    """Event types whose item is a target; (): all."""
    max_items: int = 50_000

    def __post_init__(self) -> None:
        if self.negatives < 1:
            raise ValueError(f"negatives must be at least 1, got {self.negatives}")
        object.__setattr__(self, "target_types", tuple(self.target_types))  # JSON has lists


class Ranking:
    """Counts of items, and the questions that follow from them."""

    def __init__(self, config: RankingConfig | None = None) -> None:
        self.config: Final = config or RankingConfig()
        self._items = StringIndex(self.config.max_items)
        self._counts = np.zeros(rows_for(1), dtype=np.int64)
        """[rows] how often each item was a target; row UNKNOWN stays 0."""
        self._baskets: OrderedDict[int, set[str]] = OrderedDict()
        """By `_basket_key`: whose they are is written nowhere."""

    def ask(self, batch: Batch) -> Batch:
        """The batch with candidates: column 0 the item that came, then uniform, then popular negatives.

        :raises ValueError: the batch names no users or no items.
        """
        user, item = self._named(batch)
        drawn = np.asarray([0, *(int(kind) for kind in KINDS for _ in range(self.config.negatives))], dtype=np.int64)
        names, shape = self._names(), (len(batch), len(drawn))
        items, mask = np.full(shape, None, dtype=np.object_), np.zeros(shape, dtype=np.bool_)
        numbers, known = self._draws(batch.origin.key), set(self._items.names)
        for row, basket in enumerate(self._baskets_of(batch, user, item)):
            if basket is not None and item[row] in known:
                allowed = [[names[n] for n in draws if names[n] not in basket] for draws in numbers[row]]
                kept = [one[: self.config.negatives] for one in allowed]
                self._fill(items[row], mask[row], item[row], kept)
        log_q = np.where(mask, self._log_q(self._items.numbers(items)), 0.0)
        return self._asked(batch, Candidates(item=items, mask=mask, log_q=log_q), np.tile(drawn, (len(batch), 1)))

    def census(self, batch: Batch) -> Batch | None:
        """The rows that are ranked in the whole catalogue, the rest of their baskets left out; None: there are none."""
        user, item = self._named(batch)
        baskets = self._baskets_of(batch, user, item)
        picked = uniform(self.config.seed, "census", batch.origin.key) < self.config.census_rate
        names, known = self._names()[1:], self._items.numbers(item) != UNKNOWN
        rows = np.asarray(
            [n for n, basket in enumerate(baskets) if basket is not None and picked[n] and known[n]], np.int64
        )
        if len(rows) == 0:
            return None
        items = np.empty((len(rows), len(names) + 1), dtype=np.object_)
        items[:, 0], items[:, 1:] = item[rows], names
        mask = np.ones(items.shape, dtype=np.bool_)
        for place, row in enumerate(rows.tolist()):
            others = [name for name in baskets[row] or () if name != item[row]]
            out = self._items.numbers(np.asarray([item[row], *others], dtype=np.object_))
            mask[place, out[out != UNKNOWN]] = False
        drawn = np.full(items.shape, int(Drawn.CATALOGUE), dtype=np.int64)
        drawn[:, 0] = Drawn.CHOSEN
        items[~mask] = None
        asked = Candidates(item=items, mask=mask, log_q=np.zeros(items.shape))
        return self._asked(rows_of(batch, rows), asked, drawn)

    def learn(self, batch: Batch) -> tuple[str, ...]:
        """Counts the step's targets; returns what the journal has to say of it."""
        if batch.target.kind is TargetKind.TICK:
            return ()
        user, item = self._named(batch)
        rows = np.flatnonzero(self._wanted(batch, item))
        for row in rows.tolist():
            key = _basket_key(user[row], batch.target.at[row])
            self._baskets.setdefault(key, set()).add(item[row])
            self._baskets.move_to_end(key)
        while len(self._baskets) > BASKETS:
            self._baskets.popitem(last=False)
        numbered = self._items.learn(item[rows].tolist())
        self._counts = np.pad(self._counts, (0, rows_for(len(self._items)) - len(self._counts)))
        for new in numbered:
            self._counts[new.number] = 0
        known = self._items.numbers(item[rows])
        np.add.at(self._counts, known[known != UNKNOWN], 1)
        return tuple(
            f"item {new.evicted!r} gave its row to {new.name!r}" for new in numbered if new.evicted is not None
        )

    def forget_baskets(self) -> None:
        """Lets all baskets go: which of them were an erased user's cannot be told any more.

        A basket cut in two by this moment may find items of its first half among the negatives of its second.
        """
        self._baskets.clear()

    def state(self) -> State:
        """Names, counts and the newest baskets, of which a key says neither whose nor when."""
        baskets = [[key, sorted(items)] for key, items in self._baskets.items()]
        return {
            "config": json_tensor(asdict(self.config)),
            "vocabulary": self._items.state(),
            "counts": torch.from_numpy(self._counts.copy()),
            "baskets": json_tensor(baskets),
        }

    def load(self, state: State) -> None:
        """:raises ForeignState: not a `state()` of the same configuration; nothing was changed."""
        check_names(state, {"config", "vocabulary", "counts", "baskets"})
        own = from_json_tensor(json_tensor(asdict(self.config)))
        found = from_json_tensor(state["config"])
        check_config(found if isinstance(found, dict) else {}, own)
        items = StringIndex.from_state(state["vocabulary"])
        check_like("counts", state["counts"], torch.zeros(rows_for(len(items)), dtype=torch.int64))
        try:
            baskets = from_json_tensor(state["baskets"])
            held = OrderedDict((int(key), {str(item) for item in found}) for key, found in baskets)
        except (TypeError, ValueError) as error:
            raise ForeignState(f"not the baskets of a ranking: {error!r}") from error
        self._items, self._counts, self._baskets = items, state["counts"].numpy().copy(), held

    # Inside

    def _named(self, batch: Batch) -> tuple[Strings, Strings]:
        user, item = batch.query.user, batch.target.item
        if item is None and batch.target.kind is TargetKind.TICK:
            item = np.full(len(batch), None, dtype=np.object_)
        if user is None or item is None:
            raise ValueError("a ranking learner needs Query.user and Target.item; this batch has none")
        return user, item

    def _wanted(self, batch: Batch, item: Strings) -> Bools:
        """[B] whether the row's item is a choice that counts."""
        if batch.target.kind is TargetKind.TICK:
            return np.zeros(len(batch), dtype=np.bool_)
        types, wanted = batch.target.type, self.config.target_types
        rows = [name is not None and (not wanted or kind in wanted) for name, kind in zip(item, types, strict=True)]
        return np.asarray(rows, dtype=np.bool_)

    def _baskets_of(self, batch: Batch, user: Strings, item: Strings) -> list[set[str] | None]:
        """Basket of each row that counts, as far as it is known; None for any other."""
        found: dict[int, set[str]] = {}
        wanted = self._wanted(batch, item)
        keys = [_basket_key(*basket) for basket in zip(user.tolist(), batch.target.at.tolist(), strict=True)]
        for row in np.flatnonzero(wanted).tolist():
            found.setdefault(keys[row], set(self._baskets.get(keys[row], ()))).add(item[row])
        return [found[key] if wanted[row] else None for row, key in enumerate(keys)]

    def _draws(self, keys: Ints) -> Ints:
        """[B, 2, SPARE * negatives] numbers of items, a function of seed, event and counts."""
        draws = SPARE * self.config.negatives
        known = len(self._items) - 1
        if known == 0:
            return np.zeros((len(keys), len(KINDS), 0), dtype=np.int64)
        u = np.stack(
            [[uniform(self.config.seed, f"{kind.name}.{draw}", keys) for draw in range(draws)] for kind in KINDS]
        )  # [2, draws, B]
        until = np.cumsum(self._counts[1 : known + 1])
        popular = np.searchsorted(until, u[1] * until[-1], side="right") if until[-1] else u[0] * known
        numbers = 1 + np.stack([(u[0] * known).astype(np.int64), popular.astype(np.int64)])
        return np.asarray(np.minimum(numbers, known).transpose(2, 0, 1))

    def _fill(self, items: Strings, mask: Bools, chosen: str, negatives: list[list[str]]) -> None:
        """Writes one row's candidates in place; what could not be drawn stays padding."""
        items[0], mask[0] = chosen, True
        for number, names in enumerate(negatives):
            start = 1 + number * self.config.negatives
            items[start : start + len(names)], mask[start : start + len(names)] = names, True

    def _log_q(self, numbers: Ints) -> Floats:
        """log(1/2 uniform + 1/2 popular) of each item."""
        known, total = max(len(self._items) - 1, 1), max(int(self._counts.sum()), 1)
        return np.asarray(np.log(0.5 / known + 0.5 * self._counts[numbers] / total))

    def _names(self) -> Strings:
        """[I] names by number; UNKNOWN has None."""
        names = np.full(len(self._items), None, dtype=np.object_)
        names[1:] = self._items.names
        return names

    def _asked(self, batch: Batch, candidates: Candidates, drawn: Ints) -> Batch:
        target, (_, item) = batch.target, self._named(batch)
        return replace(
            batch,
            query=replace(batch.query, candidates=candidates),
            target=replace(
                target,
                wanted=self._wanted(batch, item),
                drawn=None if target.kind is TargetKind.TICK else drawn,
                repeat=_repeats(batch, item),
            ),
        )


def _basket_key(user: str, at: int) -> int:
    """64 bits of whose basket it is and when."""
    return int(digest("basket", user, int(at)))


def rows_of(batch: Batch, rows: Ints) -> Batch:
    """The same batch with some of its rows; the context stays whole. Candidates are dropped."""
    query, target, origin = batch.query, batch.target, batch.origin
    assert query.user is not None
    assert target.item is not None
    return replace(
        batch,
        query=replace(
            query,
            stack=query.stack[rows],
            visible=query.visible[rows],
            now=query.now[rows],
            user=query.user[rows],
            candidates=None,
        ),
        target=replace(
            target,
            at=target.at[rows],
            type=target.type[rows],
            resolution=target.resolution[rows],
            timed=target.timed[rows],
            weight=target.weight[rows],
            item=target.item[rows],
            wanted=None,
            drawn=None,
            repeat=None,
        ),
        origin=replace(origin, key=origin.key[rows], newest=None if origin.newest is None else origin.newest[rows]),
    )


def _repeats(batch: Batch, item: Strings) -> Bools:
    """[B] whether the row's item stands in the history it may see."""
    seen: dict[tuple[int, int], set[str]] = {}
    context = batch.context
    found = np.zeros(len(batch), dtype=np.bool_)
    for row, pair in enumerate(zip(batch.query.stack.tolist(), batch.query.visible.tolist(), strict=True)):
        if pair not in seen:
            start = int(context.offsets[pair[0]])
            seen[pair] = set(context.item[start : start + pair[1]])
        found[row] = item[row] is not None and item[row] in seen[pair]
    return found
