"""Whether anything was ever known of an erased user"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "suppression",
        sa.Column(
            "found",
            sa.Boolean(),
            server_default=sa.text("true"),
            nullable=False,
            comment="whether an erasure found anything of the user; false: the name may be misspelt",
        ),
    )


def downgrade() -> None:
    op.drop_column("suppression", "found")
