"""Signature tables of users, a cache for scoring"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "signature_table",
        sa.Column("user_id", sa.BigInteger(), nullable=False, comment="in the vocabulary"),
        sa.Column("learner", sa.Text(), nullable=False),
        sa.Column("embedding", sa.Text(), nullable=False, comment="version of the item vectors"),
        sa.Column("hash_id", sa.Text(), nullable=False, comment="digest of the hash's matrix"),
        sa.Column(
            "cursor",
            postgresql.JSONB(),
            nullable=False,
            comment="stream id -> next offset: every event of the user below it is in the table",
        ),
        sa.Column("events", sa.Integer(), nullable=False, comment="behaviours in the table, the user's newest"),
        sa.Column(
            "last_at",
            sa.BigInteger(),
            nullable=False,
            comment="event time of the newest of them, microseconds since 1970",
        ),
        sa.Column(
            "oldest_at",
            postgresql.ARRAY(sa.BigInteger()),
            nullable=False,
            comment="event times of the oldest of them, oldest first ...",
        ),
        sa.Column("oldest_item", postgresql.ARRAY(sa.Text()), nullable=False, comment="... and their items"),
        sa.Column(
            "shape",
            postgresql.ARRAY(sa.Integer()),
            nullable=False,
            comment="signatures, buckets of each, width of a vector",
        ),
        sa.Column(
            "sums",
            sa.LargeBinary(),
            nullable=False,
            comment="float32, little endian: sum of the vectors in each bucket",
        ),
        sa.Column(
            "counts", sa.LargeBinary(), nullable=False, comment="int32, little endian: behaviours in each bucket"
        ),
        sa.Column(
            "written_at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False
        ),
        sa.PrimaryKeyConstraint("user_id", "learner", "embedding", "hash_id", name=op.f("signature_table_pkey")),
        comment="Serving cache: each user's behaviours summed by signature. Written behind train, which never reads it; may be emptied at any time.",
    )
    op.create_index(op.f("signature_table_learner_embedding_idx"), "signature_table", ["learner", "embedding"])


def downgrade() -> None:
    op.drop_table("signature_table")
