"""What retention removed of users' sequences"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "trimmed_sequence",
        sa.Column("user_id", sa.BigInteger(), nullable=False, comment="in the vocabulary"),
        sa.Column("events", sa.BigInteger(), nullable=False, comment="how many, ever"),
        sa.Column(
            "last_at", sa.BigInteger(), nullable=False, comment="event time of the newest, microseconds since 1970"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("trimmed_sequence_pkey")),
        comment="Events that retention removed from users' sequences.",
    )


def downgrade() -> None:
    op.drop_table("trimmed_sequence")
