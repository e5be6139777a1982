"""All checks on one raw image."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from distrib.errors import ToolMissing
from distrib.inspection.checks.subject import Check, Facts, Finding, Outcome, Part, Subject, line
from distrib.inspection.cut import cut_out
from distrib.inspection.disk import Content, Region, layout_of
from distrib.inspection.readers.ext import ExtReader
from distrib.inspection.readers.fat import FatReader
from distrib.inspection.readers.tree import NotReadable, Tree
from distrib.inspection.readers.xfs import XfsReader
from distrib.inspection.sandbox import Sandbox, ToolFailed

_FILELESS = frozenset({Content.SWAP, Content.BOOT_CODE, Content.NOTHING})


async def inspect(
    image: Path, checks: Sequence[Check], facts: Facts, *, sandbox: Sandbox
) -> Mapping[str, Finding]:
    """What every check says of the raw image, by name.

    Whatever goes wrong with a check is ``not-inspected``. The folder of the image must be ours
    alone: partitions are cut out in it. Raises OSError where the image cannot be opened.
    """
    findings: dict[str, Finding] = {}
    with ExitStack() as stack:
        descriptor = stack.enter_context(image.open("rb")).fileno()
        os.fchmod(descriptor, 0o644)
        try:
            layout = await layout_of(descriptor, sandbox)
        except (ToolFailed, ToolMissing) as error:
            fault = Finding(Outcome.NOT_INSPECTED, line([error.message]))
            return {check.name: fault for check in checks}
        parts = [
            await _part(stack, image.parent, descriptor, region, sandbox)
            for region in layout.regions
            if region.content not in _FILELESS
        ]
        subject = Subject(descriptor, layout, parts, facts, sandbox)
        for check in checks:
            try:
                findings[check.name] = await check.look(subject)
            except (NotReadable, ToolFailed, ToolMissing) as error:
                findings[check.name] = Finding(Outcome.NOT_INSPECTED, line([str(error)]))
    return findings


async def _part(
    stack: ExitStack, folder: Path, descriptor: int, region: Region, sandbox: Sandbox
) -> Part:
    name = f"{region.name} ({region.told})"
    try:
        reader: ExtReader | FatReader | XfsReader
        if region.content is Content.EXT:
            reader = ExtReader(descriptor, region, sandbox)
        elif region.content is Content.FAT:
            reader = FatReader(descriptor, region, sandbox)
        elif region.content is Content.XFS:
            at_start = descriptor
            if region.offset != 0:
                size_bytes = region.size_bytes
                file = await asyncio.to_thread(
                    cut_out, descriptor, region.offset, size_bytes, folder=folder, mode=0o644
                )
                at_start = stack.enter_context(file).fileno()
            reader = XfsReader(at_start, folder, sandbox)
        else:
            return Part(name, None, "no reader here knows that")
        await reader.check()
    except (NotReadable, ToolFailed, ToolMissing) as error:
        return Part(name, None, str(error))
    return Part(name, Tree(reader))
