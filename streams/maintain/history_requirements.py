"""Whether retention leaves users' sequences as long as the learners of the database ask for (protocol, rule 12)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from learners.learner_config import LearnerConfig
from runtime.lifecycle import OperatorActionRequired

_OTHERWISE = "or name no topic in DRIFTLINE_MAINTAIN__STATE_DAYS, or `driftline retire` learners that nobody runs"


def check(askers: Mapping[str, Mapping[str, Any]], *, events: int) -> None:
    """
    :param askers: learner -> the configuration it was born with, as its row of the table `learner` keeps it.
    :param events: of each user that stay, however old.
    :raises Refused: a learner asks for longer histories than that, or this code cannot tell how long its are.
    """
    asked = {name: _asked(name, json.dumps(config, sort_keys=True)) for name, config in askers.items()}
    more = {name: length for name, length in asked.items() if length > events}
    if more:
        who = ", ".join(f"{name} for {length}" for name, length in more.items())
        raise OperatorActionRequired(
            f"users' sequences would be cut to {events} events, but learners ask for longer histories: {who}",
            where="setting maintain.state_events",
            hint=f"set DRIFTLINE_MAINTAIN__STATE_EVENTS to {max(more.values())} or more, {_OTHERWISE}",
        )


@cache
def _asked(learner: str, config: str) -> int:
    """Events of the longest history that the learner or an arm beside it asks for."""
    try:
        return max(need.last_n for need in LearnerConfig.from_json(learner, json.loads(config)).needs())
    except (KeyError, TypeError, ValueError, ImportError) as error:
        raise OperatorActionRequired(
            f"this code cannot tell how long its histories are: {type(error).__name__}: {error}",
            where=f"learner {learner}",
            hint=f"run `maintain` of the version that trains it, {_OTHERWISE}",
        ) from error
