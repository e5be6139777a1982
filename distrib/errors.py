"""The error classes, by who can mend the fault; their codes and exit statuses are an interface.

Every error that reaches a person, a log, MQTT or the API is one of these. Each carries
- ``code``: stable, kebab-case, listed in docs/formats/errors.md;
- ``exit_status``: what the command ends with (docs/formats/exit-codes.md);
- ``ids``: what it is about (image, node, piece, path, key, ...);
- ``hint``: what to do next, in one line.
"""

from __future__ import annotations

from enum import IntEnum


class ExitStatus(IntEnum):
    """Exit statuses of every command (docs/formats/exit-codes.md)."""

    DONE = 0
    BUG = 1
    USAGE = 2
    TRUST_REFUSED = 3
    NOT_FOUND = 4
    NO_SPACE = 5
    UNREACHABLE = 6
    TIMED_OUT = 7
    PARTIAL = 8
    FORBIDDEN = 9


class DistribError(Exception):
    """Base class. ``message`` says what and where; ``hint`` says what to do."""

    code: str = "bug"
    exit_status: ExitStatus = ExitStatus.BUG

    def __init__(self, message: str, *, hint: str = "", **ids: str | int) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.ids: dict[str, str | int] = dict(ids)

    def as_dict(self) -> dict[str, object]:
        """The error as the API, the socket and ``--json`` carry it."""
        return {
            "code": self.code,
            "exit": int(self.exit_status),
            "message": self.message,
            "hint": self.hint,
            "ids": self.ids,
        }


# Mended by the operator ------------------------------------------------------------------------


class OperatorError(DistribError):
    """Something that the person at the command can put right."""

    code = "usage"
    exit_status = ExitStatus.USAGE


class ConfigInvalid(OperatorError):
    """A settings file, variable or flag holds an unknown key or a wrong value."""

    code = "config-invalid"


class ToolMissing(OperatorError):
    """A program or library of the host that this action needs is not there."""

    code = "tool-missing"


class Conflict(OperatorError):
    """The request contradicts what is already there."""

    code = "conflict"


class NotFound(OperatorError):
    """No such image, node, rollout, lease or file."""

    code = "not-found"
    exit_status = ExitStatus.NOT_FOUND


class Forbidden(OperatorError):
    """The caller is known, and may not do this."""

    code = "forbidden"
    exit_status = ExitStatus.FORBIDDEN


# Mended by whoever endorsed, approved or made the image ----------------------------------------


class ImageError(DistribError):
    """The image, its list or its torrent is at fault."""

    code = "image-invalid"
    exit_status = ExitStatus.TRUST_REFUSED


class TrustRefused(ImageError):
    """A signed document breaks at least one rule; ``reasons`` are all that it breaks.

    ``reasons`` are the dictionaries of ``distrib.trust.reasons.Reason.as_dict``.
    """

    code = "trust-refused"

    def __init__(
        self,
        message: str,
        *,
        reasons: tuple[dict[str, str], ...] = (),
        hint: str = "",
        **ids: str | int,
    ) -> None:
        super().__init__(message, hint=hint, **ids)
        self.reasons = reasons

    def as_dict(self) -> dict[str, object]:
        return super().as_dict() | {"reasons": list(self.reasons)}


class DigestMismatch(ImageError):
    """Bytes differ from what the signed list says of them."""

    code = "digest-mismatch"


class TorrentMismatch(ImageError):
    """A torrent is not the one that the site list names."""

    code = "torrent-mismatch"


class Revoked(ImageError):
    """The image was withdrawn by its endorser or denied by the site."""

    code = "revoked"


class SiteListStale(ImageError):
    """The newest site list is older than the site allows: no new leases (fail closed)."""

    code = "site-list-stale"


# Mended on the node ----------------------------------------------------------------------------


class NodeError(DistribError):
    """The node's disk, kernel or host software is at fault."""

    code = "node-fault"
    exit_status = ExitStatus.UNREACHABLE


class NoSpace(NodeError):
    """Quota, device or file system has not the room."""

    code = "no-space"
    exit_status = ExitStatus.NO_SPACE


class TargetTooSmall(NoSpace):
    """The block device is smaller than the image."""

    code = "target-too-small"


class StorageFailed(NodeError):
    """Reading, writing or flushing a volume failed below us."""

    code = "storage-failed"


class DiskFull(NoSpace, StorageFailed):
    """The file system below us has no room left for what must be written."""

    code = "no-space"


class StateCorrupt(NodeError):
    """A state file of the agent or the head cannot be read."""

    code = "state-corrupt"


class NotReady(NodeError):
    """The image is on the node but not (yet) ready to be leased."""

    code = "not-ready"
    exit_status = ExitStatus.NOT_FOUND


class LaunchFailed(NodeError):
    """The guest did not start, hung, or ended without a result."""

    code = "launch-failed"


class LimitReached(NodeError):
    """A job used all the time that it may."""

    code = "limit-reached"
    exit_status = ExitStatus.TIMED_OUT


# Mended by the network, or by waiting ----------------------------------------------------------


class NetworkError(DistribError):
    """Somebody could not be reached."""

    code = "unreachable"
    exit_status = ExitStatus.UNREACHABLE


class MessageInvalid(NetworkError):
    """A message on the bus or the socket does not follow its format."""

    code = "message-invalid"


class TimedOut(NetworkError):
    """It took longer than allowed."""

    code = "timed-out"
    exit_status = ExitStatus.TIMED_OUT


class Partial(NetworkError):
    """Done on some nodes, failed on others."""

    code = "partial"
    exit_status = ExitStatus.PARTIAL
