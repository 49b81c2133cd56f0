"""
PromptTPP: a neural temporal point process with a continuous-time retrieval prompt pool. The whole forward
pass is in this file: causal attentive Hawkes backbone, pool, rates. How it learns is in `learner.py` beside it.

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

Time inside is in the model's own unit, the typical gap (`blocks/time_unit.py`); shape legend in `batch.py`;
X = D + T + R is the width of a token: embedding, waves of its time, bank of its gap; G = times asked per row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learners.blocks.attention import Memory, affine, attend
from learners.blocks.padding import Padded, last_at, pad
from learners.blocks.time_features import BANK, bank, decays, waves
from learners.contract.batch import Context, Floats, Ints, Query, Strings
from learners.contract.randomness import uniform_tensor
from learners.contract.string_index import StringIndex
from learners.models.prompttpp.spec import PromptTPPConfig

KINDS: Final = {"user": 1, "payment": 2, "relation": 3}
ROLES: Final = {"actor": 1, "counterpart": 2}
FLOOR: Final = 1e-8
"""Lowest total rate, per unit: no silence is impossible, and every quantile is finite."""
TYPE_BLOCK: Final = 64
"""Type tables grow by so many rows: streams have tens of types, and 4,096 rows each would be mostly empty."""


@dataclass(frozen=True, kw_only=True)
class EventSequences:
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

    def to(self, device: torch.device) -> EventSequences:
        """The same with its tensors on `device`."""
        held = {item.name: getattr(self, item.name) for item in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in held.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """Stacks after the event layers, gathered for each row."""

    histories: EventSequences
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


Weights = dict[str, Tensor]


def sequences_of(
    context: Context, query: Query, *, vocabulary: StringIndex, unit_us: float, time_dim: int
) -> EventSequences:
    """Everything about a batch that no weight enters; `unit_us` is the model's unit in microseconds."""
    padded = pad(context, query)
    at = padded.at / unit_us
    gaps = np.diff(at, axis=1, prepend=at[:, :1])
    mean_gap = at / np.maximum(np.arange(at.shape[1]), 1)  # of the gaps up to each event
    empty = len(context.at) == 0
    types = np.zeros_like(padded.index) if empty else vocabulary.numbers(context.type)[padded.index]
    return EventSequences(
        type=types,
        key=types if empty else context.key[padded.index],
        kind=_codes(context.kind, KINDS, padded),
        role=_codes(context.role, ROLES, padded),
        waves=waves(at, time_dim),
        bank=bank(gaps),
        ahead=waves(at + mean_gap, time_dim),
        stack=torch.from_numpy(query.stack),
        place=torch.from_numpy(np.maximum(query.visible - 1, 0)),
        some=torch.from_numpy((query.visible > 0).astype(np.float32)).unsqueeze(1),
        visible=torch.from_numpy(np.arange(at.shape[1]) < query.visible[:, None]).unsqueeze(1),
        now=query.now,
        last=last_at(context, query),
    )


def _codes(strings: Strings, codes: dict[str, int], padded: Padded) -> Tensor:
    """[S, L] numbers of a closed set of words; 0 for any other word."""
    if len(strings) == 0:
        return torch.zeros(padded.index.shape, dtype=torch.int64)
    numbers = np.asarray([codes.get(word, 0) for word in strings.tolist()], dtype=np.int64)
    return torch.from_numpy(numbers[padded.index])


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
        # 8 softplus(-3.45) = 1/4 of an event per unit, with room above and below: a geometric mean of gaps
        # lies below their mean, by 1.8 for exponential gaps and by 18 for StackOverflow's.
        "rate_bias": torch.tensor([-3.45]),
        "rate_scale": torch.tensor([math.log(8.0)]),
        "out": torch.zeros(rows, out),
        "out_bias": torch.zeros(rows),
    }
    if c.pool:
        weights["pool.key"] = draw("pool.key", c.layers, c.pool, c.hidden + len(BANK), bound=1.0)
        shape = (c.layers, 2, c.pool, c.prompt_length, c.hidden)
        weights["pool.prompt"] = draw("pool.prompt", *shape, bound=1.0)
    return weights


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


def encode(w: Weights, c: PromptTPPConfig, h: EventSequences, types: Tensor) -> Encoding:
    """Runs the event layers once per stack, causally, and gathers what each row will look at."""
    length = types.shape[1]
    token = torch.tanh(F.embedding(types, w["type"]) + F.embedding(h.kind, w["kind"]) + F.embedding(h.role, w["role"]))
    query = decays(length, c.query_decay).to(token.device) @ torch.cat(
        [token.detach(), h.bank], dim=-1
    )  # [S, L, D + R]
    row_query = query[h.stack, h.place] * h.some
    row_ahead = (h.ahead[h.stack, h.place] * h.some).unsqueeze(1)  # [B, 1, T]
    chosen = row_chosen = None
    if c.pool:
        chosen = retrieve(query, w["pool.key"][:-1], c.retrieved)  # [S, L, layers - 1, M]
        row_chosen = retrieve(row_query, w["pool.key"], c.retrieved)  # [B, layers, M]
    causal = torch.ones(1, length, length, dtype=torch.bool, device=token.device).tril()
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
    context = torch.cat([ahead, bank(since).to(ahead.device)], dim=-1).expand(c.heads, -1, -1, -1)  # [H, B, G, T + R]
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
