"""Sealed rows of sequences, where the log begins, what erasures leave in the journal"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SUMMARY: tuple[tuple[str, Any, str], ...] = (
    ("first_at", sa.BigInteger(), "sealed rows: its earliest event time, microseconds since 1970"),
    ("last_at", sa.BigInteger(), "sealed rows: its latest event time"),
    ("events", sa.Integer(), "sealed rows: how many events it holds"),
    ("streams", postgresql.ARRAY(sa.Integer()), "sealed rows: the streams its events came from ..."),
    ("ends", postgresql.ARRAY(sa.BigInteger()), "... and of each the offset after the last of them"),
)
COMMENT = (
    "What one batch added to one user's sequence. Rows are added, never updated; arrays run in log order. "
    "A NULL in place of an array: no event of the row has that field; unnest() fills it with NULLs."
)
SEALED = (
    "Events of one user. Rows are added, or replaced by sealed ones, never updated. What ingest adds is one batch of "
    "one stream, arrays in log order; a sealed row (stream_id 0, epoch 0, first_offset a running number) holds events "
    "of any streams in order of time. A NULL in place of an array: no event of the row has that field; unnest() fills "
    "it with NULLs."
)
# Back to rows that nobody tells from those of batches: they only need keys that no batch can take.
UNSEAL = """
UPDATE user_segment SET stream_id = stream[1], epoch = -1 - first_offset, first_offset = position[1]
WHERE stream_id = 0
"""


def upgrade() -> None:
    for name, kind, comment in SUMMARY:
        op.add_column("user_segment", sa.Column(name, kind, nullable=True, comment=comment))
    op.create_table_comment("user_segment", SEALED, existing_comment=COMMENT)
    op.execute("CREATE SEQUENCE user_segment_sealed AS bigint")
    op.add_column(
        "stream_offset",
        sa.Column(
            "log_begins",
            sa.BigInteger(),
            server_default=sa.text("0"),
            nullable=False,
            comment="retention removed the log segments below this offset",
        ),
    )
    op.create_table(
        "learner_action",
        sa.Column("learner", sa.Text(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False, comment="due before this step runs"),
        sa.Column("action", sa.Text(), nullable=False, comment="erase: forget this user"),
        sa.Column("user_hash", sa.LargeBinary(), nullable=False, comment="as in suppression"),
        sa.Column(
            "journalled_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.CheckConstraint("action IN ('erase')", name=op.f("learner_action_action_check")),
        sa.PrimaryKeyConstraint("learner", "branch", "step", "user_hash", name=op.f("learner_action_pkey")),
        comment="What a learner must do before a step beside learning: part of the journal, written by others than train.",
    )


def downgrade() -> None:
    op.drop_table("learner_action")
    op.drop_column("stream_offset", "log_begins")
    op.execute(UNSEAL)
    op.execute("DROP SEQUENCE user_segment_sealed")
    op.create_table_comment("user_segment", COMMENT, existing_comment=SEALED)
    for name, _, _ in reversed(SUMMARY):
        op.drop_column("user_segment", name)
