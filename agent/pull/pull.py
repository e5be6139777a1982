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

CHECKPOINT_S = 1.0
CHECKPOINT_SHARE = 0.02
"""A checkpoint is due after this share of the image, so that a crash costs little more."""


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
        self._saved_bytes = transfer.done_bytes

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
        checkpoints = asyncio.create_task(self._checkpoints(), name=f"checkpoint {self._name}")
        try:
            async with asyncio.TaskGroup() as group:
                for source in sources:
                    group.create_task(
                        source.bring(self.transfer), name=f"{source.name} {self._name}"
                    )
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            checkpoints.cancel()
            await asyncio.gather(checkpoints, return_exceptions=True)

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
        have = tuple(bool(held) for held in self.transfer.have)
        prefix_bytes = min(
            self.transfer.verified_prefix * self.info.piece_bytes, self.info.size_bytes
        )
        resume = Resume(have, self.fetched_bytes, self.wasted_bytes)
        await self.transfer.flush()
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(self._persist, resume))
            group.create_task(self._digest.advance(prefix_bytes))
        self._saved_bytes = self.transfer.done_bytes

    @property
    def _name(self) -> str:
        return self.info.infohash[:12]

    async def _checkpoints(self) -> None:
        due_bytes = max(int(self.info.size_bytes * CHECKPOINT_SHARE), self.info.piece_bytes)
        while not self.transfer.is_complete:
            await asyncio.sleep(CHECKPOINT_S)
            if self.transfer.done_bytes - self._saved_bytes >= due_bytes:
                try:
                    await self.checkpoint()
                except* StorageFailed as errors:
                    # The next one, or the end, meets the same fault and reports it.
                    log.warning("checkpoint-failed", why=str(errors.exceptions[0]))

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
