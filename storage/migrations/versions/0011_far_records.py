"""Segments say which of their records lie far ahead of their stream in record time"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "log_segment",
        sa.Column(
            "far",
            sa.Integer,
            nullable=False,
            server_default=sa.text("0"),
            comment="accepted records whose time lies far ahead of the stream's",
        ),
    )
    op.add_column(
        "log_segment",
        sa.Column(
            "far_offsets",
            sa.ARRAY(sa.BigInteger),
            comment="of the first 100 of them; NULL when there are none",
        ),
    )
    op.create_index(
        "log_segment_far", "log_segment", ["stream_id", "first_offset"], postgresql_where=sa.text("far > 0")
    )


def downgrade() -> None:
    op.drop_index("log_segment_far", table_name="log_segment")
    op.drop_column("log_segment", "far_offsets")
    op.drop_column("log_segment", "far")
