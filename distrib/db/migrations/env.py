"""What Alembic runs; the connection comes from ``distrib.db.schema.upgrade``."""

from __future__ import annotations

from alembic import context

from distrib.db.models import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    # SQLite changes a table by copying it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
