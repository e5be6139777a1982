"""One pull: from reserved room to a volume whose every byte is verified.

Sources bring pieces into the verified store; beside them a checkpoint makes what is there durable
and hashes on. What this returns is a claim about the volume's bytes as read back from it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Sequence

import structlog

from agent.cache.store import WriteTarget
from agent.finishing import to_the_end
from agent.pull.digest import PrefixDigest
from agent.pull.resume import Resume, ResumeFiles
from agent.pull.source import Source
from agent.pull.stripes import Store
from distrib.errors import DigestMismatch, DistribError, StorageFailed, TorrentMismatch
from distrib.swarm.pieces import torrent_from_volume
from distrib.swarm.torrent import TorrentInfo

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
        transfer: Store,
        target: WriteTarget,
        *,
        sha512: str,
        raw_info: bytes,
        resume_files: ResumeFiles,
        resumed: Resume | None,
    ) -> None:
        self.transfer = transfer
        self.resumed_bytes = transfer.done_bytes
        self._target = target
        self._sha512 = sha512
        self._raw_info = raw_info
        self._resume_files = resume_files
        self._before = resumed or Resume(have=())
        self._copied = bytearray(transfer.info.pieces)
        self._copied_bytes = 0
        self._digest = PrefixDigest(target.fd)
        self._noting = asyncio.Lock()
        self._complaint = ""

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

    @property
    def copied_bytes(self) -> int:
        """What came from older versions on this node, all the pull's starts together."""
        return self._before.copied_bytes + self._copied_bytes

    @property
    def done_bytes(self) -> int:
        """Bytes in verified and in copied pieces."""
        return self.transfer.done_bytes + self._copied_bytes

    def on_copied(self, piece: int, count: int) -> None:
        """The kernel has ``count`` pieces from ``piece`` on: they were copied."""
        for index in range(piece, piece + count):
            self._copied[index] = 1
            self._copied_bytes += self.info.piece_size(index)

    def noted(self) -> Resume:
        """What is there now, as a resume file says it."""
        held = int.from_bytes(self.transfer.have) | int.from_bytes(self._copied)
        have = tuple(map(bool, held.to_bytes(self.info.pieces)))
        return Resume(have, self.fetched_bytes, self.wasted_bytes, self.copied_bytes)

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
            await self.transfer.count()
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
                hint="the disk changed what was written to it, or the site list contradicts itself:"
                " roll it out again, and look at the disk",
                infohash=self.info.infohash,
            )
        try:
            return await self.transfer.torrent_file()
        except TorrentMismatch:
            # Begun with bits from an earlier start: libtorrent never asked for those hashes.
            return await asyncio.to_thread(
                torrent_from_volume, self._target.fd, self._raw_info, self.info
            )

    async def checkpoint(self) -> None:
        """Make what is verified durable, say so in the resume file, and hash on."""
        async with self._noting:
            resume = self.noted()
            prefix_bytes = _prefix(resume.have) * self.info.piece_bytes
            await self.transfer.flush()
            # A thread cannot be cancelled: the lock is held until it is done.
            await to_the_end(self._persist_and_hash(resume, prefix_bytes))

    async def _persist_and_hash(self, resume: Resume, prefix_bytes: int) -> None:
        outcomes = await asyncio.gather(
            asyncio.to_thread(self._persist, resume),
            self._digest.advance(min(prefix_bytes, self.info.size_bytes)),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def hand_over(self) -> None:
        """Give what is verified to the kernel, and note it for as long as this kernel runs."""
        async with self._noting:
            resume = self.noted()
            await self.transfer.flush()
            save = self._resume_files.save_for_this_boot
            await to_the_end(asyncio.to_thread(save, self.info.infohash, resume))

    @property
    def _name(self) -> str:
        return self.info.infohash[:12]

    async def _checkpoints(self) -> None:
        loop = asyncio.get_running_loop()
        rest_s, saved_bytes = CHECKPOINT_MIN_S, self.done_bytes
        while self.done_bytes < self.info.size_bytes:
            await asyncio.sleep(rest_s)
            began_s, done_bytes = loop.time(), self.done_bytes
            due = done_bytes > saved_bytes
            if due and await self._survives("checkpoint", self.checkpoint()):
                saved_bytes = done_bytes
            rest_s = max(CHECKPOINT_MIN_S, CHECKPOINT_REST * (loop.time() - began_s))

    async def _hand_overs(self) -> None:
        due_bytes = max(int(self.info.size_bytes * HAND_OVER_SHARE), self.info.piece_bytes)
        noted_bytes = self.done_bytes
        while self.done_bytes < self.info.size_bytes:
            await asyncio.sleep(HAND_OVER_S)
            if self.done_bytes - noted_bytes >= due_bytes:
                noted_bytes = self.done_bytes
                await self._survives("hand-over", self.hand_over())

    async def _survives(self, what: str, step: Awaitable[None]) -> bool:
        """Whether a step went well; the end of the pull meets the same fault and reports it."""
        try:
            await step
        except DistribError as error:
            if self._complaint != error.message:
                log.warning(f"{what}-failed", infohash=self.info.infohash, why=error.message)
            self._complaint = error.message
            return False
        return True

    def _persist(self, resume: Resume) -> None:
        _fsync(self._target)
        self._resume_files.save(self.info.infohash, resume)


def _prefix(have: tuple[bool, ...]) -> int:
    """How many pieces from the first on are there without a gap."""
    return have.index(False) if False in have else len(have)


def _fsync(target: WriteTarget) -> None:
    try:
        os.fsync(target.fd)
    except OSError as error:
        raise StorageFailed(
            f"{target.directory}: flushing the volume: {error.strerror}",
            hint="see the kernel's log for the device",
        ) from None
