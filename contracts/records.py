"""The records on the topics, frozen and versioned.

Wire format is JSON. Times are ISO 8601 with an offset, kept to the microsecond and read as UTC. Money is an
integer count of millionths of the currency unit: 12.50 EUR is `"amount": 12500000, "currency": "EUR"`.
Ids are strings of 1 to 256 characters. `source` tells apart streams that share a topic.

`schema` is "MAJOR.MINOR". A reader of 1.0 reads every 1.x: fields it does not know are ignored (and
counted); a change that an old reader would misread raises MAJOR, and is refused by readers of 1.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

SCHEMA = "1.0"
MAJOR = "1"

MAX_ID_CHARS = 256
MAX_NAME_CHARS = 128
MAX_TEXT_CHARS = 20_000
MAX_RECORD_BYTES = 1_000_000
"""A larger record is refused unread; only the item text can come near it."""
MILLIONTHS = 1_000_000
"""Money on the wire: units of 1/1,000,000 of the currency unit."""
MAX_AMOUNT = 10**17
"""100 billion currency units; keeps sums of millions of payments inside 64 bits."""

Id = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Text = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Schema = Annotated[str, Meta(min_length=3, max_length=16, description="MAJOR.MINOR of the record's schema")]
Time = Annotated[datetime, Meta(tz=True, description="ISO 8601 with offset; microseconds are kept")]
Currency = Annotated[
    # The lengths too: to Python's `re`, "$" also matches before a final newline.
    str, Meta(pattern="^[A-Z]{3}$", min_length=3, max_length=3, description="ISO 4217 code")
]
Amount = Annotated[
    int, Meta(ge=-MAX_AMOUNT, le=MAX_AMOUNT, description="millionths of the currency unit; negative = refund")
]


class UserEvent(Struct, frozen=True, kw_only=True, gc=False):
    """Something a user did. Topic `events.user`, key = user_id."""

    KIND: ClassVar[str] = "user"

    schema: Schema = SCHEMA
    event_id: Id
    user_id: Id
    occurred_at: Time
    source: Name
    type: Name
    """What happened, e.g. "click" or "badge:Caucus"."""
    item_id: Id | None = None
    """The item it was about."""


class Payment(Struct, frozen=True, kw_only=True, gc=False):
    """Money a user moved. Topic `events.payment`, key = user_id."""

    KIND: ClassVar[str] = "payment"

    schema: Schema = SCHEMA
    event_id: Id
    user_id: Id
    occurred_at: Time
    source: Name
    type: Name
    amount: Amount
    currency: Currency
    payee_id: Id | None = None
    """Merchant, terminal or account on the other side."""
    item_id: Id | None = None


class Relation(Struct, frozen=True, kw_only=True, gc=False):
    """Something one user did to another. Published once, topic `events.relational`, key = actor_id.

    It stands in both users' sequences or in neither.
    """

    KIND: ClassVar[str] = "relation"

    schema: Schema = SCHEMA
    event_id: Id
    actor_id: Id
    relation: Name
    """E.g. "message" or "follow"."""
    counterpart_id: Id
    occurred_at: Time
    source: Name


class Item(Struct, frozen=True, kw_only=True):
    """The newest description of an item. Topic `items` (compacted), key = item_id; a null value deletes."""

    KIND: ClassVar[str] = "item"

    schema: Schema = SCHEMA
    item_id: Id
    source: Name
    title: Text = ""
    text: Text = ""
    attributes: dict[Name, Text] = {}


class Label(Struct, frozen=True, kw_only=True, gc=False):
    """An outcome that arrives late. Topic `labels`, key = user_id."""

    KIND: ClassVar[str] = "label"

    schema: Schema = SCHEMA
    event_id: Id
    """Identity of this label."""
    user_id: Id
    task: Name
    """What the outcome is of, e.g. "fraud"."""
    subject_event_id: Id | None = None
    """The event it speaks of; None = the user as a whole."""
    ref_time: Time
    """A prediction of it may use what happened strictly before this time."""
    known_at: Time
    """When the outcome became known."""
    value: float
    source: Name


class LossSum(Struct, frozen=True, kw_only=True):
    """A loss of one step, addable over steps."""

    sum: float
    rows: int


class Progress(Struct, frozen=True, kw_only=True):
    """One step of a learner. Topic `learning.progress`, key = learner.

    Delivered at least once: a repeated step repeats its id (learner, branch, step).
    """

    schema: Schema = "1.2"
    learner: Name
    branch: int
    step: int
    rows: int
    late: int
    """Rows behind the merge front: learnt, and counted here."""
    first_event_at: Time
    last_event_at: Time
    front: Time
    """Record time the merge has reached: the event-time watermark."""
    losses: dict[str, dict[str, LossSum]]
    """arm -> loss -> sum over the step's rows, scored before the step was learnt."""
    actions: list[str] = []
    snapshot: str | None = None
    """Snapshot this step belongs to, if one is taken after it."""
    types: dict[str, int] = {}
    """Type -> rows of the step. Since 1.1, as all that follows."""
    confidence: LossSum | None = None
    """Probability that the learner gave the type it held most probable; None = it names no types."""
    prompts: dict[str, int] = {}
    """"layer.prompt" -> rows that retrieved it; empty for a learner without prompts."""
    idle: list[str] = []
    """Streams ("labels[0]") that had been read to the broker's end when silences ended with this step: nothing was
    waited for there. Since 1.2."""


class DriftWindow(Struct, frozen=True, kw_only=True):
    """A stretch of what `drift` reads: records of one partition, [first_offset, next_offset)."""

    partition: int
    first_offset: int
    next_offset: int
    first_step: int
    """Step of the learner; of a topic without steps, the record's offset."""
    last_step: int
    first_event_at: Time
    last_event_at: Time
    rows: int
    mean: float
    """Of the series, over blocks of the window; what it measures is in docs/drift.md."""


class DriftAlarm(Struct, frozen=True, kw_only=True):
    """A series changed. Topic `drift.alarms`, key = id.

    Delivered at least once, and a repeated alarm is the same to the byte: a reader keeps the first of an id.
    """

    schema: Schema = SCHEMA
    id: str
    """"<topic id>/<source>/<subject>/<branch>/<series>/<detector>/<step>"; a recreated topic has another id."""
    source: Name
    """Topic it was seen in."""
    subject: Name
    """The learner, or the task of a label."""
    branch: int
    """The learner's branch; 0 where there are none."""
    series: Name
    """What changed, e.g. "learner/type", "types", "calibration"."""
    detector: Name
    step: int
    """The last step (or offset) that was looked at."""
    raised_at: Time
    """Event time of that step; nothing here reads a clock."""
    before: DriftWindow
    """Since the detector's last reset, until the change as far as it can be placed."""
    after: DriftWindow
    """Since the change."""
    z: float
    """How sure: difference of the two means in standard errors, at the split where it is largest."""
    budget: float
    """False alarms per 100,000 events that the thresholds of all series of the subject together were set for."""
    shifts: dict[str, tuple[float, float]] = {}
    """Of a mix: name -> (share before, share lately), those that moved most."""


class DeadLetterNotice(Struct, frozen=True, kw_only=True):
    """A pointer to a refused record. Topic `events.dlq`, key = the dead letter's id.

    It carries no content: the record itself is in Postgres, where it can be read, replayed and erased.
    """

    schema: Schema = SCHEMA
    id: str
    """"<stream id>:<offset>"; `driftline dlq show ID` prints the record."""
    reason: str
    topic: str
    partition: int
    offset: int
    size: int
    """Bytes of the record's value."""
    sha256: str
    """Of the record's value."""


Event = UserEvent | Payment | Relation
Record = UserEvent | Payment | Relation | Item | Label
