"""A process that hashes pieces of an open file for ``distrib.swarm.hashing``.

On standard input it is told ranges (offset and length in bytes, 8 bytes each, little endian), on
standard output it gives the hashes of the pieces in each, and nothing when reading failed: then it
ends with the errno. It lives as long as its input.

A process, because between two blocks of 16 KiB Python needs its lock: threads were measured at
three quarters of what processes give on two cores, and fall behind further with more.
"""

from __future__ import annotations

import errno
import os
import struct
import sys

from distrib.swarm.merkle import piece_hash

RANGE = struct.Struct("<QQ")


def serve(fd: int, *, piece_bytes: int, leaves: int) -> None:
    """Answer until the input ends. Raises OSError when the file cannot be read, or is short."""
    buffer = memoryview(bytearray(piece_bytes))
    while asked := sys.stdin.buffer.read(RANGE.size):
        begin, length = RANGE.unpack(asked)
        hashes = []
        for at in range(begin, begin + length, piece_bytes):
            piece = buffer[: min(piece_bytes, begin + length - at)]
            read_fully(fd, piece, at)
            hashes.append(piece_hash(piece, leaves=leaves))
        sys.stdout.buffer.write(b"".join(hashes))
        sys.stdout.buffer.flush()


def read_fully(fd: int, into: memoryview, at: int) -> None:
    """Fill ``into`` from the file's offset ``at``. Raises OSError, EIO where the file ends."""
    done = 0
    while done < len(into):
        got = os.preadv(fd, [into[done:]], at + done)
        if got == 0:
            raise OSError(errno.EIO, "the file has become shorter")
        done += got


if __name__ == "__main__":
    try:
        serve(int(sys.argv[1]), piece_bytes=int(sys.argv[2]), leaves=int(sys.argv[3]))
    except OSError as error:
        sys.exit(error.errno or errno.EIO)
