"""The tables.

Every per-user table has user_id first in its key and no constraint across users, so that it can be
distributed by user. Keys of what `ingest` writes contain the owner's epoch: rows of a frozen owner's open
transaction can then never block its successor's.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, DOUBLE_PRECISION, JSONB, UUID

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        "ck": "%(table_name)s_%(constraint_name)s_check",
    }
)

Time = DateTime(timezone=True)


installation = Table(
    "installation",
    metadata,
    Column("singleton", Boolean, primary_key=True, server_default=text("true")),
    Column("id", UUID(as_uuid=True), nullable=False, server_default=text("gen_random_uuid()")),
    Column(
        "suppression_key",
        LargeBinary,
        nullable=False,
        comment="key of the hash under which erased users are remembered",
    ),
    CheckConstraint("singleton", name="one_row"),
    comment="One row: what makes this database this installation.",
)

stream_offset = Table(
    "stream_offset",
    metadata,
    Column("stream_id", Integer, Identity(always=True), primary_key=True),
    Column("cluster_id", Text, nullable=False),
    Column("topic_id", Text, nullable=False),
    Column("topic", Text, nullable=False, comment="logical name, without the prefix of a shared cluster"),
    Column("partition", Integer, nullable=False),
    Column(
        "life",
        Integer,
        nullable=False,
        server_default=text("1"),
        comment="raised when a topic lost its end and its offsets come again",
    ),
    Column(
        "epoch",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="raised by each claim; fences former owners",
    ),
    Column("next_offset", BigInteger, nullable=False, comment="the next offset to read"),
    Column("owner_pid", Integer, comment="backend that claimed the stream"),
    Column("owner_started", Time, comment="and when that backend started, as pids come again"),
    Column("suppression_version", BigInteger, nullable=False, server_default=text("0")),
    Column(
        "retired",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="replaced by another stream: nothing more comes",
    ),
    Column(
        "log_begins",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="retention removed the log segments below this offset",
    ),
    UniqueConstraint("cluster_id", "topic_id", "partition", "life"),
    comment="The streams (cluster, topic id, partition) and how far each has been taken in. All rows as one transaction sees them = the watermark cursor.",
)

log_segment = Table(
    "log_segment",
    metadata,
    Column("stream_id", Integer, primary_key=True),
    Column("first_offset", BigInteger, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("next_offset", BigInteger, nullable=False, comment="the next segment's first_offset"),
    Column(
        "status",
        Text,
        nullable=False,
        server_default="data",
        comment="data, or lost: given up by `offsets adopt`",
    ),
    Column("read", Integer, nullable=False),
    Column("accepted", Integer, nullable=False),
    Column("duplicates", Integer, nullable=False),
    Column("dead", Integer, nullable=False),
    Column("suppressed", Integer, nullable=False),
    Column(
        "unknown_fields",
        Integer,
        nullable=False,
        comment="accepted records that carried fields this version ignores",
    ),
    Column("first_event_at", Time),
    Column("last_event_at", Time),
    Column("last_record_at", Time),
    Column(
        "far",
        Integer,
        nullable=False,
        server_default=text("0"),
        comment="accepted records whose time lies far ahead of the stream's",
    ),
    Column("far_offsets", ARRAY(BigInteger), comment="of the first 100 of them; NULL when there are none"),
    Column("received_at", Time, nullable=False, server_default=func.clock_timestamp()),
    Column(
        "rows",
        LargeBinary,
        comment="accepted records as an Arrow IPC stream (zstd); NULL when there are none",
    ),
    CheckConstraint("next_offset > first_offset", name="covers"),
    CheckConstraint("status IN ('data', 'lost')", name="status"),
    Index("log_segment_far", "stream_id", "first_offset", postgresql_where=text("far > 0")),
    comment="One committed batch of one stream. Segments chain: next_offset of one is first_offset of the next.",
)

vocabulary = Table(
    "vocabulary",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column(
        "space",
        SmallInteger,
        nullable=False,
        comment="1 user, 2 name (types, currencies), 3 item, 4 party (payees)",
    ),
    Column("value", Text(collation="C"), nullable=False),
    UniqueConstraint("space", "value"),
    comment="Strings of user_segment as integers; lossless. Learners never see these integers.",
)

user_segment = Table(
    "user_segment",
    metadata,
    Column("user_id", BigInteger, primary_key=True),
    Column("stream_id", Integer, primary_key=True),
    Column("first_offset", BigInteger, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("at", ARRAY(BigInteger), nullable=False, comment="event time, microseconds since 1970"),
    Column(
        "kind",
        ARRAY(SmallInteger),
        nullable=False,
        comment="1 user, 2 payment, 3 relation as actor, 4 as counterpart",
    ),
    Column("type", ARRAY(BigInteger), nullable=False),
    Column("item", ARRAY(BigInteger)),
    Column("amount", ARRAY(BigInteger), comment="millionths of the currency unit"),
    Column("currency", ARRAY(BigInteger)),
    Column("other", ARRAY(BigInteger), comment="counterpart or payee"),
    Column("event_id", ARRAY(Text), nullable=False),
    Column("stream", ARRAY(Integer), nullable=False, comment="log position: stream ..."),
    Column("position", ARRAY(BigInteger), nullable=False, comment="... and offset"),
    Column("first_at", BigInteger, comment="sealed rows: its earliest event time, microseconds since 1970"),
    Column("last_at", BigInteger, comment="sealed rows: its latest event time"),
    Column("events", Integer, comment="sealed rows: how many events it holds"),
    Column("streams", ARRAY(Integer), comment="sealed rows: the streams its events came from ..."),
    Column("ends", ARRAY(BigInteger), comment="... and of each the offset after the last of them"),
    Index("user_segment_newest", "user_id", "last_at", postgresql_where=text("last_at IS NOT NULL")),
    comment="Events of one user. Rows are added, or replaced by sealed ones, never updated. What ingest adds is one batch of "
    "one stream, arrays in log order; a sealed row (stream_id 0, epoch 0, first_offset a running number) holds events "
    "of any streams in order of time. A NULL in place of an array: no event of the row has that field; unnest() fills "
    "it with NULLs.",
)

user_segment_sealed = Sequence("user_segment_sealed", data_type=BigInteger, metadata=metadata)
"""Numbers of sealed rows, so that none is given twice."""

trimmed_sequence = Table(
    "trimmed_sequence",
    metadata,
    Column("user_id", BigInteger, primary_key=True, autoincrement=False, comment="in the vocabulary"),
    Column("events", BigInteger, nullable=False, comment="how many, ever"),
    Column("last_at", BigInteger, nullable=False, comment="event time of the newest, microseconds since 1970"),
    comment="Events that retention removed from users' sequences.",
)

item_version = Table(
    "item_version",
    metadata,
    Column("item_id", Text(collation="C"), primary_key=True),
    Column("stream_id", Integer, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("record_at", Time, nullable=False),
    Column("payload", JSONB, comment="NULL: deleted"),
    comment="Append-only versions of items; as of a cursor the greatest position below it counts.",
)

dead_letter = Table(
    "dead_letter",
    metadata,
    Column("stream_id", Integer, primary_key=True),
    Column("position", BigInteger, primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Column("record_at", Time, nullable=False),
    Column("received_at", Time, nullable=False, server_default=func.clock_timestamp()),
    Column("key", LargeBinary, comment="at most 1,024 bytes of it"),
    Column("value", LargeBinary, comment="at most 65,536 bytes of it"),
    Column("size", BigInteger, nullable=False, comment="bytes of the whole value"),
    Column("sha256", Text, nullable=False, comment="of the whole value"),
    Column("cut", Boolean, nullable=False, comment="key or value is not whole: it cannot be replayed"),
    Column("noticed_at", Time, comment="when the notice on events.dlq was acknowledged; NULL = still to send"),
    Index(None, "reason", "received_at"),
    Index("dead_letter_unnoticed", "stream_id", "position", postgresql_where=text("noticed_at IS NULL")),
    comment="Refused records, written in the transaction of their batch.",
)

replayed_letter = Table(
    "replayed_letter",
    metadata,
    Column("origin_stream_id", Integer, primary_key=True),
    Column("origin_position", BigInteger, primary_key=True),
    Column("stream_id", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    comment="Dead letters that came in again: which record brought each in. One row an origin, however often it is replayed.",
)

suppression = Table(
    "suppression",
    metadata,
    Column(
        "user_hash",
        LargeBinary,
        primary_key=True,
        comment="BLAKE2b-256 of the user id, keyed by the installation",
    ),
    Column("version", BigInteger, nullable=False),
    Column("created_at", Time, nullable=False, server_default=func.clock_timestamp()),
    Column(
        "found",
        Boolean,
        nullable=False,
        server_default=text("true"),
        comment="whether an erasure found anything of the user; false: the name may be misspelt",
    ),
    comment="Erased users: their records are no longer accepted.",
)

learner = Table(
    "learner",
    metadata,
    Column("name", Text, primary_key=True),
    Column("version", Text, nullable=False),
    Column("branch", Integer, nullable=False, server_default=text("1")),
    Column(
        "epoch",
        BigInteger,
        nullable=False,
        server_default=text("0"),
        comment="raised by each start of train; fences former ones",
    ),
    Column("next_step", BigInteger, nullable=False, server_default=text("0"), comment="the next step to journal"),
    Column("config", JSONB, nullable=False),
    comment="One row a learner: who may write its journal, and how far it is.",
)

retired_learner = Table(
    "retired_learner",
    metadata,
    Column("name", Text, primary_key=True),
    Column("branch", Integer, primary_key=True, autoincrement=False, comment="one that starts anew gets the next"),
    Column("version", Text, nullable=False),
    Column("steps", BigInteger, nullable=False, comment="that it had journalled"),
    Column("retired_at", Time, nullable=False, server_default=func.clock_timestamp()),
    comment="Branches of learners that were retired: journal, predictions and snapshots are gone.",
)

journal = Table(
    "journal",
    metadata,
    Column("learner", Text, primary_key=True),
    Column("branch", Integer, primary_key=True),
    Column("step", BigInteger, primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column(
        "rows",
        JSONB,
        nullable=False,
        comment="[[stream id, first offset, next offset], ...]: log rows in the order they are learnt",
    ),
    Column("front", Time, comment="record time the merge reached"),
    Column("idle", ARRAY(Integer), nullable=False, comment="streams the merge went on without"),
    Column("late", Integer, nullable=False, comment="rows behind the front"),
    Column("snapshot", Boolean, nullable=False, comment="a snapshot is due after the step"),
    Column("actions", JSONB, nullable=False, comment="reactions of the learner to the step before"),
    Column(
        "ticks",
        JSONB,
        nullable=False,
        server_default=text("'[]'::jsonb"),
        comment="[[user id, subject], ...]: predictions whose silence counts as an outcome from this step on",
    ),
    Column("cursor", JSONB, comment="stream id -> next offset before the step; NULL for learners without outcomes"),
    Column(
        "task_clock",
        Time,
        comment="event time that the streams of payments had reached before the step; NULL: none, or no outcomes",
    ),
    Column(
        "drained",
        ARRAY(Integer),
        nullable=False,
        server_default=text("'{}'::integer[]"),
        comment="streams that had been read to the broker's end when silences ended: nothing was waited for there",
    ),
    Column("journalled_at", Time, nullable=False, server_default=func.clock_timestamp()),
    comment="Steps, written before they run.",
)

learner_action = Table(
    "learner_action",
    metadata,
    Column("learner", Text, primary_key=True),
    Column("branch", Integer, primary_key=True),
    Column("step", BigInteger, primary_key=True, comment="due before this step runs"),
    Column("action", Text, nullable=False, comment="erase: forget this user"),
    Column("user_hash", LargeBinary, primary_key=True, comment="as in suppression"),
    Column("journalled_at", Time, nullable=False, server_default=func.clock_timestamp()),
    CheckConstraint("action IN ('erase')", name="action"),
    comment="What a learner must do before a step beside learning: part of the journal, written by others than train.",
)

snapshot = Table(
    "snapshot",
    metadata,
    Column("id", Text, primary_key=True),
    Column("learner", Text, nullable=False),
    Column("branch", Integer, nullable=False),
    Column("step", BigInteger, nullable=False, comment="the next step to run from it"),
    Column("parent", Text),
    Column("status", Text, nullable=False, comment="writing, live, deleting"),
    Column("pinned", Boolean, nullable=False, server_default=text("false")),
    Column(
        "irreproducible",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="an erasure touched what it was learnt from",
    ),
    Column("cursor", JSONB, nullable=False, comment="stream id -> next offset to learn"),
    Column("front", Time),
    Column("sha256", Text, comment="of the tensors' bytes"),
    Column("manifest", JSONB),
    Column("created_at", Time, nullable=False, server_default=func.clock_timestamp()),
    Column("live_at", Time),
    CheckConstraint("status IN ('writing', 'live', 'deleting')", name="status"),
    Index(None, "learner", "branch", "step"),
    comment="Snapshots: a step with a file.",
)

signature_table = Table(
    "signature_table",
    metadata,
    Column("user_id", BigInteger, primary_key=True, comment="in the vocabulary"),
    Column("learner", Text, primary_key=True),
    Column("embedding", Text, primary_key=True, comment="version of the item vectors"),
    Column("hash_id", Text, primary_key=True, comment="digest of the hash's matrix"),
    Column(
        "cursor",
        JSONB,
        nullable=False,
        comment="stream id -> next offset: every event of the user below it is in the table",
    ),
    Column("events", Integer, nullable=False, comment="behaviours in the table, the user's newest"),
    Column("last_at", BigInteger, nullable=False, comment="event time of the newest of them, microseconds since 1970"),
    Column(
        "oldest_at",
        ARRAY(BigInteger),
        nullable=False,
        comment="event times of the oldest of them, oldest first ...",
    ),
    Column("oldest_item", ARRAY(Text), nullable=False, comment="... and their items"),
    Column("shape", ARRAY(Integer), nullable=False, comment="signatures, buckets of each, width of a vector"),
    Column("sums", LargeBinary, nullable=False, comment="float32, little endian: sum of the vectors in each bucket"),
    Column("counts", LargeBinary, nullable=False, comment="int32, little endian: behaviours in each bucket"),
    Column("written_at", Time, nullable=False, server_default=func.clock_timestamp()),
    Index(None, "learner", "embedding"),
    comment="Serving cache: each user's behaviours summed by signature. Written behind train, which never reads it; may be emptied at any time.",
)

prediction = Table(
    "prediction",
    metadata,
    Column("user_id", BigInteger, primary_key=True, comment="in the vocabulary"),
    Column("learner", Text, primary_key=True),
    Column("branch", Integer, primary_key=True),
    Column("subject", BigInteger, primary_key=True, comment="digest of the identity of the event it speaks of"),
    Column("task", Text, nullable=False, comment="of the labels that tell the outcome"),
    Column("step", BigInteger, nullable=False, comment="step that first handled the event"),
    Column("stream_id", Integer, nullable=False, comment="log position of the event: stream ..."),
    Column("position", BigInteger, nullable=False, comment="... and offset"),
    Column("at", Time, nullable=False, comment="event time of the event"),
    Column("features", ARRAY(DOUBLE_PRECISION), nullable=False, comment="what was known of its parties then"),
    Column("risks", ARRAY(DOUBLE_PRECISION), nullable=False, comment="as issued, by arm; the learner's own first"),
    Column("closed_step", BigInteger, comment="step that learnt its outcome; NULL = open"),
    Column("value", DOUBLE_PRECISION, comment="the outcome"),
    Column("known_at", Time, comment="when the outcome became known"),
    Column("silent", Boolean, comment="nobody told the outcome until the horizon"),
    Column("corrected_step", BigInteger, comment="step that heard a label after the silence; NULL = none"),
    Column(
        "corrected_value",
        DOUBLE_PRECISION,
        comment="the outcome that label told: coalesce(corrected_value, value) is what is known today",
    ),
    Column("corrected_known_at", Time, comment="when that outcome became known"),
    Index("prediction_open_idx", "learner", "branch", "at", "subject", postgresql_where=text("closed_step IS NULL")),
    Index(None, "stream_id", "position"),
    comment="Predictions of outcomes as they were issued, and what came of them.",
)

label_resolution = Table(
    "label_resolution",
    metadata,
    Column("learner", Text, primary_key=True),
    Column("branch", Integer, primary_key=True, autoincrement=False),
    Column(
        "stream_id", Integer, primary_key=True, autoincrement=False, comment="log position of the label: stream ..."
    ),
    Column("position", BigInteger, primary_key=True, autoincrement=False, comment="... and offset"),
    Column("step", BigInteger, nullable=False, comment="step that took it from the log"),
    Column(
        "subject",
        BigInteger,
        comment="digest of the identity of the event it speaks of; NULL: of none, or of another task",
    ),
    Column("known_at", Time, comment="of labels that had to wait, as all that follows"),
    Column("ref_time", Time),
    Column("value", DOUBLE_PRECISION),
    Column("resolution", Text, comment="what came of it; NULL = it waits for its subject"),
    Column("resolved_step", BigInteger, comment="step that settled it"),
    CheckConstraint(
        "resolution IN ('learnt', 'corrected', 'confirmed_silence', 'after_horizon', 'repeated', 'contradicting', "
        "'too_late', 'context_gone', 'subject_skipped', 'other_task', 'no_subject')",
        name="resolution",
    ),
    Index(None, "learner", "branch", "subject"),
    Index(None, "stream_id", "position"),
    Index("label_resolution_waiting", "learner", "branch", "known_at", postgresql_where=text("resolution IS NULL")),
    comment="Every label that a learner has taken from the log, and what came of it. Names nobody.",
)

labels_complete = Table(
    "labels_complete",
    metadata,
    Column("task", Text, primary_key=True),
    Column("assumed_at", Time, nullable=False, server_default=func.clock_timestamp()),
    comment="Tasks of which a person said that there may be no labels at all: silence counts without having seen one.",
)

__all__ = [
    "dead_letter",
    "installation",
    "item_version",
    "journal",
    "label_resolution",
    "labels_complete",
    "learner",
    "learner_action",
    "log_segment",
    "metadata",
    "prediction",
    "replayed_letter",
    "retired_learner",
    "signature_table",
    "snapshot",
    "stream_offset",
    "suppression",
    "trimmed_sequence",
    "user_segment",
    "user_segment_sealed",
    "vocabulary",
]
