"""Large replies to READ, whose data goes from a file's page cache to the kernel without a copy in this process.

A pipe holds the header of a reply and, behind it, references to the pages of a file; /dev/fuse copies from those
(fuse_dev_splice_write in fs/fuse/dev.c). Without SPLICE_F_MOVE it takes no page away from the file. This module does
not know what is read. Any thread may make a reply, and send it.
"""

from __future__ import annotations

import os
from fcntl import F_SETPIPE_SZ, fcntl

from unionfs.fuse.wire import replies

_PAGE_BYTES = 4096
#: 1 MiB is what anybody may have (fs.pipe-max-size), more takes CAP_SYS_RESOURCE; the last is what a pipe is made with.
_SIZES = (1 << 21, 1 << 20, 1 << 16)

MOST_BYTES = (1 << 20) - _PAGE_BYTES
"""How much fits into a pipe that anybody may have: a header takes the place of a page."""


class Piped:
    """A reply in a pipe of its own, which serves others once this one is gone."""

    __slots__ = ("_free", "_inlet", "_length", "_outlet", "room")

    def __init__(self, free: list[Piped]) -> None:
        self._outlet, self._inlet = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._free = free
        self._length = 0
        self.room = _enlarge(self._inlet) - _PAGE_BYTES

    def fill(self, unique: int, descriptor: int, offset: int, size: int) -> bool:
        """Answer a READ; tell whether the file still has so much. Waits for the disk. Raises OSError."""
        self._length = os.write(self._inlet, replies.header(unique, size)) + size
        return os.splice(descriptor, self._inlet, size, offset) == size

    def send(self, device: int) -> None:
        """Hand the reply to the kernel. Raises OSError."""
        try:
            os.splice(self._outlet, device, self._length)
        except OSError:
            self.discard()
            raise
        self.keep()

    def take(self) -> bytes:
        """Return the reply, for who is not the kernel."""
        reply = os.read(self._outlet, self._length)
        self.keep()
        return reply

    def keep(self) -> None:
        """Let another reply have the pipe, which is empty."""
        self._free.append(self)

    def discard(self) -> None:
        """Close the pipe, whatever is in it."""
        os.close(self._inlet)
        os.close(self._outlet)


class Pipes:
    """Makes replies; keeps as many pipes as there were threads that did so at once."""

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free: list[Piped] = []

    def reply(self, unique: int, descriptor: int, offset: int, size: int) -> Piped | None:
        """Return the reply to a READ of ``size`` bytes, None if it has to be copied. Waits for the disk."""
        size = min(size, os.stat(descriptor).st_size - offset)  # the header goes first, and the end of a file is known
        piped = self._piped()
        if not 0 < size <= piped.room:
            piped.keep()
            return None
        try:
            if piped.fill(unique, descriptor, offset, size):
                return piped
        except OSError:
            pass  # no splice on this file system, or an error that read(2) will meet as well
        piped.discard()
        return None

    def _piped(self) -> Piped:
        try:
            return self._free.pop()
        except IndexError:
            return Piped(self._free)


def _enlarge(pipe: int) -> int:
    """Let a pipe hold as much as a READ can ask for, or as is allowed; return the size in bytes."""
    for size in _SIZES:
        try:
            return fcntl(pipe, F_SETPIPE_SZ, size)
        except PermissionError:
            pass
    return _SIZES[-1]
