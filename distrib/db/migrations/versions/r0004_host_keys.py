"""Host keys of nodes, for pieces over SSH."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Bring the schema up to this revision."""
    column = sa.Column("host_keys", sa.JSON(), nullable=False, server_default="[]")
    op.add_column("nodes", column)
