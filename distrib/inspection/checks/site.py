"""A site's own check: an executable that is run in the sandbox (docs/formats/checks.md).

It gets the path of the raw image as its argument and a JSON object on standard input, sees all of
/usr and nothing else, and answers with ``{"outcome", "text"}`` on standard output.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from distrib.inspection.checks.subject import Finding, Outcome, Subject, line
from distrib.inspection.sandbox import Limits, fd_path

_ANSWER_MAX_BYTES = 64 << 10


@dataclass(frozen=True)
class SiteCheck:
    """``site-<file name>``."""

    executable: Path
    limit_s: float

    @property
    def name(self) -> str:
        return f"site-{self.executable.stem}"[:64]

    async def look(self, subject: Subject) -> Finding:
        ran = await subject.sandbox.run(
            [str(self.executable), fd_path(subject.descriptor)],
            fds=(subject.descriptor,),
            stdin=_question(subject),
            limits=Limits(
                wall_s=self.limit_s, cpu_s=int(self.limit_s) + 1, output_bytes=_ANSWER_MAX_BYTES
            ),
            system=True,
        )
        if ran.status != 0:
            return Finding(Outcome.NOT_INSPECTED, ran.told())
        try:
            answer = json.loads(ran.stdout)
            return Finding(Outcome(answer["outcome"]), line([str(answer.get("text", ""))]))
        except (ValueError, KeyError, TypeError, AttributeError):
            return Finding(Outcome.NOT_INSPECTED, "its answer cannot be read")


def site_checks(folder: Path | None, *, limit_s: float) -> tuple[SiteCheck, ...]:
    """Those of a folder, by name. Raises OSError where it cannot be read."""
    if folder is None:
        return ()
    files = sorted(folder.iterdir())
    return tuple(
        SiteCheck(file.absolute(), limit_s)
        for file in files
        if file.is_file() and os.access(file, os.X_OK) and not file.name.startswith(".")
    )


def _question(subject: Subject) -> bytes:
    facts = subject.facts
    question = {
        "image": facts.image,
        "title": facts.title,
        "label": subject.layout.label,
        "regions": [
            {
                "name": region.name,
                "offset": region.offset,
                "size_bytes": region.size_bytes,
                "content": str(region.content),
                "told": region.told,
            }
            for region in subject.layout.regions
        ],
    }
    return json.dumps(question).encode()
