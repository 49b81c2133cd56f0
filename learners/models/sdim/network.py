"""
SDIM: long-term interest of a user by summing the behaviours whose signature is the candidate's. The whole
forward pass is in this file; how it learns and publishes is in `learner.py` beside it.

References:
1) Cao et al., "Sampling Is All You Need on Modeling Long-Term User Behaviors for CTR Prediction", CIKM 2022:
   https://arxiv.org/abs/2205.10249 (signatures 4.1, attention 4.2, serving beside a table server 4.4)
2) Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018 (attention over the short
   sequence): https://arxiv.org/abs/1706.06978
3) Yi et al., "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations", RecSys 2019 (the
   loss over sampled candidates)

Where this differs from 1), and why:
- Loss: a softmax over sampled candidates, each logit less log q (3), in place of equation 2: the streams here hold
  no impressions, so there is no "shown and not clicked" to learn from.
- Items are centred before they are hashed: trained embeddings lie in a cone, and everything would collide.
- Beside the sum stand the counts of the buckets: for a history of five most buckets are empty. The smallest of
  a candidate's G counts bounds how often the user had that very item.
- Recency enters through the short branch alone: a time relative to now would change every stored sum.
- The logit starts from the item's log-frequency; the network learns what the user adds to it.

Shape legend in `batch.py`; V views (distinct visible histories), U distinct items of a step, R = 2^tau buckets,
N short behaviours, Y recency features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learners.blocks.padding import bucket
from learners.blocks.signature_table import build, read, read_counts
from learners.blocks.time_features import BANK, bank
from learners.contract.batch import Bools, Candidates, Context, Ints, Query, Strings
from learners.contract.randomness import uniform_tensor
from learners.models.sdim.spec import SDIMConfig

HOUR_US: Final = 3_600_000_000
SCALARS: Final = 6
"""Features of a candidate that are one number: see `head`."""

Weights = dict[str, Tensor]


def initial_weights(c: SDIMConfig) -> Weights:
    """Weights of everything but items, before any learning; each is a function of seed and name."""
    inputs, second = 5 * c.width + SCALARS, max(c.hidden // 2, 1)

    def draw(name: str, *shape: int) -> Tensor:
        return uniform_tensor(c.seed, name, shape, shape[0] ** -0.5)

    return {
        "in": draw("in", inputs, c.hidden),
        "in_bias": torch.zeros(c.hidden),
        "middle": draw("middle", c.hidden, second),
        "middle_bias": torch.zeros(second),
        "out": draw("out", second, 1),
        "popularity": torch.ones(1),
        "recency": torch.zeros(len(BANK)),
    }


def item_row(c: SDIMConfig, name: str) -> Tensor:
    """[D] where an item's embedding starts: a function of seed and string."""
    return uniform_tensor(c.seed, f"item\x1f{name}", (c.width,), 0.25)


@dataclass(frozen=True, kw_only=True)
class EncodedQuery:
    """A step's question in numbers of its own: item u is `names[u]`. No weight is in here."""

    names: tuple[str, ...]
    """[U] distinct items; the first is "", which pads."""
    view: Tensor
    """[B] which history a row sees."""
    history: Tensor
    """[V, L] items, oldest first, then padding."""
    real: Tensor
    """[V, L] bool."""
    short: Tensor
    """[V, N] items of the newest behaviours."""
    short_real: Tensor
    """[V, N] bool."""
    recency: Tensor
    """[V, N, Y] of the gap to the newest behaviour."""
    candidate: Tensor
    """[B, C] items."""
    mask: Tensor
    """[B, C] bool."""


def ask(context: Context, query: Query, candidates: Candidates, *, last_n: int, short_n: int) -> EncodedQuery:
    """Windows of the newest `last_n` visible behaviours, and the candidates, as numbers of this step alone."""
    numbers: dict[str, int] = {"": 0}
    pairs = list(zip(query.stack.tolist(), query.visible.tolist(), strict=True))
    views = {pair: view for view, pair in enumerate(dict.fromkeys(pairs))}
    windows = [_window(context, stack, visible, last_n) for stack, visible in views]
    history, real = _padded(windows, bucket(max(map(len, windows), default=0)))
    short, short_real = _padded([window[-short_n:] for window in windows], short_n)
    newest = np.asarray([context.at[window[-1]] if len(window) else 0 for window in windows], dtype=np.int64)
    gaps = newest[:, None] - (context.at[short] if len(context.at) else short)
    return EncodedQuery(
        view=torch.from_numpy(np.asarray([views[pair] for pair in pairs], dtype=np.int64)),
        history=_numbered(context.item, history, real, numbers),
        real=torch.from_numpy(real),
        short=_numbered(context.item, short, short_real, numbers),
        short_real=torch.from_numpy(short_real),
        recency=bank(np.where(short_real, gaps, 0) / HOUR_US),
        candidate=_numbered(candidates.item, np.arange(candidates.item.size), candidates.mask.ravel(), numbers).view(
            candidates.item.shape
        ),
        mask=torch.from_numpy(candidates.mask),
        names=tuple(numbers),
    )


def _window(context: Context, stack: int, visible: int, last_n: int) -> Ints:
    """Places, in the ragged arrays, of the newest visible events that carry an item."""
    start = int(context.offsets[stack])
    items = context.item[start : start + visible]
    return start + np.flatnonzero(np.asarray([item is not None for item in items], dtype=np.bool_))[-last_n:]


def _padded(windows: list[Ints], length: int) -> tuple[Ints, Bools]:
    """[V, L] places, padded behind with 0, and which of them are real."""
    index, real = np.zeros((len(windows), length), np.int64), np.zeros((len(windows), length), np.bool_)
    for view, window in enumerate(windows):
        index[view, : len(window)], real[view, : len(window)] = window, True
    return index, real


def _numbered(items: Strings, index: Ints, real: Bools, numbers: dict[str, int]) -> Tensor:
    """Numbers, of the shape of `index`, of the items at these places; new ones are added to `numbers`."""
    flat = items.ravel()
    found = [
        numbers.setdefault(flat[place], len(numbers)) if here else 0
        for place, here in zip(index.ravel().tolist(), real.ravel().tolist(), strict=True)
    ]
    return torch.from_numpy(np.asarray(found, dtype=np.int64).reshape(index.shape))


@dataclass(frozen=True, kw_only=True)
class Items:
    """What the forward pass knows of the U items of a step."""

    vectors: Tensor
    """[U, D] of the candidate itself and of the short branch."""
    values: Tensor
    """[U, D] that the long branch sums."""
    signatures: Tensor
    """[U, G]"""
    popularity: Tensor
    """[U] log-frequency."""


def logits(w: Mapping[str, Tensor], c: SDIMConfig, asked: EncodedQuery, items: Items) -> Tensor:
    """[B, C] float64 raw logits; 0 where there is no candidate."""
    sums, counts = build(_rows(items.values, asked.history), items.signatures[asked.history], asked.real, c.buckets)
    return with_tables(w, c, asked, items, sums, counts)


def with_tables(
    w: Mapping[str, Tensor], c: SDIMConfig, asked: EncodedQuery, items: Items, sums: Tensor, counts: Tensor
) -> Tensor:
    """The same from tables that are already built: `history` and `real` of `asked` are not read.

    :param sums: [V, G, R, D]; counts: [V, G, R].
    """
    signatures = items.signatures[asked.candidate]  # [B, C, G]
    q = _rows(items.vectors, asked.candidate)  # [B, C, D]
    long = read(sums, signatures, asked.view)
    hits = read_counts(counts, signatures, asked.view)
    short = short_interest(w, q, asked, items.vectors)
    same = asked.candidate.unsqueeze(-1) == asked.short[asked.view].unsqueeze(1)  # [B, C, N]
    matches = (same & asked.short_real[asked.view].unsqueeze(1)).sum(-1)
    events = counts[:, 0].sum(-1)[asked.view].unsqueeze(1).expand_as(matches)
    answer = head(w, q, short, long, (hits.amin(-1), hits.mean(-1), matches, events))
    answer = answer + w["popularity"] * items.popularity[asked.candidate]
    return torch.where(asked.mask, answer.double(), 0.0)


def short_interest(w: Mapping[str, Tensor], q: Tensor, asked: EncodedQuery, vectors: Tensor) -> Tensor:
    """Target attention over the newest behaviours (reference 2): [B, C, D]; zero where there are none."""
    keys = _rows(vectors, asked.short)[asked.view]  # [B, N, D]
    real = asked.short_real[asked.view].unsqueeze(1)  # [B, 1, N]
    recency = (asked.recency @ w["recency"])[asked.view].unsqueeze(1)
    scores = q @ keys.transpose(1, 2) * q.shape[-1] ** -0.5 + recency  # [B, C, N]
    share: Tensor = scores.masked_fill(~real, -1e9).softmax(-1) * real
    seen: Tensor = share @ keys
    return seen


def head(
    w: Mapping[str, Tensor], q: Tensor, short: Tensor, long: Tensor, numbers: tuple[Tensor, Tensor, Tensor, Tensor]
) -> Tensor:
    """[B, C] from the candidate, both interests, and how much there is behind them.

    :param numbers: [B, C] each: smallest and mean count of the candidate's buckets, its repetitions among the short
        behaviours, behaviours of the user.
    """
    products = torch.stack([(q * short).sum(-1), (q * long).sum(-1)], dim=-1)
    amounts = torch.log1p(torch.stack(numbers, dim=-1).to(q.dtype))
    x = torch.cat([q, short, long, q * short, q * long, products, amounts], dim=-1)  # [B, C, 5 D + SCALARS]
    x = F.relu(x @ w["in"] + w["in_bias"])
    x = F.relu(x @ w["middle"] + w["middle_bias"])
    answer: Tensor = (x @ w["out"]).squeeze(-1)
    return answer


def _rows(vectors: Tensor, index: Tensor) -> Tensor:
    """vectors[index] through index_select, whose backward is the same on every run."""
    return vectors.index_select(0, index.flatten()).view(*index.shape, vectors.shape[-1])
