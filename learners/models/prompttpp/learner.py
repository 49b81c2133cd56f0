"""PromptTPP as a learner: predict, score, learn, and a state to go on from.

The paper's model is in `models/prompttpp.py`; here are its asynchronous schedule (backbone on every step, pool
on every C-th), its optimisers, its growing type tables and its unit of time.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from learners.blocks.interval import interval_nll, rows_with, tick_of
from learners.blocks.inversion import quantile_times
from learners.blocks.optimizers import adam, clip, row_adagrad
from learners.blocks.quadrature import log_rule
from learners.blocks.thinning import next_times
from learners.blocks.time_features import KNEE
from learners.blocks.time_unit import TimeUnit
from learners.contract.batch import Batch, Context, Floats, Ints, Query, Target, TargetKind
from learners.contract.needs import Needs
from learners.contract.protocol import ForeignState, Loss, Losses, Prediction, Report, ServingOnly, State
from learners.contract.randomness import uniform, uniform_tensor
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
from learners.models.prompttpp.network import (
    TYPE_BLOCK,
    Encoding,
    EventSequences,
    Weights,
    encode,
    initial_weights,
    match_loss,
    sequences_of,
    states,
    total_rate,
    type_logits,
)
from learners.models.prompttpp.spec import SPEC, PromptTPPConfig

DEFAULT_UNIT_S: Final = 3600.0
TYPE_EDGES: Final = np.concatenate([[0.0], 10.0 ** np.linspace(-3, 3, 10)])
"""Panels, units from now, over which types are averaged; two nodes in each."""
TO_NODES: Final = 2.0 * torch.tensor([[1 / 4, 1 / 4 + 3**0.5 / 6], [1 / 4 - 3**0.5 / 6, 1 / 4]], dtype=torch.float64)
"""Integrals up to each of a panel's two Gauss nodes from the two pieces of the whole (Butcher 1964)."""
NOT_FINITE: Final = "a gradient was not finite: no weight moved"


@dataclass(frozen=True, kw_only=True)
class Memo:
    """What `score` and `learn` use again of `predict`."""

    encoding: Encoding
    leaves: Weights
    """The weights it came from, as leaves of the graph that `learn` goes back through."""
    step: int
    scored: list[tuple[Target, dict[str, Tensor]]] = field(default_factory=list)
    """The last target scored and its likelihoods with their graph, kept by `score` for `learn`."""


class PromptTPP:
    """The learner; see `learners/contract/protocol.py` for what each verb may touch."""

    version: Final = SPEC.version

    def __init__(self, config: PromptTPPConfig | None = None, name: str = SPEC.name) -> None:
        self.name: Final = name
        self.config: Final = config or PromptTPPConfig()
        self._vocabulary = StringIndex(self.config.max_types)
        self._weights = initial_weights(self.config, TYPE_BLOCK)
        self._fill_row(UNKNOWN, UNKNOWN_NAME)
        self._moments: Weights | None = initial_moments(self._weights)
        self._counts = dict.fromkeys(("steps", "pool_steps", "events"), 0)
        self._unit = TimeUnit(start_us=1e6 * (self.config.time_unit_s or DEFAULT_UNIT_S))
        self._device = torch.device("cpu")
        self._usage = torch.full((self.config.layers, self.config.pool), 0.0)
        """[layers, M] moving share of rows that retrieved each prompt."""

    @property
    def needs(self) -> Needs:
        return SPEC.needs(self.config)

    def config_dict(self) -> dict[str, int | float | None]:
        """For the manifest."""
        return self.config.config_dict()

    @property
    def time_unit_s(self) -> float:
        """Seconds of one unit of the model's time."""
        return self._unit.us * 1e-6

    @property
    def usage(self) -> Tensor:
        """[layers, M] moving share of rows that retrieved each prompt."""
        return self._usage.clone()

    def to(self, device: torch.device) -> PromptTPP:
        """Computes on `device` from now on, and returns itself. Answers and states stay on the CPU; the bits
        are those of the device class, and cuBLAS wants CUBLAS_WORKSPACE_CONFIG for deterministic ones."""
        self._device = device
        for tensors in (self._weights, self._moments or {}):
            tensors.update({name: tensor.to(device) for name, tensor in tensors.items()})
        return self

    # Predict

    def predict(self, context: Context, query: Query) -> Prediction:
        """Types averaged over the next event's time, and quantiles of that time; see `Prediction`."""
        if any(not 0.0 < q < 1.0 for q in query.quantiles):
            raise ValueError(f"quantiles must lie between 0 and 1, got {query.quantiles}")
        memo = self._forward(self._histories(context, query))
        with torch.no_grad():
            return Prediction(
                quantiles=self._quantiles(memo.encoding, query.quantiles),
                types=(*self._vocabulary.names, UNKNOWN_NAME),
                type_log_probs=self._types(memo.encoding),
                memo=memo,
            )

    @property
    def _pool_turn(self) -> bool:
        return self.config.pool > 0 and self._counts["steps"] % self.config.refresh_every == 0

    @property
    def _unknown_turn(self) -> bool:
        return self._counts["steps"] % self.config.unknown_every == self.config.unknown_every - 1

    def _forward(self, histories: EventSequences, *, learning: bool = False) -> Memo:
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
        with torch.set_grad_enabled(learning or (shared and torch.is_grad_enabled())):
            encoding = encode(leaves, c, histories, torch.from_numpy(types).to(self._device))
        return Memo(encoding=encoding, leaves=leaves, step=self._counts["steps"])

    def _histories(self, context: Context, query: Query) -> EventSequences:
        return sequences_of(
            context,
            query,
            vocabulary=self._vocabulary,
            unit_us=self._unit.us,
            time_dim=self.config.time_dim,
        ).to(self._device)

    def _units(self, microseconds: Ints) -> Floats:
        return np.asarray(microseconds / self._unit.us)

    def _panels(self, encoding: Encoding, edges: Floats, nodes: int) -> tuple[Floats, Floats, Tensor]:
        """Query times and weights of every panel [edges[p], edges[p + 1]] from now, and states there."""
        h = encoding.histories
        since = self._units(h.now - h.last)[:, None] + edges[..., :-1]  # [B, P]
        width = np.broadcast_to(np.diff(edges), since.shape)
        times, weights = log_rule(since, width, nodes=nodes, knee=KNEE)  # [B, P, nodes]
        state = states(self._weights, self.config, encoding, times.reshape(len(since), times.shape[1] * nodes))
        return times, weights, state

    def _types(self, encoding: Encoding) -> Tensor:
        """[B, K] float64: log of integral p(type | t) f(t) dt over the next event's time, two nodes in each
        of 10 panels over 6 decades (the panels' probabilities are exact sums, so the total is 1)."""
        _, weights, state = self._panels(encoding, TYPE_EDGES, 2)
        rate = total_rate(self._weights, state).cpu().view(weights.shape)  # [B, P, 2]
        pieces = rate * torch.from_numpy(weights)
        panel = pieces.sum(-1)
        after = panel.cumsum(1)
        reached = torch.exp(panel - after)  # alive at the start of each panel
        # Inside a panel a node counts by its density: rate times being alive there.
        until = pieces @ TO_NODES
        dense = pieces * torch.exp(until.amin(-1, keepdim=True) - until)
        dense = dense / dense.sum(-1, keepdim=True)
        share = ((reached * -torch.expm1(-panel)).unsqueeze(-1) * dense).flatten(1)  # [B, P * 2]
        share[:, -1] += torch.exp(-after[:, -1])  # what comes later has the last node's types
        given = type_logits(self._weights, state, len(self._vocabulary)).softmax(-1)
        probability = torch.bmm(share.float().to(given.device).unsqueeze(1), given).squeeze(1).cpu().double()
        log = (probability / probability.sum(-1, keepdim=True)).clamp_min(1e-30).log()
        return torch.cat([log[:, 1:], log[:, :1]], dim=1)  # UNKNOWN goes last

    def _quantiles(self, encoding: Encoding, quantiles: tuple[float, ...]) -> Tensor:
        """[B, Q] float64 seconds from now."""
        rows = len(encoding.histories.now)
        if not quantiles:
            return torch.zeros((rows, 0), dtype=torch.float64)
        units = quantile_times(partial(self._compensators, encoding), rows, quantiles)
        return torch.from_numpy(units * self._unit.us * 1e-6)

    def _compensators(self, encoding: Encoding, edges: Floats) -> tuple[Floats, Floats]:
        """Compensator of each panel [B, P], and the rate [B, 1] at the last node."""
        _, weights, state = self._panels(encoding, edges, 2)
        rate = total_rate(self._weights, state).cpu().numpy().reshape(weights.shape)
        return (rate * weights).sum(axis=-1), rate[:, -1, -1:]

    @torch.no_grad()
    def sample(self, context: Context, query: Query, draws: int, generator: torch.Generator) -> Tensor:
        """[B, draws] float64 seconds from now to the next event, by thinning."""
        encoding = self._memo(self.predict(context, query)).encoding
        since = torch.from_numpy(self._units(query.now - encoding.histories.last)).unsqueeze(1)

        def intensity(ahead: Tensor) -> Tensor:
            state = states(self._weights, self.config, encoding, (since + ahead).numpy())
            return total_rate(self._weights, state).cpu()

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
            rate = total_rate(w, states(w, self.config, e, nodes)).cpu()
            return {"time": zero, "type": zero, "survival": (rate * torch.from_numpy(weights)).sum(1)}
        inner, inner_weights = log_rule(self._units(lo - h.last), self._units(hi - lo), nodes=3, knee=KNEE)
        since = np.concatenate([nodes, inner, self._units(at - h.last)[:, None]], axis=1)  # [B, G]
        state = states(w, self.config, e, since)
        masses = total_rate(w, state[:, :-1]).cpu() * torch.from_numpy(np.concatenate([weights, inner_weights], axis=1))
        silence, inside = torch.split(masses, [nodes.shape[1], inner.shape[1]], dim=1)
        time = interval_nll(silence.sum(1), inside.sum(1), torch.from_numpy((hi - lo) * 1e-6))
        number = torch.from_numpy(self._vocabulary.numbers(target.type)).unsqueeze(1)
        log_p = type_logits(w, state[:, -1], len(self._vocabulary)).log_softmax(-1).cpu()
        kind = -log_p.gather(1, number).squeeze(1).double()
        return {
            "time": torch.where(timed, time, zero),
            "type": torch.where(typed, kind, zero),
            "survival": torch.where(silent, zero, zero),
        }

    def score(self, prediction: Prediction, target: Target) -> Losses:
        """Losses "time", "type" and "survival" as in `_nll`; "error", 0 or 1, of the marginal prediction's best type
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
        if len(batch) == 0:
            return Report(losses={})
        c, target = self.config, batch.target
        if prediction is None:
            memo = self._forward(self._histories(batch.context, batch.query), learning=True)
        else:
            memo = self._memo(prediction)
            if self._unknown_turn or not memo.encoding.start.requires_grad:
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
        moved = self._move(w, loss)
        self._count(encoding, target)
        revised = self._learn_unit(batch, encoding)
        numbered = self._learn_types(batch)
        return Report(
            losses=losses,
            actions=(*(() if moved else (NOT_FINITE,)), *revised, *numbered),
            retrieved=_retrieved(encoding.chosen),
        )

    def _move(self, leaves: Weights, loss: Tensor) -> bool:
        """Backward pass and optimisers; changes weights and moments in place. A gradient that is not finite
        moves nothing, and the answer is False."""
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
        if not math.isfinite(clip(backbone.values(), c.clip_norm) + clip(pool.values(), c.clip_norm)):
            return False
        table = backbone.pop("type")
        row_adagrad(self._weights["type"], table, moments["type.sum"], rate=c.table_rate * factor["type"])
        rates = {name: c.learning_rate * factor[name] for name in backbone}
        adam(self._weights, backbone, moments, step=self._counts["steps"] + 1, rates=rates)
        if pool:
            self._counts["pool_steps"] += 1
            rates = dict.fromkeys(pool, c.learning_rate)
            adam(self._weights, pool, moments, step=self._counts["pool_steps"], rates=rates)
        return True

    def _count(self, encoding: Encoding, target: Target) -> None:
        """Step, events and usage of the pool."""
        self._counts["steps"] += 1
        if encoding.chosen is not None and len(encoding.chosen):
            self._usage = torch.lerp(self._usage, encoding.chosen.float().mean(dim=0).cpu(), 0.01)
        if target.kind is not TargetKind.TICK:
            self._counts["events"] += len(target.at)

    def _learn_unit(self, batch: Batch, encoding: Encoding) -> tuple[str, ...]:
        """Lets the step's gaps speak for the unit of time. Where it is given up, weights keep their meaning in
        units, or the rate keeps its own in seconds: whichever explains this step better."""
        target = batch.target
        if self.config.time_unit_s is not None or target.kind is TargetKind.TICK:
            return ()
        gaps = target.at - encoding.histories.last
        timed = np.asarray(target.timed) & (gaps > 0)
        before = self._unit.learn(gaps[timed], target.resolution[timed])
        if before is None:
            return ()
        in_units = self._weights["rate_scale"]
        in_seconds = in_units + math.log(self._unit.us / before)
        histories = self._histories(batch.context, batch.query)
        costs = [self._cost_of_time(histories, target, scale) for scale in (in_units, in_seconds)]
        self._weights["rate_scale"] = in_seconds if costs[1] < costs[0] else in_units
        return (f"unit of time {before * 1e-6:.6g} s -> {self.time_unit_s:.6g} s",)

    @torch.no_grad()
    def _cost_of_time(self, histories: EventSequences, target: Target, rate_scale: Tensor) -> float:
        """Mean loss of the rows' times under another scale of the rate, in nats."""
        leaves = self._weights | {"rate_scale": rate_scale}
        types = torch.from_numpy(histories.type).to(self._device)
        nll = self._nll(leaves, encode(leaves, self.config, histories, types), target)
        return float(nll["time"].mean())

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

    def forget(self, users: Container[str]) -> None:
        """Nothing is kept by user: weights, types and counts are of everybody's events."""

    def serving_state(self) -> State:
        """Configuration, weights, vocabulary and time unit: all that `predict` reads."""
        meta = {"name": self.name, "version": self.version, "config": self.config_dict()}
        return {
            "meta": json_tensor(meta),
            "vocabulary": self._vocabulary.state(),
            "time_unit_us": torch.tensor(self._unit.us, dtype=torch.float64),
            **_copied(prefixed("weights.", self._weights)),
        }

    def state(self) -> State:
        """Everything, as tensors; "counts" holds steps, pool steps and events."""
        if self._moments is None:
            raise ServingOnly
        return {
            **self.serving_state(),
            **_copied(prefixed("moments.", self._moments)),
            "counts": torch.tensor(list(self._counts.values()), dtype=torch.int64),
            **prefixed("unit.", self._unit.state()),
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
        vocabulary = StringIndex.from_state(state["vocabulary"])
        weights = initial_weights(self.config, rows_for(len(vocabulary), block=TYPE_BLOCK))
        like: Weights = {
            **prefixed("weights.", weights),
            "time_unit_us": torch.zeros((), dtype=torch.float64),
        }
        full = "counts" in state
        if full:
            like |= prefixed("moments.", initial_moments(weights))
            like |= {"counts": torch.zeros(len(self._counts), dtype=torch.int64), "usage": self._usage}
            like |= prefixed("unit.", self._unit.state())
        check_names(state, {*like, "meta", "vocabulary"})
        for name, tensor in like.items():
            check_like(name, state[name], tensor)
        unit = TimeUnit.from_state(float(state["time_unit_us"]), below("unit.", state) if full else None)
        counts = state["counts"].tolist() if full else [0] * len(self._counts)
        self._vocabulary = vocabulary
        # In our own order of names, not the state's (a file's is arbitrary): norms are summed in it.
        self._weights = _copied({name: state[f"weights.{name}"] for name in weights})
        names = initial_moments(weights)
        self._moments = _copied({name: state[f"moments.{name}"] for name in names}) if full else None
        self.to(self._device)
        self._counts = dict(zip(self._counts, counts, strict=True))
        self._unit = unit
        self._usage = state["usage"].detach().clone() if full else torch.zeros_like(self._usage)


def _retrieved(chosen: Tensor | None) -> dict[str, int]:
    """Rows that retrieved each prompt, by "layer.prompt"; `chosen` is [B, layers, M]."""
    if chosen is None:
        return {}
    rows = enumerate(chosen.sum(dim=0).tolist())
    return {f"{layer}.{prompt}": n for layer, row in rows for prompt, n in enumerate(row) if n}


def _copied(tensors: Weights) -> Weights:
    """Copies on the CPU, whoever owns the originals."""
    return {name: tensor.detach().clone().cpu() for name, tensor in tensors.items()}


def initial_moments(weights: Weights) -> Weights:
    """Zero memory of the optimisers: Adam's two moments, and one sum per row of the type table."""
    moments = {"type.sum": torch.zeros(len(weights["type"]))}
    for name, weight in weights.items():
        if name != "type":
            moments[f"{name}.m"], moments[f"{name}.v"] = torch.zeros_like(weight), torch.zeros_like(weight)
    return moments
