"""The world of tests/trust, for what is fuzzed."""

from __future__ import annotations

from tests.trust.conftest import world

__all__ = ["world"]
