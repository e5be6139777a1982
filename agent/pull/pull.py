"""One pull: from reserved room to a volume whose every byte is verified.

Sources bring pieces into the verified store; beside them a checkpoint makes what is there durable
and hashes on. What this returns is a claim about the volume's bytes as read back from it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import structlog

from agent.cache.store import WriteTarget
from agent.pull.digest import PrefixDigest
from agent.pull.resume import Resume, ResumeFiles
from agent.pull.source import Source
from distrib.errors import DigestMismatch, StorageFailed
from distrib.swarm.torrent import TorrentInfo
from distrib.swarm.transfer import Transfer

log = structlog.get_logger(__name__)

HAND_OVER_S = 0.1
HAND_OVER_SHARE = 0.01
"""How often, and after which share of the image, what is verified is noted for this boot."""

CHECKPOINT_MIN_S = 0.5
CHECKPOINT_REST = 4
"""A checkpoint that took a second is followed by so many seconds without one: fsync must not eat
the disk's time."""


class Pull:
    """Brings one image version into an open volume: ``fetch`` once, then ``conclude`` once."""

    def __init__(
        self,
        transfer: Transfer,
        target: WriteTarget,
        *,
        sha512: str,
        resume_files: ResumeFiles,
        resumed: Resume | None,
    ) -> None:
        self.transfer = transfer
        self.resumed_bytes = transfer.done_bytes
        self._target = target
        self._sha512 = sha512
        self._resume_files = resume_files
        self._before = resumed or Resume(have=())
        self._digest = PrefixDigest(target.fd)

    @property
    def info(self) -> TorrentInfo:
        return self.transfer.info

    @property
    def fetched_bytes(self) -> int:
        """Payload that came over the network since the pull began, all its starts together."""
        return self._before.fetched_bytes + self.transfer.fetched_bytes

    @property
    def wasted_bytes(self) -> int:
        """What of it was thrown away."""
        return self._before.wasted_bytes + self.transfer.wasted_bytes

    async def fetch(self, sources: Sequence[Source]) -> None:
        """Run the sources until nothing is missing.

        Raises what the sources raise, or StorageFailed. After a failure or cancellation the
        resume file is as new as the last checkpoint.
        """
        notes = [
            asyncio.create_task(self._checkpoints(), name=f"checkpoint {self._name}"),
            asyncio.create_task(self._hand_overs(), name=f"hand over {self._name}"),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(
                        source.bring(self.transfer), name=f"{source.name} {self._name}"
                    )
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for task in notes:
                task.cancel()
            await asyncio.gather(*notes, return_exceptions=True)

    async def conclude(self) -> bytes:
        """Make all of it durable and compare its SHA-512; returns the torrent with its layers.

        Raises DigestMismatch or StorageFailed."""
        await self.checkpoint()
        await self._digest.advance(self.info.size_bytes)
        if self._digest.hexdigest() != self._sha512:
            # The running digest may have read a block that was repaired later: read it all again.
            self._digest = PrefixDigest(self._target.fd)
            await self._digest.advance(self.info.size_bytes)
        digest = self._digest.hexdigest()
        if digest != self._sha512:
            raise DigestMismatch(
                f"volume {self._name}: SHA-512 {digest[:16]}…, the site list says"
                f" {self._sha512[:16]}…",
                hint="the site list contradicts itself: approve the image again",
                infohash=self.info.infohash,
            )
        return await self.transfer.torrent_file()

    async def checkpoint(self) -> None:
        """Make what is verified durable, say so in the resume file, and hash on."""
        prefix_bytes = self.transfer.verified_prefix * self.info.piece_bytes
        resume = self._noted()
        await self.transfer.flush()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(self._persist, resume))
            group.create_task(self._digest.advance(min(prefix_bytes, self.info.size_bytes)))

    async def hand_over(self) -> None:
        """Give what is verified to the kernel, and note it for as long as this kernel runs."""
        resume = self._noted()
        await self.transfer.flush()
        await asyncio.to_thread(self._resume_files.save_for_this_boot, self.info.infohash, resume)

    def _noted(self) -> Resume:
        have = tuple(bool(held) for held in self.transfer.have)
        return Resume(have, self.fetched_bytes, self.wasted_bytes)

    @property
    def _name(self) -> str:
        return self.info.infohash[:12]

    async def _checkpoints(self) -> None:
        loop = asyncio.get_running_loop()
        rest_s, saved_bytes = CHECKPOINT_MIN_S, self.transfer.done_bytes
        while not self.transfer.is_complete:
            await asyncio.sleep(rest_s)
            began_s, done_bytes = loop.time(), self.transfer.done_bytes
            if done_bytes > saved_bytes:
                try:
                    await self.checkpoint()
                    saved_bytes = done_bytes
                except* StorageFailed as errors:
                    # The end meets the same fault and reports it.
                    log.warning("checkpoint-failed", why=str(errors.exceptions[0]))
            rest_s = max(CHECKPOINT_MIN_S, CHECKPOINT_REST * (loop.time() - began_s))

    async def _hand_overs(self) -> None:
        due_bytes = max(int(self.info.size_bytes * HAND_OVER_SHARE), self.info.piece_bytes)
        noted_bytes = self.transfer.done_bytes
        while not self.transfer.is_complete:
            await asyncio.sleep(HAND_OVER_S)
            if self.transfer.done_bytes - noted_bytes >= due_bytes:
                noted_bytes = self.transfer.done_bytes
                await self.hand_over()

    def _persist(self, resume: Resume) -> None:
        _fsync(self._target)
        self._resume_files.save(self.info.infohash, resume)


def _fsync(target: WriteTarget) -> None:
    try:
        os.fsync(target.fd)
    except OSError as error:
        raise StorageFailed(
            f"{target.directory}: flushing the volume: {error.strerror}",
            hint="see the kernel's log for the device",
        ) from None
