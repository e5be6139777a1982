"""What a scheduler asks before a job has a node: is that image approved, and could it be brought?

Nothing here needs the image on this node: the host of a queue master runs an agent without a cache
of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from agent.authority import Authority
from agent.reporter import Reporter
from agent.socket.caller import Caller
from agent.socket.request import parse
from agent.socket.server import Args, Operation, Send
from distrib.bus.messages import ImageWanted
from distrib.errors import Forbidden, NotFound, NotReady, Revoked
from distrib.trust.sitelist import SiteImage, parse_image_ref

AGAIN_S = 10.0
"""One image is asked for so often at most: a thousand jobs that name it are one wish."""


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    image: Annotated[str, Field(max_length=200)]
    user: Annotated[str, Field(max_length=100)] | None = None


class _Want(_Check):
    job: Annotated[str, Field(max_length=200)] = ""


class Asking:
    """The operations by name: ``table`` is what the socket serves. ``schedulers``: accounts that
    may ask for any user, beside administrators."""

    def __init__(
        self,
        *,
        authority: Authority,
        reporter: Reporter,
        schedulers: Collection[str] = (),
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authority = authority
        self._reporter = reporter
        self._schedulers = frozenset(schedulers)
        self._monotonic_s = monotonic_s
        self._asked_s: dict[str, float] = {}
        self.table: Mapping[str, Operation] = {"check": self._check, "want": self._want}

    async def _check(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        request = parse(_Check, args)
        user = self._for_whom(caller, request.user)
        return _told(request.image, self._approved(request.image, user))

    async def _want(self, caller: Caller, args: Args, send: Send) -> dict[str, object]:
        request = parse(_Want, args)
        user = self._for_whom(caller, request.user)
        found = self._approved(request.image, user)
        version = parse_image_ref(request.image).version
        image = found[0].identifier + (f"@{version}" if version else "")
        now_s = self._monotonic_s()
        self._asked_s = {k: at_s for k, at_s in self._asked_s.items() if now_s - at_s < AGAIN_S}
        asked = image not in self._asked_s
        if asked:
            self._asked_s[image] = now_s
            self._reporter.request(ImageWanted(image=image, job=request.job, user=user))
        return _told(request.image, found) | {"asked": asked}

    def _for_whom(self, caller: Caller, user: str | None) -> str:
        """The user that is asked for: the caller, as the kernel names it, unless it may speak for
        others. Raises Forbidden."""
        if user in {None, caller.user} or caller.admin or caller.user in self._schedulers:
            return user or caller.user
        raise Forbidden(
            f"user {caller.user} may not ask what user {user} may have",
            hint="root and the accounts of batch systems may (setting schedulers)",
            user=caller.user,
        )

    def _approved(self, text: str, user: str) -> tuple[SiteImage, ...]:
        """The versions that IMAGE may mean to a user, newest first.

        Raises NotReady without a list, NotFound, Revoked, Forbidden."""
        site_list = self._authority.site_list
        if site_list is None:
            raise NotReady("no site list yet", hint="is the broker reachable?")
        ref = parse_image_ref(text)
        found = site_list.find(ref)
        if not found:
            meant = self._authority.aliases.meant(ref.name)
            if meant is not None and not site_list.find(ref.name):
                raise Revoked(
                    f"image {text} is not on the site list any more",
                    hint="use another image or version",
                    image=meant,
                )
            raise NotFound(
                f"image {text}: the site list approves no such image",
                hint="it was never approved, or was revoked",
                image=text,
            )
        admitted = tuple(image for image in found if image.admits(user))
        if not admitted:
            raise Forbidden(
                f"image {text} is not for user {user}",
                hint="the site decides its audience",
                image=text,
            )
        return admitted


def _told(text: str, found: tuple[SiteImage, ...]) -> dict[str, object]:
    return {
        "image": text,
        "identifier": found[0].identifier,
        "versions": [image.version for image in found],
    }
