"""Subscriptions, checks of images, events for handlers; what intake knows of an image."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Bring the schema up to this revision."""
    for column in (
        sa.Column("source", sa.Text(), nullable=False, server_default=""),
        sa.Column("fetched_bytes", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("fault", sa.JSON(), nullable=False, server_default="{}"),
        sa.Column("before_denial", sa.String(length=16), nullable=True),
        sa.Column("endorsed_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("lapsed_at", sa.DateTime(timezone=True), nullable=True),
    ):
        op.add_column("images", column)
    # Of a list without a newer one, which is what older databases knew to hold.
    op.execute(
        "UPDATE images SET endorsed_until ="
        " (SELECT expires FROM image_lists WHERE sha512 = images.list_sha512)"
    )
    op.create_table(
        "subscriptions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("identifier", sa.String(length=36), nullable=True),
        sa.Column("dn", sa.Text(), nullable=False),
        sa.Column("ca", sa.Text(), nullable=False),
        sa.Column("take", sa.String(length=16), nullable=False),
        sa.Column("username", sa.String(length=255), nullable=True),
        sa.Column("ca_file", sa.Text(), nullable=True),
        sa.Column("interval_s", sa.Integer(), nullable=False),
        sa.Column("alarm_age_s", sa.Integer(), nullable=False),
        sa.Column("etag", sa.Text(), nullable=True),
        sa.Column("message_sha512", sa.String(length=128), nullable=True),
        sa.Column("polled_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ok_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("code", sa.String(length=64), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("added_by", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_subscriptions"),
        sa.UniqueConstraint("url", name="uq_subscriptions_url"),
        sa.UniqueConstraint("identifier", name="uq_subscriptions_identifier"),
    )
    op.create_table(
        "image_checks",
        sa.Column("identifier", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["identifier", "version"],
            ["images.identifier", "images.version"],
            name="fk_image_checks_identifier",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("identifier", "version", "name", name="pk_image_checks"),
    )
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("environment", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_at", "events", ["at"], unique=False)
    op.create_index("ix_events_subject", "events", ["subject"], unique=False)
    op.create_table(
        "event_deliveries",
        sa.Column("event", sa.Integer(), nullable=False),
        sa.Column("handler", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("exit_status", sa.Integer(), nullable=True),
        sa.Column("output", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["event"], ["events.id"], name="fk_event_deliveries_event", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("event", "handler", name="pk_event_deliveries"),
    )
    op.create_index("ix_event_deliveries_state", "event_deliveries", ["state"], unique=False)
