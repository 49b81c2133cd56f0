"""The first tables"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# Sequences as people, SQL tools and Grafana want them: one row an event of a user, strings as strings.
USER_EVENT = """
CREATE VIEW user_event AS
SELECT u.value AS user_id,
       timestamptz 'epoch' + e.at * interval '1 microsecond' AS at,
       (ARRAY['user', 'payment', 'relation', 'relation'])[e.kind] AS kind,
       CASE WHEN e.kind = 4 THEN 'counterpart' ELSE 'actor' END AS role,
       t.value AS type,
       i.value AS item_id,
       e.amount / 1e6 AS amount,
       c.value AS currency,
       o.value AS other_id,
       e.event_id,
       f.topic,
       f.partition,
       e.position AS "offset"
FROM user_segment s
CROSS JOIN LATERAL unnest(s.at, s.kind, s.type, s.item, s.amount, s.currency, s.other,
                          s.event_id, s.stream, s.position)
     AS e(at, kind, type, item, amount, currency, other, event_id, stream, position)
JOIN stream_offset f ON f.stream_id = e.stream
JOIN vocabulary u ON u.id = s.user_id
JOIN vocabulary t ON t.id = e.type
LEFT JOIN vocabulary i ON i.id = e.item
LEFT JOIN vocabulary c ON c.id = e.currency
LEFT JOIN vocabulary o ON o.id = e.other
"""

# The key is this installation's own secret; two UUIDs carry 244 random bits.
INSTALLATION = """
INSERT INTO installation (suppression_key)
VALUES (decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'))
"""


def upgrade() -> None:
    op.create_table(
        "dead_letter",
        sa.Column("stream_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("record_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("key", sa.LargeBinary(), nullable=True, comment="at most 1,024 bytes of it"),
        sa.Column("value", sa.LargeBinary(), nullable=True, comment="at most 65,536 bytes of it"),
        sa.Column("size", sa.BigInteger(), nullable=False, comment="bytes of the whole value"),
        sa.Column("sha256", sa.Text(), nullable=False, comment="of the whole value"),
        sa.Column("cut", sa.Boolean(), nullable=False, comment="key or value is not whole: it cannot be replayed"),
        sa.Column(
            "noticed_at",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="when the notice on events.dlq was acknowledged; NULL = still to send",
        ),
        sa.PrimaryKeyConstraint("stream_id", "position", "epoch", name=op.f("dead_letter_pkey")),
        comment="Refused records, written in the transaction of their batch.",
    )
    op.create_index(
        "dead_letter_unnoticed",
        "dead_letter",
        ["stream_id", "position"],
        unique=False,
        postgresql_where=sa.text("noticed_at IS NULL"),
    )
    op.create_index(op.f("dead_letter_reason_received_at_idx"), "dead_letter", ["reason", "received_at"], unique=False)
    op.create_table(
        "installation",
        sa.Column("singleton", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("id", sa.UUID(), server_default=sa.text("gen_random_uuid()"), nullable=False),
        sa.Column(
            "suppression_key",
            sa.LargeBinary(),
            nullable=False,
            comment="key of the hash under which erased users are remembered",
        ),
        sa.CheckConstraint("singleton", name=op.f("installation_one_row_check")),
        sa.PrimaryKeyConstraint("singleton", name=op.f("installation_pkey")),
        comment="One row: what makes this database this installation.",
    )
    op.create_table(
        "item_version",
        sa.Column("item_id", sa.Text(collation="C"), nullable=False),
        sa.Column("stream_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("record_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=True, comment="NULL: deleted"),
        sa.PrimaryKeyConstraint("item_id", "stream_id", "position", "epoch", name=op.f("item_version_pkey")),
        comment="Append-only versions of items; as of a cursor the greatest position below it counts.",
    )
    op.create_table(
        "journal",
        sa.Column("learner", sa.Text(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column(
            "rows",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="[[stream id, first offset, next offset], ...]: log rows in the order they are learnt",
        ),
        sa.Column("front", sa.DateTime(timezone=True), nullable=True, comment="record time the merge reached"),
        sa.Column(
            "idle",
            postgresql.ARRAY(sa.Integer()),
            nullable=False,
            comment="streams the merge went on without",
        ),
        sa.Column("late", sa.Integer(), nullable=False, comment="rows behind the front"),
        sa.Column("snapshot", sa.Boolean(), nullable=False, comment="a snapshot is due after the step"),
        sa.Column(
            "actions",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="reactions of the learner to the step before",
        ),
        sa.Column(
            "journalled_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("learner", "branch", "step", name=op.f("journal_pkey")),
        comment="Steps, written before they run.",
    )
    op.create_table(
        "learner",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("branch", sa.Integer(), server_default=sa.text("1"), nullable=False),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="raised by each start of train; fences former ones",
        ),
        sa.Column(
            "next_step",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="the next step to journal",
        ),
        sa.Column("config", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("learner_pkey")),
        comment="One row a learner: who may write its journal, and how far it is.",
    )
    op.create_table(
        "log_segment",
        sa.Column("stream_id", sa.Integer(), nullable=False),
        sa.Column("first_offset", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("next_offset", sa.BigInteger(), nullable=False, comment="the next segment's first_offset"),
        sa.Column(
            "status",
            sa.Text(),
            server_default="data",
            nullable=False,
            comment="data, or lost: given up by `offsets adopt`",
        ),
        sa.Column("read", sa.Integer(), nullable=False),
        sa.Column("accepted", sa.Integer(), nullable=False),
        sa.Column("duplicates", sa.Integer(), nullable=False),
        sa.Column("dead", sa.Integer(), nullable=False),
        sa.Column("suppressed", sa.Integer(), nullable=False),
        sa.Column(
            "unknown_fields",
            sa.Integer(),
            nullable=False,
            comment="accepted records that carried fields this version ignores",
        ),
        sa.Column("first_event_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_event_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("last_record_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "received_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column(
            "rows",
            sa.LargeBinary(),
            nullable=True,
            comment="accepted records as an Arrow IPC stream (zstd); NULL when there are none",
        ),
        sa.CheckConstraint("status IN ('data', 'lost')", name=op.f("log_segment_status_check")),
        sa.CheckConstraint("next_offset > first_offset", name=op.f("log_segment_covers_check")),
        sa.PrimaryKeyConstraint("stream_id", "first_offset", "epoch", name=op.f("log_segment_pkey")),
        comment="One committed batch of one stream. Segments chain: next_offset of one is first_offset of the next.",
    )
    op.create_table(
        "replayed_letter",
        sa.Column("origin_stream_id", sa.Integer(), nullable=False),
        sa.Column("origin_position", sa.BigInteger(), nullable=False),
        sa.Column("stream_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("origin_stream_id", "origin_position", name=op.f("replayed_letter_pkey")),
        comment="Dead letters that came in again: which record brought each in. One row an origin, however often it is replayed.",
    )
    op.create_table(
        "snapshot",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("learner", sa.Text(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False, comment="the next step to run from it"),
        sa.Column("parent", sa.Text(), nullable=True),
        sa.Column("status", sa.Text(), nullable=False, comment="writing, live, deleting"),
        sa.Column("pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column(
            "irreproducible",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="an erasure touched what it was learnt from",
        ),
        sa.Column(
            "cursor",
            postgresql.JSONB(astext_type=sa.Text()),
            nullable=False,
            comment="stream id -> next offset to learn",
        ),
        sa.Column("front", sa.DateTime(timezone=True), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True, comment="of the tensors' bytes"),
        sa.Column("manifest", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.Column("live_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("status IN ('writing', 'live', 'deleting')", name=op.f("snapshot_status_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("snapshot_pkey")),
        comment="Snapshots: a step with a file.",
    )
    op.create_index(op.f("snapshot_learner_branch_step_idx"), "snapshot", ["learner", "branch", "step"], unique=False)
    op.create_table(
        "stream_offset",
        sa.Column("stream_id", sa.Integer(), sa.Identity(always=True), nullable=False),
        sa.Column("cluster_id", sa.Text(), nullable=False),
        sa.Column("topic_id", sa.Text(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False, comment="logical name, without the prefix of a shared cluster"),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column(
            "life",
            sa.Integer(),
            server_default=sa.text("1"),
            nullable=False,
            comment="raised when a topic lost its end and its offsets come again",
        ),
        sa.Column(
            "epoch",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="raised by each claim; fences former owners",
        ),
        sa.Column("next_offset", sa.BigInteger(), nullable=False, comment="the next offset to read"),
        sa.Column("owner_pid", sa.Integer(), nullable=True, comment="backend that claimed the stream"),
        sa.Column(
            "owner_started",
            sa.DateTime(timezone=True),
            nullable=True,
            comment="and when that backend started, as pids come again",
        ),
        sa.Column("suppression_version", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column(
            "retired",
            sa.Boolean(),
            server_default=sa.text("false"),
            nullable=False,
            comment="replaced by another stream: nothing more comes",
        ),
        sa.PrimaryKeyConstraint("stream_id", name=op.f("stream_offset_pkey")),
        sa.UniqueConstraint(
            "cluster_id",
            "topic_id",
            "partition",
            "life",
            name=op.f("stream_offset_cluster_id_topic_id_partition_life_key"),
        ),
        comment="The streams (cluster, topic id, partition) and how far each has been taken in. All rows as one transaction sees them = the watermark cursor.",
    )
    op.create_table(
        "suppression",
        sa.Column(
            "user_hash",
            sa.LargeBinary(),
            nullable=False,
            comment="BLAKE2b-256 of the user id, keyed by the installation",
        ),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("clock_timestamp()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("user_hash", name=op.f("suppression_pkey")),
        comment="Erased users: their records are no longer accepted.",
    )
    op.create_table(
        "user_segment",
        sa.Column("user_id", sa.BigInteger(), nullable=False),
        sa.Column("stream_id", sa.Integer(), nullable=False),
        sa.Column("first_offset", sa.BigInteger(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column(
            "at", postgresql.ARRAY(sa.BigInteger()), nullable=False, comment="event time, microseconds since 1970"
        ),
        sa.Column(
            "kind",
            postgresql.ARRAY(sa.SmallInteger()),
            nullable=False,
            comment="1 user, 2 payment, 3 relation as actor, 4 as counterpart",
        ),
        sa.Column("type", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("item", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column(
            "amount",
            postgresql.ARRAY(sa.BigInteger()),
            nullable=False,
            comment="millionths of the currency unit",
        ),
        sa.Column("currency", postgresql.ARRAY(sa.BigInteger()), nullable=False),
        sa.Column("other", postgresql.ARRAY(sa.BigInteger()), nullable=False, comment="counterpart or payee"),
        sa.Column("event_id", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("stream", postgresql.ARRAY(sa.Integer()), nullable=False, comment="log position: stream ..."),
        sa.Column("position", postgresql.ARRAY(sa.BigInteger()), nullable=False, comment="... and offset"),
        sa.PrimaryKeyConstraint("user_id", "stream_id", "first_offset", "epoch", name=op.f("user_segment_pkey")),
        comment="What one batch added to one user's sequence. Rows are added, never updated; arrays run in log order.",
    )
    op.create_table(
        "vocabulary",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "space",
            sa.SmallInteger(),
            nullable=False,
            comment="1 user, 2 name (types, currencies), 3 item, 4 party (payees)",
        ),
        sa.Column("value", sa.Text(collation="C"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("vocabulary_pkey")),
        sa.UniqueConstraint("space", "value", name=op.f("vocabulary_space_value_key")),
        comment="Strings of user_segment as integers; lossless. Learners never see these integers.",
    )
    op.execute(USER_EVENT)
    op.execute(INSTALLATION)


def downgrade() -> None:
    op.execute("DROP VIEW user_event")
    op.drop_table("vocabulary")
    op.drop_table("user_segment")
    op.drop_table("suppression")
    op.drop_table("stream_offset")
    op.drop_index(op.f("snapshot_learner_branch_step_idx"), table_name="snapshot")
    op.drop_table("snapshot")
    op.drop_table("replayed_letter")
    op.drop_table("log_segment")
    op.drop_table("learner")
    op.drop_table("journal")
    op.drop_table("item_version")
    op.drop_table("installation")
    op.drop_index(op.f("dead_letter_reason_received_at_idx"), table_name="dead_letter")
    op.drop_table("dead_letter")
