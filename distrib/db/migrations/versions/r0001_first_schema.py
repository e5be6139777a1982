"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Bring the schema up to this revision."""
    op.create_table(
        "aliases",
        sa.Column("alias", sa.String(length=64), nullable=False),
        sa.Column("identifier", sa.String(length=36), nullable=False),
        sa.PrimaryKeyConstraint("alias", name="pk_aliases"),
    )
    op.create_index("ix_aliases_identifier", "aliases", ["identifier"], unique=False)
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(length=128), nullable=False),
        sa.Column("action", sa.String(length=64), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_at", "audit", ["at"], unique=False)
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_counters"),
    )
    op.create_table(
        "endorsers",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("dn", sa.Text(), nullable=False),
        sa.Column("ca", sa.Text(), nullable=False),
        sa.Column("list_identifier", sa.String(length=36), nullable=True),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("added_by", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_endorsers"),
        sa.UniqueConstraint("dn", "ca", "list_identifier", name="uq_endorsers_dn"),
    )
    op.create_table(
        "generations",
        sa.Column("node", sa.String(length=63), nullable=False),
        sa.Column("generation", sa.BigInteger(), nullable=False),
        sa.Column("orders_sequence", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node", name="pk_generations"),
    )
    op.create_table(
        "image_lists",
        sa.Column("sha512", sa.String(length=128), nullable=False),
        sa.Column("identifier", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=255), nullable=False),
        sa.Column("endorser_dn", sa.Text(), nullable=False),
        sa.Column("endorser_ca", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_by", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("sha512", name="pk_image_lists"),
    )
    op.create_index("ix_image_lists_identifier", "image_lists", ["identifier"], unique=False)
    op.create_table(
        "node_events",
        sa.Column("node", sa.String(length=63), nullable=False),
        sa.Column("event_id", sa.String(length=128), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("kind", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("node", "event_id", name="pk_node_events"),
    )
    op.create_index("ix_node_events_at", "node_events", ["at"], unique=False)
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("address", sa.String(length=45), nullable=False),
        sa.Column("rack", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.JSON(), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("added_by", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_nodes"),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_by", sa.String(length=128), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_tokens"),
        sa.UniqueConstraint("name", name="uq_tokens_name"),
        sa.UniqueConstraint("sha256", name="uq_tokens_sha256"),
    )
    op.create_table(
        "images",
        sa.Column("identifier", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("list_sha512", sa.String(length=128), nullable=False),
        sa.Column("list_identifier", sa.String(length=36), nullable=False),
        sa.Column("list_version", sa.String(length=255), nullable=False),
        sa.Column("endorser_dn", sa.Text(), nullable=False),
        sa.Column("endorser_ca", sa.Text(), nullable=False),
        sa.Column("entry", sa.JSON(), nullable=False),
        sa.Column("endorsed_sha512", sa.String(length=128), nullable=False),
        sa.Column("endorsed_size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("approved_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("audience", sa.JSON(), nullable=False),
        sa.Column("infohash", sa.String(length=64), nullable=True),
        sa.Column("sha512", sa.String(length=128), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("piece_bytes", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(
            ["list_sha512"], ["image_lists.sha512"], name="fk_images_list_sha512"
        ),
        sa.PrimaryKeyConstraint("identifier", "version", name="pk_images"),
    )
    op.create_index("ix_images_infohash", "images", ["infohash"], unique=False)
    op.create_index("ix_images_state", "images", ["state"], unique=False)
    op.create_table(
        "rollouts",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("identifier", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("infohash", sa.String(length=64), nullable=False),
        sa.Column("alias", sa.String(length=64), nullable=True),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_by", sa.String(length=128), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("ended_by", sa.String(length=128), nullable=True),
        sa.Column("options", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["identifier", "version"],
            ["images.identifier", "images.version"],
            name="fk_rollouts_identifier",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_rollouts"),
    )
    op.create_index("ix_rollouts_state", "rollouts", ["state"], unique=False)
    op.create_table(
        "assignments",
        sa.Column("node", sa.String(length=63), nullable=False),
        sa.Column("identifier", sa.String(length=36), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("active", sa.Boolean(), nullable=False),
        sa.Column("pinned", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("transport", sa.String(length=16), nullable=False),
        sa.Column("rollout", sa.String(length=64), nullable=True),
        sa.Column("download_bps", sa.BigInteger(), nullable=False),
        sa.Column("upload_bps", sa.BigInteger(), nullable=False),
        sa.Column("deadline", sa.DateTime(timezone=True), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["identifier", "version"],
            ["images.identifier", "images.version"],
            name="fk_assignments_identifier",
        ),
        sa.ForeignKeyConstraint(
            ["node"], ["nodes.name"], name="fk_assignments_node", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["rollout"], ["rollouts.id"], name="fk_assignments_rollout"),
        sa.PrimaryKeyConstraint("node", "identifier", "version", name="pk_assignments"),
    )
    op.create_table(
        "rollout_targets",
        sa.Column("rollout", sa.String(length=64), nullable=False),
        sa.Column("node", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("online", sa.Boolean(), nullable=False),
        sa.Column("bytes_done", sa.BigInteger(), nullable=False),
        sa.Column("bytes_total", sa.BigInteger(), nullable=False),
        sa.Column("rate_bps", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.String(length=64), nullable=True),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ready_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout"], ["rollouts.id"], name="fk_rollout_targets_rollout", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("rollout", "node", name="pk_rollout_targets"),
    )
