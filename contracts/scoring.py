"""Questions to the scoring worker and its answers (`POST /v1/score`, `scores.requests` -> `scores.results`)."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from contracts.records import SCHEMA, Id, Name, Schema, Time

DEFAULT_QUANTILES = (0.1, 0.5, 0.9)

Quantile = Annotated[float, Meta(gt=0, lt=1)]


class ScoreRequest(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes next for a user, and when?"""

    user_id: Id
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


class ScoreAnswer(Struct, frozen=True, kw_only=True):
    """A prediction that says what it knew."""

    user_id: str
    request_id: str | None
    learner: str
    learner_version: str
    snapshot_id: str
    snapshot_step: int
    asked_at: Time
    """Event time the prediction stands at."""
    events_seen: int
    """Events of the user the model looked at (at most its history length)."""
    last_event_at: Time | None
    """None: the user is unknown; the answer is the model's for somebody without a past."""
    next_event: list[NextEventQuantile]
    next_type: list[TypeProbability]
    other_types: float
    """Probability of all types not named, the model's unknown type among them."""
    watermark: list[StreamPosition]
    """What user state the answer has seen."""
    staleness_seconds: float | None
    """Now minus the arrival of the newest records covered by the watermark; None = nothing arrived yet."""


class ScoreResult(ScoreAnswer, frozen=True, kw_only=True, tag_field="outcome", tag="answered"):
    """An answer on Kafka: that of `POST /v1/score`. Topic `scores.results`, key = that of the request.

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
    todo: str
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
