"""The world of tests/trust, for what is fuzzed."""

from __future__ import annotations

from tests.trust.conftest import openssl, world

__all__ = ["openssl", "world"]
