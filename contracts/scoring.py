"""Questions to the scoring worker and its answers (`POST /v1/score`, `scores.requests` -> `scores.results`).

There are two kinds of question, and the learner a worker runs with decides which it answers: what comes next and
when (`ScoreAnswer`), or how the candidates named in the request rank (`RankingAnswer`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from contracts.records import SCHEMA, Id, Name, Schema, Time

DEFAULT_QUANTILES = (0.1, 0.5, 0.9)
MAX_CANDIDATES = 1_000
"""Of one request."""

Quantile = Annotated[float, Meta(gt=0, lt=1)]
UserState = Literal["cache_hit", "cache_updated", "cache_rebuilt", "from_history", "no_history"]
"""How a ranking came by the user's past: the stored signature table as it was; the table and the few events since; a
table built from the user's sequence, for there was none of this version, or it did not reach to the time asked; the
sequence itself, by a learner that keeps no tables; or there is no past."""


class ScoreRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes next for a user, and when? With candidates: which of these items next?"""

    user_id: Id
    candidates: Annotated[tuple[Id, ...], Meta(min_length=1, max_length=MAX_CANDIDATES)] | None = None
    """Item ids to rank, by a learner that ranks; one named twice counts once. `quantiles` and `types` then say
    nothing."""
    top: Annotated[int, Meta(ge=1, le=MAX_CANDIDATES)] | None = None
    """How many of the best candidates to name; None = all."""
    at: Time | None = None
    """Asked as of this event time: only events strictly before it count, and the user is taken to have been
    silent since the last of them. None = as of the user's newest event (an instant after it)."""
    quantiles: Annotated[tuple[Quantile, ...], Meta(max_length=32)] = DEFAULT_QUANTILES
    types: Annotated[int, Meta(ge=1, le=1000)] = 10
    """How many of the most probable types to name."""
    request_id: Id | None = None
    """Repeated in the answer. On Kafka the default is the request's place: topic id, partition and offset."""
    deadline: Time | None = None
    """After this time by the worker's clock nobody waits any more: the request is refused as expired, unanswered."""


class ScoreCall(ScoreRequest, frozen=True, kw_only=True, forbid_unknown_fields=False):
    """A question on Kafka. Topic `scores.requests`, key = user_id; answered on `scores.results`."""

    schema: Schema = SCHEMA


class NextEventQuantile(Struct, frozen=True, kw_only=True):
    """With probability `quantile` the next event comes no later than `seconds` after `asked_at`."""

    quantile: float
    seconds: float | None
    """None: the model gives less than this probability to any next event at all."""
    at: Time | None


class TypeProbability(Struct, frozen=True, kw_only=True):
    """How probable it is that the next event has this type."""

    type: Name
    probability: float


class StreamPosition(Struct, frozen=True, kw_only=True):
    """A partition, and the offset below which its records are part of the answer."""

    topic: str
    partition: int
    topic_id: str
    next_offset: int


class Answer(Struct, frozen=True, kw_only=True):
    """What every answer says of what it knew."""

    user_id: str
    request_id: str | None
    learner: str
    learner_version: str
    snapshot_id: str
    snapshot_step: int
    asked_at: Time
    """Event time the answer stands at."""
    events_seen: int
    """Events of the user the model looked at (at most its history length); where it ranks, those that carry an item."""
    last_event_at: Time | None
    """The newest of them. None: there is none, and the answer is the model's for somebody without a past."""
    watermark: list[StreamPosition]
    """What user state the answer has seen."""
    staleness_seconds: float | None
    """Now minus the arrival of the newest records covered by the watermark; None = nothing arrived yet."""


class ScoreAnswer(Answer, frozen=True, kw_only=True):
    """What comes next, and when."""

    next_event: list[NextEventQuantile]
    next_type: list[TypeProbability]
    other_types: float
    """Probability of all types not named, the model's unknown type among them."""


class RankedItem(Struct, frozen=True, kw_only=True):
    """A candidate with what the model gives it."""

    item_id: str
    logit: float
    """Raw; comparable between candidates of one snapshot and user."""
    probability: float
    """Softmax of the logits over all candidates of the request, those not named among them."""
    known: bool | None
    """Whether the item is in the snapshot's published vectors; items that are not all rank as one unknown item. None:
    the learner publishes no vectors."""


class RankingAnswer(Answer, frozen=True, kw_only=True):
    """The candidates in order, the best first; of equals the one named first."""

    ranking: list[RankedItem]
    candidates: int
    """How many were ranked."""
    embedding: str | None
    """Version of the item vectors that table and candidates share; None: the learner publishes none."""
    state: UserState
    cache_updated: int
    """Events added to the stored table; 0 unless `state` is "cache_updated"."""


class ScoreResult(ScoreAnswer, frozen=True, kw_only=True, tag_field="outcome", tag="answered"):
    """An answer on Kafka: that of `POST /v1/score`. Topic `scores.results`, key = that of the request.

    Delivered at least once; of one `request_id` a reader keeps the first answer.
    """

    schema: Schema = SCHEMA


class RankingResult(RankingAnswer, frozen=True, kw_only=True, tag_field="outcome", tag="ranked"):
    """A ranking on Kafka: that of `POST /v1/score`. Topic `scores.results`, key = that of the request.

    Delivered at least once; of one `request_id` a reader keeps the first answer.
    """

    schema: Schema = SCHEMA


class ScoreFailure(Struct, frozen=True, kw_only=True, tag_field="outcome", tag="refused"):
    """Why a request on Kafka has no answer. Topic `scores.results`, key = that of the request.

    Delivered at least once, under the same id each time.
    """

    request_id: str
    """The request's own; its place where it could not be read, or had none."""
    user_id: str | None
    """None: the request could not be read."""
    reason: Literal["invalid", "expired", "failed"]
    message: str
    where: str
    hint: str
    schema: Schema = SCHEMA


class ModelInfo(Struct, frozen=True, kw_only=True):
    """A learner that answers (`GET /v1/models`)."""

    learner: str
    learner_version: str
    snapshot_id: str
    snapshot_step: int
    snapshot_created_at: Time
    device: str
    sha256: str
    answers: Literal["next_event", "ranking"]
    """Which kind of question it answers."""
    embedding: str | None
    """Version of the item vectors it ranks with; None: it has none."""
