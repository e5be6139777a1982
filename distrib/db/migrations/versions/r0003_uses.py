"""Images that users propose; what jobs wait for; what is to be ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_OF_IMAGE = (["identifier", "version"], ["images.identifier", "images.version"])


def upgrade() -> None:
    """Bring the schema up to this revision."""
    op.add_column("images", sa.Column("proposed_by", sa.String(length=64), nullable=True))
    op.create_table(
        "wants",
        sa.Column("identifier", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("job", sa.String(length=128), nullable=False),
        sa.Column("user", sa.String(length=128), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.String(length=128), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("rollout", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(*_OF_IMAGE, name="fk_wants_identifier", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name="fk_wants_rollout"),
        sa.PrimaryKeyConstraint("identifier", "version", "job", name="pk_wants"),
    )
    op.create_index("ix_wants_until", "wants", ["until"], unique=False)
    op.create_table(
        "endings",
        sa.Column("identifier", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("infohash", sa.String(length=64), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("asked_by", sa.String(length=128), nullable=False),
        sa.Column("asked_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(*_OF_IMAGE, name="fk_endings_identifier", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("identifier", "version", name="pk_endings"),
    )
