"""Predictions as issued; ticks and start cursors in the journal"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "prediction",
        sa.Column("user_id", sa.BigInteger(), nullable=False, comment="in the vocabulary"),
        sa.Column("learner", sa.Text(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column(
            "subject", sa.BigInteger(), nullable=False, comment="digest of the identity of the event it speaks of"
        ),
        sa.Column("task", sa.Text(), nullable=False, comment="of the labels that tell the outcome"),
        sa.Column("step", sa.BigInteger(), nullable=False, comment="step that first handled the event"),
        sa.Column("stream_id", sa.Integer(), nullable=False, comment="log position of the event: stream ..."),
        sa.Column("position", sa.BigInteger(), nullable=False, comment="... and offset"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, comment="event time of the event"),
        sa.Column(
            "features",
            postgresql.ARRAY(postgresql.DOUBLE_PRECISION()),
            nullable=False,
            comment="what was known of its parties then",
        ),
        sa.Column(
            "risks",
            postgresql.ARRAY(postgresql.DOUBLE_PRECISION()),
            nullable=False,
            comment="as issued, by arm; the learner's own first",
        ),
        sa.Column("closed_step", sa.BigInteger(), comment="step that learnt its outcome; NULL = open"),
        sa.Column("value", postgresql.DOUBLE_PRECISION(), comment="the outcome"),
        sa.Column("known_at", sa.DateTime(timezone=True), comment="when the outcome became known"),
        sa.Column("silent", sa.Boolean(), comment="nobody told the outcome until the horizon"),
        sa.PrimaryKeyConstraint("user_id", "learner", "branch", "subject", name=op.f("prediction_pkey")),
        comment="Predictions of outcomes as they were issued, and what came of them.",
    )
    op.create_index(
        "prediction_open_idx",
        "prediction",
        ["learner", "branch", "at", "subject"],
        postgresql_where=sa.text("closed_step IS NULL"),
    )
    op.create_index(op.f("prediction_stream_id_position_idx"), "prediction", ["stream_id", "position"])
    op.add_column(
        "journal",
        sa.Column(
            "ticks",
            postgresql.JSONB(),
            nullable=False,
            server_default=sa.text("'[]'::jsonb"),
            comment="[[user id, subject], ...]: predictions whose silence counts as an outcome from this step on",
        ),
    )
    op.add_column(
        "journal",
        sa.Column(
            "cursor",
            postgresql.JSONB(),
            comment="stream id -> next offset before the step; NULL for learners without outcomes",
        ),
    )


def downgrade() -> None:
    op.drop_column("journal", "cursor")
    op.drop_column("journal", "ticks")
    op.drop_table("prediction")
