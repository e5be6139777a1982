"""Alembic migrations; ``distrib.db.session.upgrade`` runs them at the controller's start."""
