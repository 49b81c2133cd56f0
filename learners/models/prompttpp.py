"""
PromptTPP: a neural temporal point process with a continuous-time retrieval prompt pool, all of it in this
file: a causal attentive Hawkes backbone, the pool, the likelihood, the asynchronous refresh.

References:
1) Xue et al., "Prompt-augmented Temporal Point Process for Streaming Event Sequence", NeurIPS 2023:
   https://arxiv.org/abs/2310.04993
2) Yang, Mei, Eisner, "Transformer Embeddings of Irregularly Spaced Events and Their Participants",
   ICLR 2022 (the AttNHP backbone): https://arxiv.org/abs/2201.00044
3) The authors' code, read for its shapes alone; its causal mask, its retrieval, its schedule and its
   thinning do not do what the paper says, and nothing of them is here: https://github.com/yanyanSann/PromptTPP

Where this differs from 1) and 2), and why:
- The intensity is a total rate times a type distribution, instead of one softplus per type: a new type then
  takes a share of the rate and does not add to it, and a compensator costs the same for 20 types and 2,000.
- A state row's time is (time of the last event, time since then) in place of one absolute time; the second
  part goes through a bank of saturating functions over 7 decades, so rates are smooth in log time and a
  Gauss rule of few nodes integrates them. State rows start from the last event's embedding, not from 0.
- One pool per layer for keys and values together, retrieved per position from what lies before it.

Time inside is in the model's own unit (geometric mean of the first gaps learnt); shape legend in `batch.py`;
X = D + T + R is the width of a token: embedding, waves of its time, bank of its gap; G = times asked per row.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learners.batch import Batch, Context, Floats, Ints, Query, Strings, Target, TargetKind
from learners.blocks.histories import Padded, last_at, pad
from learners.blocks.interval import interval_nll, rows_with, tick_of
from learners.blocks.optimizers import adam, clip, row_adagrad
from learners.blocks.quadrature import log_rule
from learners.blocks.thinning import next_times
from learners.coding import (
    below,
    check_config,
    check_like,
    check_names,
    from_json_tensor,
    json_tensor,
    prefixed,
)
from learners.protocol import ForeignState, Loss, Losses, Needs, Prediction, Report, ServingOnly, State
from learners.randomness import uniform, uniform_tensor
from learners.vocabulary import UNKNOWN, Vocabulary, rows_for

VERSION: Final = "1"
KINDS: Final = {"user": 1, "payment": 2, "relation": 3}
ROLES: Final = {"actor": 1, "counterpart": 2}
BANK: Final = 4.0 ** np.arange(-6, 6, dtype=np.float64)
"""[R] half-saturation points, in units: a bank feature is gap / (gap + point)."""
KNEE: Final = float(BANK[0])
FLOOR: Final = 1e-8
"""Lowest total rate, per unit: no silence is impossible, and every quantile is finite."""
TYPE_BLOCK: Final = 64
"""Type tables grow by so many rows: streams have tens of types, and 4,096 rows each would be mostly empty."""
GAPS_FOR_UNIT: Final = 256
DEFAULT_UNIT_S: Final = 3600.0
TYPE_EDGES: Final = np.concatenate([[0.0], 10.0 ** np.linspace(-3, 3, 10)])
"""Panels, units from now, over which types are averaged; two nodes in each."""
TIME_EDGES: Final = np.concatenate([[0.0], 10.0 ** np.linspace(-6, 6, 48)])
"""Panels, units from now, in which quantiles are bracketed; the rate counts as constant behind the last."""
REFINED: Final = 8


@dataclass(frozen=True, kw_only=True)
class PromptTPPConfig:
    """Everything that shapes a PromptTPP. Two learners with equal configs are bit for bit the same."""

    seed: int = 0
    last_n: int = 32
    """Events of history asked for."""
    hidden: int = 32
    time_dim: int = 16
    layers: int = 2
    heads: int = 2
    pool: int = 10
    """M, prompts per layer; 0 is the plain backbone."""
    prompt_length: int = 5
    retrieved: int = 5
    """N, prompts per position."""
    match_weight: float = 0.1
    """alpha of the key-matching loss."""
    refresh_every: int = 2
    """C: the pool moves on every C-th step, the backbone on each."""
    learning_rate: float = 2e-3
    table_rate: float = 0.02
    """Of row-wise Adagrad on type embeddings."""
    backbone_factor: float = 0.1
    """Rate of everything but pool and type rows, once `warmup_events` events are learnt."""
    type_factor: float = 1.0
    """The same for the rows of types: a type that comes late must still be learnable."""
    warmup_events: int = 20_000
    nodes: int = 16
    """Gauss nodes for a silence; a clock tick has 3 of its own."""
    query_decay: float = 0.9
    """Weight of the past, per event, in the query that retrieves prompts."""
    unknown_rate: float = 0.05
    """Share of history events learnt as UNKNOWN, over all steps .."""
    unknown_every: int = 4
    """.. of which only every so-many-th has any: the others share one forward pass with `predict`."""
    clip_norm: float = 1.0
    max_types: int = 1024
    time_unit_s: float | None = None
    """Seconds; None: estimated from the first gaps learnt."""

    def __post_init__(self) -> None:
        positive = ("last_n", "hidden", "layers", "heads", "refresh_every", "unknown_every", "nodes", "max_types")
        for name in positive:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.time_dim < 2 or self.time_dim % 2:
            raise ValueError(f"time_dim must be even and positive, got {self.time_dim}")
        if not 0 <= self.retrieved <= self.pool:
            raise ValueError(f"retrieved ({self.retrieved}) must lie between 0 and pool ({self.pool})")

    def config_dict(self) -> dict[str, int | float | None]:
        """Plain values, for a manifest."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Histories:
    """Padded stacks and the rows that look at them, as tensors; no weight is in here."""

    type: Ints
    key: Ints
    """[S, L] both."""
    kind: Tensor
    role: Tensor
    """[S, L] both."""
    waves: Tensor
    """[S, L, T] of event times, re-based to the stack."""
    bank: Tensor
    """[S, L, R] of the gap before each event."""
    ahead: Tensor
    """[S, L, T] waves of the time at which the next event is due, from the mean gap so far."""
    stack: Tensor
    place: Tensor
    """[B] stack, and position of the last visible event in it (0 where there is none)."""
    some: Tensor
    """[B, 1] float: 0 for an empty history."""
    visible: Tensor
    """[B, 1, L] bool."""
    now: Ints
    last: Ints
    """[B] microseconds; `last` is the last visible event, or `now`."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What N rows of one layer look at: the P = M * Lp prompts of the pool (0 without one), then L events.

    A prompt's key is a learnt part plus a temporal part which is the same for all prompts of a position:
    q.(k + t) = [q, q.t].[k, 1]. With one more column (Y = D + 1; D without a pool) positions with different
    prompts share one product, and no prompt is ever gathered.
    """

    key: Tensor
    value: Tensor
    """[H, N, P + L, Y]"""
    mask: Tensor
    """[N, G or 1, P + L] bool: True where a row may look."""
    time_key: Tensor | None
    time_value: Tensor | None
    """[H, N, G or 1, D]"""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Stacks after the event layers, gathered for each row."""

    histories: Histories
    start: Tensor
    """[B, D] where state rows start."""
    waves: Tensor
    """[B, T] of the last event's time."""
    memory: tuple[Memory, ...]
    """Per layer."""
    query: Tensor
    """[B, D + R] what prompts are retrieved by; carries no gradient."""
    chosen: Tensor | None
    """[B, layers, M] bool."""


@dataclass(frozen=True, kw_only=True)
class Memo:
    """What `score` and `learn` use again of `predict`."""

    encoding: Encoding
    leaves: Weights
    """The weights it came from, as leaves of the graph that `learn` goes back through."""
    step: int
    scored: list[tuple[Target, dict[str, Tensor]]] = field(default_factory=list)
    """The last target scored and its likelihoods with their graph, kept by `score` for `learn`."""


Weights = dict[str, Tensor]


def waves(t: Floats, width: int) -> Tensor:
    """[..., T] float32: sines and cosines of t (units), frequencies 10000^(-2i/T)."""
    frequencies = 10000.0 ** (-np.arange(0, width, 2) / width)
    phases = t[..., None] * frequencies
    return torch.from_numpy(np.concatenate([np.sin(phases), np.cos(phases)], axis=-1).astype(np.float32))


def bank(gap: Floats) -> Tensor:
    """[..., R] float32: gap / (gap + point), each 0 at 0 and 1 far away."""
    return torch.from_numpy((gap[..., None] / (gap[..., None] + BANK)).astype(np.float32))


def initial_weights(config: PromptTPPConfig, rows: int) -> Weights:
    """Weights before any learning; each is a function of seed and name. `rows` of types are zero."""
    c, token = config, config.hidden + config.time_dim + len(BANK)
    out = c.heads * c.hidden

    def draw(name: str, *shape: int, bound: float) -> Tensor:
        return uniform_tensor(c.seed, name, shape, bound)

    weights = {
        "type": torch.zeros(rows, c.hidden),
        "kind": draw("kind", len(KINDS) + 1, c.hidden, bound=0.1),
        "role": draw("role", len(ROLES) + 1, c.hidden, bound=0.1),
        "qkv": draw("qkv", c.layers, c.heads, token, 3 * c.hidden, bound=token**-0.5),
        "qkv_bias": torch.zeros(c.layers, c.heads, 1, 3 * c.hidden),
        "rate": draw("rate", out, bound=0.5 * out**-0.5),
        # Scale 8 and softplus(-2) = 1/8: one event per unit of time, with room above and below.
        "rate_bias": torch.tensor([-2.0]),
        "rate_scale": torch.tensor([math.log(8.0)]),
        "out": torch.zeros(rows, out),
        "out_bias": torch.zeros(rows),
    }
    if c.pool:
        weights["pool.key"] = draw("pool.key", c.layers, c.pool, c.hidden + len(BANK), bound=1.0)
        shape = (c.layers, 2, c.pool, c.prompt_length, c.hidden)
        weights["pool.prompt"] = draw("pool.prompt", *shape, bound=1.0)
    return weights


def affine(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Each head's own map: x [H, N, G, X], weight [H, X, Y], bias [H, 1, Y] -> [H, N, G, Y]."""
    flat = torch.baddbmm(bias, x.flatten(1, 2), weight)  # [H, N * G, Y]
    return flat.view(*x.shape[:3], weight.shape[-1])


def attend(q: Tensor, memory: Memory, own: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Attention over [prompts | events | the row itself]; references 1 (prefix form) and 2.

    :param q: [H, N, G, D].
    :param own: the row's own key and value [H, N, G, D], where it is not among the events.
    :returns: [H, N, G, D].
    """
    d = q.shape[-1]
    q = q * d**-0.5
    asked = q
    if memory.time_key is not None:
        asked = torch.cat([q, (q * memory.time_key).sum(-1, keepdim=True)], dim=-1)  # [H, N, G, Y]
    scores = (asked @ memory.key.transpose(-1, -2)).masked_fill(~memory.mask, -torch.inf)
    if own is not None:
        scores = torch.cat([scores, (q * own[0]).sum(-1, keepdim=True)], dim=-1)  # [H, N, G, P + L + 1]
    share = scores.softmax(dim=-1)
    seen: Tensor = (share if own is None else share[..., :-1]) @ memory.value  # [H, N, G, Y]
    if memory.time_value is not None:
        seen = seen[..., :d] + seen[..., d:] * memory.time_value
    return seen if own is None else seen + share[..., -1:] * own[1]


def retrieve(query: Tensor, keys: Tensor, top: int) -> Tensor:
    """The `top` prompts by cosine, the first of equals first.

    :param query: [..., Y]; keys: [layers, M, Y].
    :returns: [..., layers, M] bool; carries no gradient.
    """
    layers, size, _ = keys.shape
    likeness = F.normalize(query.detach(), dim=-1) @ F.normalize(keys.detach().flatten(0, 1), dim=-1).T
    likeness = likeness.view(*query.shape[:-1], layers, size)  # [..., layers, M]
    order = likeness.argsort(dim=-1, descending=True, stable=True)
    return torch.zeros_like(likeness, dtype=torch.bool).scatter_(-1, order[..., :top], True)


def match_loss(query: Tensor, keys: Tensor, chosen: Tensor) -> Tensor:
    """Mean of 1 - cosine over rows, layers and retrieved prompts; gradient to the keys alone (spec, 2.7)."""
    cosine = torch.einsum("by,lmy->blm", F.normalize(query, dim=-1), F.normalize(keys, dim=-1))
    return 1.0 - cosine[chosen].mean()


@lru_cache(maxsize=32)
def decays(length: int, decay: float) -> Tensor:
    """[L, L] float32, lower triangular, rows sum to 1: an average that forgets, as one product."""
    behind = np.arange(length)[:, None] - np.arange(length)[None, :]
    weights = np.where(behind >= 0, float(decay) ** np.maximum(behind, 0), 0.0)
    return torch.from_numpy((weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))


def remember(
    w: Weights,
    c: PromptTPPConfig,
    layer: int,
    events: tuple[Tensor, Tensor],
    mask: Tensor,
    ahead: Tensor,
    chosen: Tensor | None,
) -> Memory:
    """Events' keys and values, behind the prompts [learnt; waves of the due time; 0] seen through the maps.

    :param events: [H, N, L, D] twice; mask: [N, G or 1, L].
    :param ahead: [N, G or 1, T]; chosen: [N, G or 1, M], or None without a pool.
    """
    if chosen is None:
        return Memory(key=events[0], value=events[1], mask=mask, time_key=None, time_value=None)
    d, maps, bias = c.hidden, w["qkv"][layer, ..., c.hidden :], w["qkv_bias"][layer, ..., c.hidden :]
    time = torch.einsum("ngt,htd->hngd", ahead, maps[:, d : d + c.time_dim])  # [H, N, G or 1, 2D]
    both = []
    for side, of_events in enumerate(events):
        part = slice(side * d, (side + 1) * d)
        learnt = w["pool.prompt"][layer, side].flatten(0, 1) @ maps[:, :d, part] + bias[..., part]
        learnt = F.pad(learnt, (0, 1), value=1.0).unsqueeze(1)  # [H, 1, P, Y]
        learnt = learnt.expand(-1, of_events.shape[1], -1, -1)
        both.append(torch.cat([learnt, F.pad(of_events, (0, 1))], dim=2))
    shown = chosen.repeat_interleave(c.prompt_length, dim=-1)  # [N, G or 1, P]
    mask = torch.cat([shown, mask.expand(*shown.shape[:2], -1)], dim=-1)
    return Memory(key=both[0], value=both[1], mask=mask, time_key=time[..., :d], time_value=time[..., d:])


def encode(w: Weights, c: PromptTPPConfig, h: Histories, types: Tensor) -> Encoding:
    """Runs the event layers once per stack, causally, and gathers what each row will look at."""
    length = types.shape[1]
    token = torch.tanh(F.embedding(types, w["type"]) + F.embedding(h.kind, w["kind"]) + F.embedding(h.role, w["role"]))
    query = decays(length, c.query_decay) @ torch.cat([token.detach(), h.bank], dim=-1)  # [S, L, D + R]
    row_query = query[h.stack, h.place] * h.some
    row_ahead = (h.ahead[h.stack, h.place] * h.some).unsqueeze(1)  # [B, 1, T]
    chosen = row_chosen = None
    if c.pool:
        chosen = retrieve(query, w["pool.key"], c.retrieved)  # [S, L, layers, M]
        row_chosen = retrieve(row_query, w["pool.key"], c.retrieved)  # [B, layers, M]
    causal = torch.ones(1, length, length, dtype=torch.bool).tril()
    context = torch.cat([h.waves, h.bank], dim=-1).expand(c.heads, -1, -1, -1)
    state = token.expand(c.heads, -1, -1, -1)  # [H, S, L, D]
    memory = []
    for layer in range(c.layers):
        last = layer + 1 == c.layers  # nobody looks at the events behind it
        maps, bias = w["qkv"][layer], w["qkv_bias"][layer]
        if last:
            maps, bias = maps[..., c.hidden :], bias[..., c.hidden :]
        mapped = affine(torch.cat([state, context], dim=-1), maps, bias)
        *asking, k, v = torch.split(mapped, c.hidden, dim=-1)
        rows = k.index_select(1, h.stack), v.index_select(1, h.stack)
        of_rows = None if row_chosen is None else row_chosen[:, None, layer]
        memory.append(remember(w, c, layer, rows, h.visible, row_ahead, of_rows))
        if not last:
            here = None if chosen is None else chosen[:, :, layer]
            seen = attend(asking[0], remember(w, c, layer, (k, v), causal, h.ahead, here))
            state = state + torch.tanh(seen)
    # Gathering a stack's row goes through index_select: its backward is the same on every run.
    flat = h.stack * length + h.place
    return Encoding(
        histories=h,
        start=token.flatten(0, 1).index_select(0, flat) * h.some,
        waves=h.waves[h.stack, h.place] * h.some,
        memory=tuple(memory),
        query=row_query,
        chosen=row_chosen,
    )


def states(w: Weights, c: PromptTPPConfig, e: Encoding, since: Floats) -> Tensor:
    """State rows of each row's query times: [B, G] units since the last event -> [B, G, H * D]."""
    rows, times = since.shape
    ahead = e.waves.unsqueeze(1).expand(rows, times, c.time_dim)
    context = torch.cat([ahead, bank(since)], dim=-1).expand(c.heads, -1, -1, -1)  # [H, B, G, T + R]
    state = e.start.unsqueeze(1).expand(c.heads, rows, times, c.hidden)
    for layer in range(c.layers):
        mapped = affine(torch.cat([state, context], dim=-1), w["qkv"][layer], w["qkv_bias"][layer])
        q, k, v = torch.split(mapped, c.hidden, dim=-1)
        seen = attend(q, e.memory[layer], (k, v))
        state = state + torch.tanh(seen)
    return state.permute(1, 2, 0, 3).flatten(2)  # [H, B, G, D] -> [B, G, H * D]


def total_rate(w: Weights, state: Tensor) -> Tensor:
    """Total intensity per unit of time: [B, G, H * D] -> [B, G] float64."""
    raw = state @ w["rate"] + w["rate_bias"]
    return (w["rate_scale"].exp() * F.softplus(raw) + FLOOR).double()


def type_logits(w: Weights, state: Tensor, known: int) -> Tensor:
    """[..., H * D] -> [..., known]: UNKNOWN first, then the types by number."""
    return F.linear(state, w["out"][:known], w["out_bias"][:known])


class PromptTPP:
    """The learner; see `learners/protocol.py` for what each verb may touch."""

    version: Final = VERSION

    def __init__(self, config: PromptTPPConfig | None = None, *, name: str = "prompttpp") -> None:
        self.name: Final = name
        self.config: Final = config or PromptTPPConfig()
        self._vocabulary = Vocabulary(self.config.max_types)
        self._weights = initial_weights(self.config, TYPE_BLOCK)
        self._fill_row(UNKNOWN, "\x00unknown")
        self._moments: Weights | None = initial_moments(self._weights)
        self._counts = dict.fromkeys(("steps", "pool_steps", "events", "gaps"), 0)
        self._log_gaps = 0.0
        """Sum of log microseconds of the first gaps."""
        self._unit_us = 1e6 * (self.config.time_unit_s or DEFAULT_UNIT_S)
        self._usage = torch.full((self.config.layers, self.config.pool), 0.0)
        """[layers, M] moving share of rows that retrieved each prompt."""

    @property
    def needs(self) -> Needs:
        return Needs(last_n=self.config.last_n)

    def config_dict(self) -> dict[str, int | float | None]:
        """For the manifest."""
        return self.config.config_dict()

    @property
    def time_unit_s(self) -> float:
        """Seconds of one unit of the model's time."""
        return self._unit_us * 1e-6

    @property
    def usage(self) -> Tensor:
        """[layers, M] moving share of rows that retrieved each prompt."""
        return self._usage.clone()

    # Predict

    def predict(self, context: Context, query: Query) -> Prediction:
        """Types averaged over the next event's time, and quantiles of that time; see `Prediction`."""
        if any(not 0.0 < q < 1.0 for q in query.quantiles):
            raise ValueError(f"quantiles must lie between 0 and 1, got {query.quantiles}")
        memo = self._forward(self._histories(context, query))
        with torch.no_grad():
            return Prediction(
                quantiles=self._quantiles(memo.encoding, query.quantiles),
                types=(*self._vocabulary.names, "\x00unknown"),
                type_log_probs=self._types(memo.encoding),
                memo=memo,
            )

    @property
    def _pool_turn(self) -> bool:
        return self.config.pool > 0 and self._counts["steps"] % self.config.refresh_every == 0

    @property
    def _unknown_turn(self) -> bool:
        return self._counts["steps"] % self.config.unknown_every == self.config.unknown_every - 1

    def _forward(self, histories: Histories, *, learning: bool = False) -> Memo:
        """Encodes with gradient where `learn` may go back through it; hides types on the turn for that."""
        c, types = self.config, histories.type
        shared = self._moments is not None and not self._unknown_turn
        # What moves is marked BEFORE the forward pass: the official code does it after, one step too late.
        leaves = {
            name: weight.detach().requires_grad_(self._pool_turn or not name.startswith("pool."))
            for name, weight in self._weights.items()
        }
        if learning and self._unknown_turn:
            hidden = uniform(c.seed, "unknown", histories.key) < c.unknown_rate * c.unknown_every
            types = np.where(hidden, UNKNOWN, types)
        with torch.set_grad_enabled(learning or shared):
            encoding = encode(leaves, c, histories, torch.from_numpy(types))
        return Memo(encoding=encoding, leaves=leaves, step=self._counts["steps"])

    def _histories(self, context: Context, query: Query) -> Histories:
        padded = pad(context, query)
        at = padded.at / self._unit_us
        gaps = np.diff(at, axis=1, prepend=at[:, :1])
        mean_gap = at / np.maximum(np.arange(at.shape[1]), 1)  # of the gaps up to each event
        empty = len(context.at) == 0
        width = self.config.time_dim
        types = np.zeros_like(padded.index) if empty else self._vocabulary.numbers(context.type)[padded.index]
        return Histories(
            type=types,
            key=types if empty else context.key[padded.index],
            kind=_codes(context.kind, KINDS, padded),
            role=_codes(context.role, ROLES, padded),
            waves=waves(at, width),
            bank=bank(gaps),
            ahead=waves(at + mean_gap, width),
            stack=torch.from_numpy(query.stack),
            place=torch.from_numpy(np.maximum(query.visible - 1, 0)),
            some=torch.from_numpy((query.visible > 0).astype(np.float32)).unsqueeze(1),
            visible=torch.from_numpy(np.arange(at.shape[1]) < query.visible[:, None]).unsqueeze(1),
            now=query.now,
            last=last_at(context, query),
        )

    def _units(self, microseconds: Ints) -> Floats:
        return np.asarray(microseconds / self._unit_us)

    def _panels(self, encoding: Encoding, edges: Floats, nodes: int) -> tuple[Floats, Floats, Tensor]:
        """Query times and weights of every panel [edges[p], edges[p + 1]] from now, and states there."""
        h = encoding.histories
        since = self._units(h.now - h.last)[:, None] + edges[..., :-1]  # [B, P]
        width = np.broadcast_to(np.diff(edges), since.shape)
        times, weights = log_rule(since, width, nodes=nodes, knee=KNEE)  # [B, P, nodes]
        state = states(self._weights, self.config, encoding, times.reshape(len(since), -1))
        return times, weights, state

    def _types(self, encoding: Encoding) -> Tensor:
        """[B, K] float64: log of integral p(type | t) f(t) dt over the next event's time, two nodes in each
        of 10 panels over 6 decades (the panels' probabilities are exact sums, so the total is 1)."""
        _, weights, state = self._panels(encoding, TYPE_EDGES, 2)
        rate = total_rate(self._weights, state).view(weights.shape)  # [B, P, 2]
        pieces = rate * torch.from_numpy(weights)
        panel = pieces.sum(-1)
        after = panel.cumsum(1)
        reached = torch.exp(panel - after)  # alive at the start of each panel
        mass = (reached * -torch.expm1(-panel)).unsqueeze(-1) * pieces / panel.unsqueeze(-1)
        share = mass.flatten(1)  # [B, P * 2]
        share[:, -1] += torch.exp(-after[:, -1])  # what comes later has the last node's types
        given = type_logits(self._weights, state, len(self._vocabulary)).softmax(-1)
        probability = torch.bmm(share.float().unsqueeze(1), given).squeeze(1).double()
        log = (probability / probability.sum(-1, keepdim=True)).clamp_min(1e-30).log()
        return torch.cat([log[:, 1:], log[:, :1]], dim=1)  # UNKNOWN goes last

    def _quantiles(self, encoding: Encoding, quantiles: tuple[float, ...]) -> Tensor:
        """[B, Q] float64 seconds from now: the compensator's inverse at -log(1 - q), bracketed in a panel of
        `TIME_EDGES`, then in an eighth of it, then linear."""
        rows = len(encoding.histories.now)
        if not quantiles:
            return torch.zeros((rows, 0), dtype=torch.float64)
        level = -np.log1p(-np.asarray(quantiles, dtype=np.float64))[None, :]  # [1, Q]
        mass, rate = self._compensators(encoding, TIME_EDGES)
        edges = np.broadcast_to(TIME_EDGES, (rows, len(TIME_EDGES)))
        reached = np.concatenate([np.zeros((rows, 1)), mass.cumsum(axis=1)], axis=1)  # [B, P + 1]
        panel = (reached[:, 1:-1, None] < level[:, None, :]).sum(axis=1)  # [B, Q]
        low, high = (np.take_along_axis(edges, panel + side, axis=1) for side in (0, 1))
        within = (level - np.take_along_axis(reached, panel, axis=1)).clip(0.0)  # compensator left to go
        fine = low[..., None] + (high - low)[..., None] * np.linspace(0.0, 1.0, REFINED + 1)
        pieces = np.stack([self._compensators(encoding, fine[:, q])[0] for q in range(len(quantiles))], axis=1)
        # [B, Q, 8]; scaled to the panel's own total, so that the bracket holds to the last bit
        pieces *= (np.take_along_axis(mass, panel, axis=1) / pieces.sum(axis=-1))[..., None]
        upto = np.concatenate([np.zeros((*panel.shape, 1)), pieces.cumsum(axis=-1)], axis=-1)
        part = (upto[..., 1:-1] < within[..., None]).sum(axis=-1)[..., None]
        left = within[..., None] - np.take_along_axis(upto, part, axis=-1)
        slope = np.take_along_axis(pieces, part, axis=-1) / (high - low)[..., None] * REFINED
        found = (np.take_along_axis(fine, part, axis=-1) + left / slope)[..., 0]
        beyond = TIME_EDGES[-1] + (level - reached[:, -1:]) / rate
        return torch.from_numpy(np.where(level > reached[:, -1:], beyond, found) * self._unit_us * 1e-6)

    def _compensators(self, encoding: Encoding, edges: Floats) -> tuple[Floats, Floats]:
        """Compensator of each panel [B, P], and the rate [B, 1] at the last node."""
        _, weights, state = self._panels(encoding, edges, 2)
        rate = total_rate(self._weights, state).numpy().reshape(weights.shape)
        return (rate * weights).sum(axis=-1), rate[:, -1, -1:]

    @torch.no_grad()
    def sample(self, context: Context, query: Query, draws: int, generator: torch.Generator) -> Tensor:
        """[B, draws] float64 seconds from now to the next event, by thinning."""
        encoding = self._memo(self.predict(context, query)).encoding
        since = torch.from_numpy(self._units(query.now - encoding.histories.last)).unsqueeze(1)

        def intensity(ahead: Tensor) -> Tensor:
            return total_rate(self._weights, states(self._weights, self.config, encoding, (since + ahead).numpy()))

        return next_times(intensity, len(query), draws, generator=generator, window=1 / 16) * self.time_unit_s

    # Score

    def _memo(self, prediction: Prediction) -> Memo:
        memo = prediction.memo
        if not isinstance(memo, Memo) or memo.step != self._counts["steps"]:
            raise ValueError("the prediction was not made by this learner with the weights it has now")
        return memo

    def _nll(self, w: Weights, e: Encoding, target: Target) -> dict[str, Tensor]:
        """Negative log-likelihoods [B] float64 by name, 0 where a row has none.

        Events: "time" in nats of a density per second, interval-censored at the clock tick; "type" in nats,
        given the time. Ticks: "survival" in nats, the compensator of the silence.
        """
        h, tick = e.histories, target.kind is TargetKind.TICK
        at = np.maximum(target.at, h.now)
        lo, hi = (at, at) if tick else tick_of(h.now, at, target.resolution)
        nodes, weights = log_rule(
            self._units(h.now - h.last), self._units(lo - h.now), nodes=self.config.nodes, knee=KNEE
        )
        timed, typed, silent = (torch.from_numpy(mask) for mask in rows_with(target))
        zero = torch.zeros(len(at), dtype=torch.float64)
        if tick:
            rate = total_rate(w, states(w, self.config, e, nodes))
            return {"time": zero, "type": zero, "survival": (rate * torch.from_numpy(weights)).sum(1)}
        inner, inner_weights = log_rule(self._units(lo - h.last), self._units(hi - lo), nodes=3, knee=KNEE)
        since = np.concatenate([nodes, inner, self._units(at - h.last)[:, None]], axis=1)  # [B, G]
        state = states(w, self.config, e, since)
        masses = total_rate(w, state[:, :-1]) * torch.from_numpy(np.concatenate([weights, inner_weights], axis=1))
        silence, inside = torch.split(masses, [nodes.shape[1], inner.shape[1]], dim=1)
        time = interval_nll(silence.sum(1), inside.sum(1), torch.from_numpy((hi - lo) * 1e-6))
        number = torch.from_numpy(self._vocabulary.numbers(target.type)).unsqueeze(1)
        log_p = type_logits(w, state[:, -1], len(self._vocabulary)).log_softmax(-1)
        kind = -log_p.gather(1, number).squeeze(1).double()
        return {
            "time": torch.where(timed, time, zero),
            "type": torch.where(typed, kind, zero),
            "survival": torch.where(silent, zero, zero),
        }

    def score(self, prediction: Prediction, target: Target) -> Losses:
        """ "time", "type" and "survival" as in `_nll`; "error", 0 or 1, of the marginal prediction's best type
        (a type never learnt counts as UNKNOWN)."""
        memo = self._memo(prediction)
        with torch.set_grad_enabled(memo.encoding.start.requires_grad):
            graph = self._nll(memo.leaves, memo.encoding, target)
        memo.scored[:] = [(target, graph)]
        values = {name: value.detach() for name, value in graph.items()}
        timed, typed, silent = (torch.from_numpy(mask) for mask in rows_with(target))
        number = torch.from_numpy(self._vocabulary.numbers(target.type))
        column = torch.where(number == UNKNOWN, len(self._vocabulary), number) - 1
        wrong = (prediction.type_log_probs.argmax(dim=1) != column).double()
        return {
            "time": Loss(value=values["time"], mask=timed),
            "type": Loss(value=values["type"], mask=typed),
            "error": Loss(value=torch.where(typed, wrong, 0.0), mask=typed),
            "survival": Loss(value=values["survival"], mask=silent),
        }

    # Learn

    def learn(self, batch: Batch, prediction: Prediction | None = None) -> Report:
        """One step on the mean NLL of the rows, plus alpha times the match loss on the pool's turn."""
        if self._moments is None:
            raise ServingOnly
        c, target = self.config, batch.target
        if prediction is None:
            memo = self._forward(self._histories(batch.context, batch.query), learning=True)
        else:
            memo = self._memo(prediction)
            if self._unknown_turn:
                memo = self._forward(memo.encoding.histories, learning=True)
        w, encoding = memo.leaves, memo.encoding
        shared = [nll for scored, nll in memo.scored if scored is target]
        nll = shared[0] if shared else self._nll(w, encoding, target)
        weight = torch.from_numpy(target.weight)
        loss = (weight * sum(nll.values(), torch.zeros_like(weight))).sum() / max(len(batch), 1)
        losses = {name: float(value.detach().mean()) for name, value in nll.items()}
        if self._pool_turn and encoding.chosen is not None:
            match = match_loss(encoding.query, w["pool.key"], encoding.chosen)
            losses["match"] = float(match.detach())
            loss = loss + c.match_weight * match
        self._move(w, loss)
        self._count(encoding, target)
        return Report(losses=losses, actions=self._learn_types(batch))

    def _move(self, leaves: Weights, loss: Tensor) -> None:
        """Backward pass and optimisers; changes weights and moments in place."""
        assert self._moments is not None
        c, moments = self.config, self._moments
        names = [name for name, leaf in leaves.items() if leaf.requires_grad]
        found = torch.autograd.grad(loss, [leaves[name] for name in names], allow_unused=True)
        gradients = {
            name: torch.zeros_like(leaves[name]) if gradient is None else gradient.contiguous()
            for name, gradient in zip(names, found, strict=True)
        }
        pool = {name: gradient for name, gradient in gradients.items() if name.startswith("pool.")}
        backbone = {name: gradient for name, gradient in gradients.items() if name not in pool}
        slow = self._counts["events"] >= c.warmup_events
        factor = dict.fromkeys(backbone, c.backbone_factor if slow else 1.0)
        factor |= dict.fromkeys(("type", "out", "out_bias"), c.type_factor if slow else 1.0)
        clip(backbone.values(), c.clip_norm)
        table = backbone.pop("type")
        row_adagrad(self._weights["type"], table, moments["type.sum"], rate=c.table_rate * factor["type"])
        rates = {name: c.learning_rate * factor[name] for name in backbone}
        adam(self._weights, backbone, moments, step=self._counts["steps"] + 1, rates=rates)
        if pool:
            clip(pool.values(), c.clip_norm)
            self._counts["pool_steps"] += 1
            rates = dict.fromkeys(pool, c.learning_rate)
            adam(self._weights, pool, moments, step=self._counts["pool_steps"], rates=rates)

    def _count(self, encoding: Encoding, target: Target) -> None:
        """Step, events, usage of the pool, and the time unit while it is still being estimated."""
        self._counts["steps"] += 1
        if encoding.chosen is not None and len(encoding.chosen):
            self._usage = torch.lerp(self._usage, encoding.chosen.float().mean(dim=0), 0.01)
        if target.kind is TargetKind.TICK:
            return
        self._counts["events"] += len(target.at)
        since = target.at - encoding.histories.last
        gaps = since[np.asarray(target.timed) & (since > 0)]
        if self.config.time_unit_s is None and self._counts["gaps"] < GAPS_FOR_UNIT and len(gaps):
            self._counts["gaps"] += len(gaps)
            self._log_gaps += float(np.log(gaps).sum())
            self._unit_us = math.exp(self._log_gaps / self._counts["gaps"])

    def _learn_types(self, batch: Batch) -> tuple[str, ...]:
        """Numbers new types, after the step: they were scored, and learnt, as UNKNOWN."""
        strings = batch.context.type.tolist()
        if batch.target.kind is TargetKind.EVENT:
            strings += batch.target.type.tolist()
        numbered = self._vocabulary.learn(strings)
        self._grow(rows_for(len(self._vocabulary), block=TYPE_BLOCK))
        for new in numbered:
            self._fill_row(new.number, new.name)
        return tuple(
            f"type {new.evicted!r} gave its row to {new.name!r}" for new in numbered if new.evicted is not None
        )

    def _grow(self, rows: int) -> None:
        """Appends zero rows to the type tables and their moments."""
        for tensors in (self._weights, self._moments or {}):
            for name, tensor in tensors.items():
                if name.split(".")[0] in ("type", "out", "out_bias") and len(tensor) < rows:
                    tensors[name] = torch.cat([tensor, tensor.new_zeros(rows - len(tensor), *tensor.shape[1:])])

    def _fill_row(self, number: int, name: str) -> None:
        """Starts a type's rows from hash(seed, name), without memory of who had them before."""
        for table, bound in (("type", 0.5), ("out", 0.05), ("out_bias", 0.0)):
            row = self._weights[table][number]
            row.copy_(uniform_tensor(self.config.seed, f"{table}\x1f{name}", tuple(row.shape), bound))
        for key, moment in getattr(self, "_moments", {}).items():
            if key.split(".")[0] in ("type", "out", "out_bias"):
                moment[number].zero_()

    # State

    def serving_state(self) -> State:
        """Configuration, weights, vocabulary and time unit: all that `predict` reads."""
        meta = {"name": self.name, "version": self.version, "config": self.config_dict()}
        return {
            "meta": json_tensor(meta),
            "vocabulary": self._vocabulary.state(),
            "time_unit_us": torch.tensor(self._unit_us, dtype=torch.float64),
            **{name: tensor.clone() for name, tensor in prefixed("weights.", self._weights).items()},
        }

    def state(self) -> State:
        """Everything, as tensors; "counts" holds steps, pool steps, events and gaps."""
        if self._moments is None:
            raise ServingOnly
        return {
            **self.serving_state(),
            **{name: tensor.clone() for name, tensor in prefixed("moments.", self._moments).items()},
            "counts": torch.tensor(list(self._counts.values()), dtype=torch.int64),
            "log_gaps": torch.tensor(self._log_gaps, dtype=torch.float64),
            "usage": self._usage.clone(),
        }

    def load(self, state: State) -> None:
        """See the protocol; everything is checked before anything changes."""
        for name in ("meta", "vocabulary", "time_unit_us"):
            if name not in state:
                raise ForeignState(f"{name} is missing")
        meta = from_json_tensor(state["meta"])
        own = {"name": self.name, "version": self.version}
        if not isinstance(meta, dict) or {name: meta.get(name) for name in own} != own:
            raise ForeignState(f"not a state of {self.name} version {self.version}")
        check_config(meta.get("config", {}), self.config_dict())
        vocabulary = Vocabulary.from_state(state["vocabulary"])
        weights = initial_weights(self.config, rows_for(len(vocabulary), block=TYPE_BLOCK))
        like: Weights = {
            **prefixed("weights.", weights),
            "time_unit_us": torch.zeros((), dtype=torch.float64),
        }
        full = "counts" in state
        if full:
            like |= prefixed("moments.", initial_moments(weights))
            like |= {"counts": torch.zeros(len(self._counts), dtype=torch.int64), "usage": self._usage}
            like["log_gaps"] = like["time_unit_us"]
        check_names(state, {*like, "meta", "vocabulary"})
        for name, tensor in like.items():
            check_like(name, state[name], tensor)
        counts = state["counts"].tolist() if full else [0] * len(self._counts)
        self._vocabulary = vocabulary
        self._weights = {name: tensor.detach().clone() for name, tensor in below("weights.", state).items()}
        self._moments = {n: t.detach().clone() for n, t in below("moments.", state).items()} if full else None
        self._counts = dict(zip(self._counts, counts, strict=True))
        self._unit_us = float(state["time_unit_us"])
        self._log_gaps = float(state["log_gaps"]) if full else 0.0
        self._usage = state["usage"].detach().clone() if full else torch.zeros_like(self._usage)


def initial_moments(weights: Weights) -> Weights:
    """Zero memory of the optimisers: Adam's two moments, and one sum per row of the type table."""
    moments = {"type.sum": torch.zeros(len(weights["type"]))}
    for name, weight in weights.items():
        if name != "type":
            moments[f"{name}.m"], moments[f"{name}.v"] = torch.zeros_like(weight), torch.zeros_like(weight)
    return moments


def _codes(strings: Strings, codes: dict[str, int], padded: Padded) -> Tensor:
    """[S, L] numbers of a closed set of words; 0 for any other word."""
    if len(strings) == 0:
        return torch.zeros(padded.index.shape, dtype=torch.int64)
    numbers = np.asarray([codes.get(word, 0) for word in strings.tolist()], dtype=np.int64)
    return torch.from_numpy(numbers[padded.index])
