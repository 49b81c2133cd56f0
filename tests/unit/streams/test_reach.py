"""How long the histories are that learners ask for, beside what retention leaves of them."""

from __future__ import annotations

from typing import Any

import pytest

from learners.learner_config import LearnerConfig
from runtime.lifecycle import OperatorActionRequired
from streams.maintain import history_requirements


def born(learner: str, **options: Any) -> dict[str, dict[str, Any]]:
    """As the learner's row keeps it."""
    return {learner: LearnerConfig(learner=learner, seed=1, options=options, resolution_us=1).as_json()}


def test_no_learner_asks_for_nothing() -> None:
    history_requirements.check({}, events=256)


def test_as_many_events_as_a_learner_asks_for_are_enough_and_one_fewer_is_not() -> None:
    history_requirements.check(born("prompttpp", last_n=700), events=700)
    with pytest.raises(OperatorActionRequired, match="prompttpp for 700"):
        history_requirements.check(born("prompttpp", last_n=700), events=699)


def test_what_is_not_set_is_asked_of_the_learner_and_of_the_arms_beside_it() -> None:
    """Of sdim's arms, both the learner and the count of own items ask for 256 by default."""
    history_requirements.check(born("sdim"), events=256)
    with pytest.raises(OperatorActionRequired, match="sdim for 256"):
        history_requirements.check(born("sdim"), events=255)


def test_all_that_ask_for_more_are_named_and_the_longest_is_what_to_set() -> None:
    askers = born("prompttpp", last_n=700) | born("sdim", last_n=900) | born("risk")
    with pytest.raises(OperatorActionRequired, match="prompttpp for 700, sdim for 900") as refused:
        history_requirements.check(askers, events=512)
    assert "DRIFTLINE_MAINTAIN__STATE_EVENTS to 900" in refused.value.hint
    assert "risk" not in str(refused.value)


ROW = {"seed": 1, "options": {"depth": 3}, "resolution_us": 1}


@pytest.mark.parametrize("askers", [{"of_tomorrow": ROW}, {"prompttpp": ROW}, {"prompttpp": {}}])
def test_a_learner_that_this_code_cannot_build_is_not_trimmed_behind_its_back(askers: dict[str, Any]) -> None:
    with pytest.raises(OperatorActionRequired, match=r"cannot tell how long its histories are.*learner "):
        history_requirements.check(askers, events=100_000)
