"""The application: routes, errors, bounds."""

from __future__ import annotations

import base64
from importlib.metadata import PackageNotFoundError, version

from fastapi import APIRouter, FastAPI

from distrib.api import (
    audit,
    endorsers,
    events,
    images,
    intake,
    lists,
    nodes,
    proposals,
    provenance,
    rollouts,
    subscriptions,
    swarm,
    swarm_caps,
    tokens,
    wants,
)
from distrib.api.accesslog import AccessLog
from distrib.api.faults import BodyLimits, Guard, install
from distrib.api.services import Services
from distrib.trust.signature import MAX_MESSAGE_BYTES

PREFIX = "/api/v1"
_PLAIN_BODY_BYTES = 256 * 1024
_LIST_BODY_BYTES = len(base64.b64encode(b"0" * 3)) * (MAX_MESSAGE_BYTES // 3 + 1) + 64 * 1024


def create_app(services: Services) -> FastAPI:
    """The API over ``services``, under ``/api/v1``."""
    app = FastAPI(
        title="distrib",
        version=product_version(),
        openapi_url=f"{PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    health = APIRouter(tags=["health"])

    @health.get("/health")
    def health_check() -> dict[str, str]:
        """Whether the API answers."""
        return {"status": "ok", "version": product_version()}

    for router in (
        health,
        # Before images, whose references may hold slashes.
        provenance.router,
        intake.router,
        proposals.router,
        images.router,
        endorsers.router,
        subscriptions.router,
        lists.router,
        nodes.router,
        rollouts.router,
        swarm_caps.router,
        swarm.router,
        tokens.router,
        wants.router,
        audit.router,
        events.router,
    ):
        app.include_router(router, prefix=PREFIX)
    install(app)
    limits = BodyLimits(plain_bytes=_PLAIN_BODY_BYTES, list_bytes=_LIST_BODY_BYTES, prefix=PREFIX)
    # The last that is added is the outermost.
    app.add_middleware(AccessLog)
    app.add_middleware(Guard, limits=limits)
    return app


def product_version() -> str:
    """The version of the installed package."""
    try:
        return version("distrib")
    except PackageNotFoundError:
        return "unknown"
