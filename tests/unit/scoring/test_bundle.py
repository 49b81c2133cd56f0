"""A bundle: the same bytes each time, no byte of it changed unseen, and the answer it carries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from contracts.scoring import NextEventQuantile, RankedItem, ScoreRequest, TypeProbability
from learners.arms.group import ArmGroup
from learners.contract.made_up.shop import purchases, steps
from learners.contract.made_up.streams import random_batch
from learners.registry import build_group
from runtime.device_class import device_class
from runtime.lifecycle import Exit
from scoring.export import bundle as bundles
from scoring.export.bundle import EXAMPLE, MANIFEST, WEIGHTS, BadBundle, Bundle, canonical, parse, seal
from scoring.export.bundle_check import ATOL, RTOL, check, differences
from scoring.export.bundle_example import THREADS, UNKNOWN
from scoring.export.bundle_snapshot import bundle_of
from storage.learning import snapshot_files
from storage.learning.snapshot_files import BadSnapshot
from storage.learning.snapshot_registry import Snapshot

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SMALL = {"hidden": 8, "time_dim": 4, "layers": 1, "pool": 4, "prompt_length": 2, "retrieved": 2, "last_n": 8}
OPTIONS: dict[str, dict[str, Any]] = {
    "prompttpp": SMALL,
    "markov": {},
    "sdim": {"last_n": 16, "short_n": 4, "publish_every": 2},
    "own_count": {},
}
Tensors = dict[str, NDArray[Any]]


def cohort_of(learner: str) -> ArmGroup:
    """A learner that has learnt three steps."""
    arm_group = build_group(learner, 0, **OPTIONS[learner])
    ranks = arm_group.ranking is not None
    for batch in steps(purchases(1, 96)) if ranks else [random_batch(step, 16, 6) for step in range(3)]:
        arm_group.step(batch)
    return arm_group


@cache
def trained(learner: str) -> tuple[Snapshot, Tensors, dict[str, Any]]:
    """A snapshot of it, as the registry and its file have it."""
    arm_group = cohort_of(learner)
    tensors = {name: tensor.contiguous().numpy() for name, tensor in arm_group.state().items()}
    sha256 = snapshot_files.digest(tensors)
    manifest = {
        "schema_version": 1,
        "learner": learner,
        "learner_version": arm_group.version,
        "config": {"seed": 0, "options": OPTIONS[learner], "resolution_us": 1_000_000},
        "metrics": {"learner": {"type": {"sum": 1.5, "rows": 2}}},
        "sha256": sha256,
    }
    snapshot = Snapshot(
        id=f"{learner}-1-0000000003",
        learner=learner,
        branch=1,
        step=3,
        parent=None,
        status="live",
        pinned=False,
        irreproducible=False,
        cursor={7: 96},
        front=NOW,
        sha256=sha256,
        manifest=manifest,
        created_at=NOW,
        live_at=NOW,
    )
    return snapshot, tensors, manifest


def made(learner: str = "prompttpp") -> Bundle:
    return bundle_of(*trained(learner))


@pytest.fixture
def files() -> dict[str, bytes]:
    return made().files


@pytest.mark.parametrize("learner", sorted(OPTIONS))
def test_the_same_snapshot_is_the_same_bundle_and_answers_as_its_example_says(learner: str) -> None:
    one, again = made(learner), made(learner)
    assert one.files == again.files
    found = check(parse(one.files, where="here"), where="here")
    assert (found.learner, found.snapshot, found.exact) == (learner, f"{learner}-1-0000000003", True)
    assert found.figures > 5


def test_the_manifest_says_where_the_weights_come_from() -> None:
    snapshot, _, manifest = trained("prompttpp")
    told = made().manifest
    assert told["config"] == manifest["config"]
    assert told["snapshot"]["sha256"] == snapshot.sha256
    assert told["snapshot"]["cursor"] == {"7": 96}
    assert told["snapshot"]["losses"] == manifest["metrics"]
    assert told["torch_version"] == torch.__version__


def test_weights_are_those_that_serve_and_nothing_else() -> None:
    for learner in ("prompttpp", "sdim"):
        _, tensors, _ = trained(learner)
        bundle = made(learner)
        assert len(bundle.weights) < sum(tensor.nbytes for tensor in tensors.values()) / 2
        assert b"moments" not in bundle.weights[:20_000]


def test_examples_ask_as_score_is_asked_and_about_things_unknown_too() -> None:
    example = json.loads(made().example)
    assert msgspec.convert(example["request"], ScoreRequest).quantiles == (0.1, 0.5, 0.9)
    for one in example["answer"]["next_event"]:
        msgspec.convert({**one, "at": None}, NextEventQuantile)
    msgspec.convert(example["answer"]["next_type"], list[TypeProbability])
    shares = [one["probability"] for one in example["answer"]["next_type"]] + [example["answer"]["other_types"]]
    assert sum(shares) == pytest.approx(1)
    assert UNKNOWN in {event["type"] for event in example["history"]}
    ranked = json.loads(made("sdim").example)
    candidates = msgspec.convert(ranked["request"], ScoreRequest).candidates
    named = [msgspec.convert({**one, "known": None}, RankedItem) for one in ranked["answer"]["ranking"]]
    assert {one.item_id for one in named} == set(candidates or ())
    assert sum(one.probability for one in named) == pytest.approx(1)
    assert any(item.startswith("item ") for item in ranked["request"]["candidates"]), "it knows these"
    logits = [one["logit"] for one in ranked["answer"]["ranking"]]
    assert logits == sorted(logits, reverse=True)
    assert len(set(logits)) > 3


def test_no_users_name_is_in_a_bundle() -> None:
    """The seeded shop's users are called "user 0", "user 1", ..."""
    assert not [name for name, body in made("sdim").files.items() if b"user 1" in body]


@pytest.mark.parametrize("name", [WEIGHTS, EXAMPLE, MANIFEST])
def test_no_byte_changes_unseen_and_the_file_is_named(files: dict[str, bytes], name: str) -> None:
    rng = np.random.default_rng(0)
    for place in {0, len(files[name]) - 1, *rng.integers(len(files[name]), size=200).tolist()}:
        body = bytearray(files[name])
        body[place] ^= 1
        with pytest.raises(BadBundle, match=rf"here/{name}") as caught:
            parse({**files, name: bytes(body)}, where="here")
        assert caught.value.code is Exit.REFUSED


@pytest.mark.parametrize("name", [WEIGHTS, EXAMPLE, MANIFEST])
def test_a_file_that_is_cut_or_missing_is_named(files: dict[str, bytes], name: str) -> None:
    with pytest.raises(BadBundle, match=rf"here/{name}"):
        parse({**files, name: files[name][:-1]}, where="here")
    del files[name]
    with pytest.raises(BadBundle, match=rf"missing \[here/{name}\]"):
        parse(files, where="here")


def resealed(**changed: Any) -> Bundle:
    """A bundle whose digests agree and whose manifest says something else."""
    one = made()
    content = {name: value for name, value in {**one.manifest, **changed}.items() if name != "bundle"}
    return replace(one, manifest={**content, "bundle": bundles._sha256(canonical(content))})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"schema_version": 2}, "schema version 2; this code reads 1 .*manifest.json"),
        ({"learner_version": "0"}, "prompttpp of version '0'; this code's is .*weights.safetensors"),
        ({"learner": "oracle"}, "no learner 'oracle'; there are .*weights.safetensors"),
        ({"learner": "markov"}, "cannot be loaded"),
        ({"config": {"seed": 0, "options": {}}}, "configurations differ"),
    ],
)
def test_a_bundle_of_another_version_or_learner_is_refused_with_the_way_on(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(BadBundle, match=said) as caught:
        check(parse(resealed(**changed).files, where="here"), where="here")
    assert "Driftline" in caught.value.hint


def other_weights(bundle: Bundle) -> Bundle:
    """Somebody else's weights under the example of these."""
    arm_group = cohort_of("prompttpp")
    arm_group.step(random_batch(9, 16, 6))
    return seal(
        {name: value for name, value in bundle.manifest.items() if name not in {"bundle", "files", "schema_version"}},
        arm_group.learner.serving_state(),
        json.loads(bundle.example),
    )


def test_weights_that_answer_otherwise_are_refused_with_a_number() -> None:
    wrong = other_weights(made())
    with pytest.raises(BadBundle, match=r"answers otherwise .* expected, .* found \[here/example.json\]"):
        check(wrong, where="here")


def nudged(answer: dict[str, Any], factor: float) -> dict[str, Any]:
    return {**answer, "next_event": [{**one, "seconds": one["seconds"] * factor} for one in answer["next_event"]]}


def test_on_another_device_class_numbers_may_differ_by_the_stated_tolerance_and_no_more() -> None:
    answer = json.loads(made().example)["answer"]
    near, far = nudged(answer, 1 + RTOL / 2), nudged(answer, 1 + 3 * RTOL + ATOL)
    assert differences(answer, answer, exact=True) == []
    assert len(differences(answer, near, exact=True)) == 3
    assert differences(answer, near, exact=False) == []
    assert len(differences(answer, far, exact=False)) == 3
    foreign = resealed(device_class="cpu/of-another-kind")
    assert not check(foreign, where="here").exact
    assert device_class(threads=THREADS) == made().manifest["device_class"]


def _without_weights(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if "weights" not in name}


def _not_numbers(tensors: Tensors) -> Tensors:
    return {name: tensor * np.float32("nan") if "weights." in name else tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(("spoil", "fault"), [(_without_weights, "foreign"), (_not_numbers, "unfit")])
def test_a_snapshot_that_cannot_answer_becomes_no_bundle(spoil: Callable[[Tensors], Tensors], fault: str) -> None:
    snapshot, tensors, manifest = trained("prompttpp")
    with pytest.raises(BadSnapshot, match=snapshot.id) as caught:
        bundle_of(snapshot, spoil(tensors), manifest)
    assert caught.value.fault == fault
