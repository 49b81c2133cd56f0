"""A model answers before it is asked: what gives no number never serves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from learners import registry
from learners.models.sdim.embedding_version import next_version
from learners.models.sdim.learner import SDIM
from learners.models.sdim.spec import SDIMConfig
from scoring.serve.warm_up import warm_up
from scoring.weights import SERVED


@pytest.mark.parametrize("name", [n for n in registry.names() if registry.tasks_of(n)[0].kind in SERVED])
def test_every_learner_that_is_served_answers_a_full_and_an_empty_history(name: str) -> None:
    warm_up(registry.build(name), ranks=registry.tasks_of(name)[0].kind == "ranking", published=None)


@pytest.mark.parametrize("items", [0, 1, 30])
def test_a_published_version_answers_however_few_items_it_knows(items: int) -> None:
    published = SDIM(SDIMConfig(width=8, hidden=8)).published
    names = [f"item {n}" for n in range(items)]
    version = next_version(published, names, torch.randn(items + 1, 8), torch.zeros(items + 1), published.weights)
    warm_up(SDIM(), ranks=True, published=version)


def test_weights_that_are_no_numbers_are_refused() -> None:
    published = SDIM().published
    broken = replace(
        published, weights={**published.weights, "out": torch.full_like(published.weights["out"], torch.nan)}
    )
    with pytest.raises(ArithmeticError, match="no numbers"):
        warm_up(SDIM(), ranks=True, published=broken)
