"""Corrections of silences, what came of each label, task clocks and drained streams in the journal"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_RESOLUTIONS = (
    "learnt, corrected, confirmed_silence, after_horizon, repeated, contradicting, too_late, context_gone, "
    "subject_skipped, other_task, no_subject"
)
_IN = ", ".join(f"'{name}'" for name in _RESOLUTIONS.split(", "))


def upgrade() -> None:
    op.add_column(
        "prediction",
        sa.Column("corrected_step", sa.BigInteger(), comment="step that heard a label after the silence; NULL = none"),
    )
    op.add_column(
        "prediction",
        sa.Column(
            "corrected_value",
            postgresql.DOUBLE_PRECISION(),
            comment="the outcome that label told: coalesce(corrected_value, value) is what is known today",
        ),
    )
    op.add_column(
        "prediction",
        sa.Column("corrected_known_at", sa.DateTime(timezone=True), comment="when that outcome became known"),
    )
    op.add_column(
        "journal",
        sa.Column(
            "task_clock",
            sa.DateTime(timezone=True),
            comment="event time that the streams of payments had reached before the step; NULL: none, or no outcomes",
        ),
    )
    op.add_column(
        "journal",
        sa.Column(
            "drained",
            postgresql.ARRAY(sa.Integer()),
            nullable=False,
            server_default=sa.text("'{}'::integer[]"),
            comment="streams that had been read to the broker's end when silences ended: nothing was waited for there",
        ),
    )
    op.create_table(
        "label_resolution",
        sa.Column("learner", sa.Text(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False),
        sa.Column("stream_id", sa.Integer(), nullable=False, comment="log position of the label: stream ..."),
        sa.Column("position", sa.BigInteger(), nullable=False, comment="... and offset"),
        sa.Column("step", sa.BigInteger(), nullable=False, comment="step that took it from the log"),
        sa.Column(
            "subject",
            sa.BigInteger(),
            comment="digest of the identity of the event it speaks of; NULL: of none, or of another task",
        ),
        sa.Column("known_at", sa.DateTime(timezone=True), comment="of labels that had to wait, as all that follows"),
        sa.Column("ref_time", sa.DateTime(timezone=True)),
        sa.Column("value", postgresql.DOUBLE_PRECISION()),
        sa.Column("resolution", sa.Text(), comment="what came of it; NULL = it waits for its subject"),
        sa.Column("resolved_step", sa.BigInteger(), comment="step that settled it"),
        sa.PrimaryKeyConstraint("learner", "branch", "stream_id", "position", name=op.f("label_resolution_pkey")),
        sa.CheckConstraint(f"resolution IN ({_IN})", name=op.f("label_resolution_resolution_check")),
        comment="Every label that a learner has taken from the log, and what came of it. Names nobody.",
    )
    op.create_index(
        op.f("label_resolution_learner_branch_subject_idx"), "label_resolution", ["learner", "branch", "subject"]
    )
    op.create_index(op.f("label_resolution_stream_id_position_idx"), "label_resolution", ["stream_id", "position"])
    op.create_index(
        "label_resolution_waiting",
        "label_resolution",
        ["learner", "branch", "known_at"],
        postgresql_where=sa.text("resolution IS NULL"),
    )
    op.create_table(
        "labels_complete",
        sa.Column("task", sa.Text(), nullable=False),
        sa.Column(
            "assumed_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("task", name=op.f("labels_complete_pkey")),
        comment="Tasks of which a person said that there may be no labels at all: silence counts without having seen one.",
    )


def downgrade() -> None:
    op.drop_table("labels_complete")
    op.drop_table("label_resolution")
    op.drop_column("journal", "drained")
    op.drop_column("journal", "task_clock")
    op.drop_column("prediction", "corrected_known_at")
    op.drop_column("prediction", "corrected_value")
    op.drop_column("prediction", "corrected_step")
