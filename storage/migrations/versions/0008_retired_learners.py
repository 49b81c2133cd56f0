"""Learners that nobody runs any more"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "retired_learner",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("branch", sa.Integer(), nullable=False, comment="one that starts anew gets the next"),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("steps", sa.BigInteger(), nullable=False, comment="that it had journalled"),
        sa.Column(
            "retired_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("name", "branch", name=op.f("retired_learner_pkey")),
        comment="Branches of learners that were retired: journal, predictions and snapshots are gone.",
    )


def downgrade() -> None:
    op.drop_table("retired_learner")
