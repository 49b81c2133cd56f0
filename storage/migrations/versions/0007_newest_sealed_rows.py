"""Readers find a user's newest sealed rows without a look at the older ones"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_index(
        "user_segment_newest",
        "user_segment",
        ["user_id", "last_at"],
        postgresql_where=sa.text("last_at IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_index("user_segment_newest", table_name="user_segment")
