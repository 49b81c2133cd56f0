"""No arrays of NULLs: a field that no event of a sequence row has is one NULL"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

BIGINTS = postgresql.ARRAY(sa.BigInteger())
FIELDS = ("item", "amount", "currency", "other")

COMMENT = "What one batch added to one user's sequence. Rows are added, never updated; arrays run in log order."
NULLS = " A NULL in place of an array: no event of the row has that field; unnest() fills it with NULLs."


def upgrade() -> None:
    for field in FIELDS:
        op.alter_column("user_segment", field, existing_type=BIGINTS, nullable=True)
    op.create_table_comment("user_segment", COMMENT + NULLS, existing_comment=COMMENT)


def downgrade() -> None:
    for field in FIELDS:
        nulls = "array_fill(NULL::bigint, ARRAY[cardinality(at)])"
        op.execute(f"UPDATE user_segment SET {field} = {nulls} WHERE {field} IS NULL")
        op.alter_column("user_segment", field, existing_type=BIGINTS, nullable=False)
    op.create_table_comment("user_segment", COMMENT, existing_comment=COMMENT + NULLS)
