"""Answer INIT: what both sides of the connection will do.

Pure: what is wanted comes from the caller. This module does not know what the flags are good for, beyond those that
say how INIT itself is read.
"""

from __future__ import annotations

from unionfs.fuse.wire import abi, replies
from unionfs.fuse.wire.requests import TruncatedBody, WireError
from unionfs.lean import NamedTuple

MIN_MINOR_VERSION = 23  # the first whose reply to INIT is 64 bytes long (Linux 3.15)
MAX_BACKGROUND = 64
CONGESTION_THRESHOLD = 48

# They only say that fields of the reply are filled in, and that WRITE may be longer than a page.
_ALWAYS = abi.INIT_INIT_EXT | abi.INIT_MAX_PAGES | abi.INIT_BIG_WRITES
_DEFAULT_MAX_PAGES = 32  # FUSE_DEFAULT_MAX_PAGES_PER_REQ, fs/fuse/fuse_i.h
_MIN_MAX_WRITE_BYTES = 4096  # the kernel takes less for this
_MAX_XATTR_BYTES = 65536  # XATTR_SIZE_MAX: a SETXATTR does not ask for max_write


class UnsupportedVersion(WireError):
    """The kernel speaks a version of the protocol that is older than this package."""


class Offer(NamedTuple):
    """What the kernel offers: its version, bytes of read-ahead, all 64 bits of flags."""

    major: int
    minor: int
    max_readahead: int
    flags: int

    @classmethod
    def from_args(cls, args: tuple[int, ...]) -> Offer:
        """Return the offer in the arguments of an INIT.

        Raises:
            TruncatedBody: the request promises more flags than it has.
        """
        major, minor, max_readahead, flags = args[:4]
        if not flags & abi.INIT_INIT_EXT:
            return cls(major, minor, max_readahead, flags)
        if len(args) < 5:
            raise TruncatedBody("INIT with INIT_EXT and without flags2")
        return cls(major, minor, max_readahead, flags | args[4] << 32)


class Settings(NamedTuple):
    """What was agreed upon, in the order of `replies.init`. Sizes in bytes; `time_gran` in nanoseconds."""

    minor: int
    flags: int
    max_readahead: int
    max_write: int
    max_background: int
    congestion_threshold: int
    time_gran: int
    max_pages: int
    max_stack_depth: int

    @property
    def passthrough(self) -> bool:
        """Whether files may be opened with FOPEN_PASSTHROUGH."""
        return bool(self.flags & abi.INIT_PASSTHROUGH)

    @property
    def writeback(self) -> bool:
        """Whether the kernel gathers writes, and keeps size and mtime itself."""
        return bool(self.flags & abi.INIT_WRITEBACK_CACHE)

    @property
    def no_open(self) -> bool:
        """Whether ENOSYS to OPEN means that no file is ever opened again."""
        return bool(self.flags & abi.INIT_NO_OPEN_SUPPORT)

    @property
    def no_opendir(self) -> bool:
        """Whether ENOSYS to OPENDIR means that no directory is ever opened again."""
        return bool(self.flags & abi.INIT_NO_OPENDIR_SUPPORT)

    @property
    def readdirplus(self) -> bool:
        """Whether READDIRPLUS will come."""
        return bool(self.flags & abi.INIT_DO_READDIRPLUS)

    @property
    def setxattr_ext(self) -> bool:
        """Whether SETXATTR has its long layout: the argument of `requests.Decoder`."""
        return bool(self.flags & abi.INIT_SETXATTR_EXT)

    @property
    def read_buffer_bytes(self) -> int:
        """How large a buffer must be to hold any request: a WRITE or a SETXATTR, with a page for what is around it."""
        return max(self.max_write, _MAX_XATTR_BYTES) + 4096


class Retry(NamedTuple):
    """The kernel's major version is newer: after this answer it sends another INIT, with ours."""

    minor: int


def negotiate(
    offer: Offer, wanted_flags: int, max_write: int, max_stack_depth: int = 1, *, page_bytes: int = 4096
) -> Settings | Retry:
    """Agree on what the kernel offers and the server wants.

    Args:
        offer: of the kernel.
        wanted_flags: INIT_* flags; those that are not offered are left out, and so is INIT_PASSTHROUGH beside
            INIT_WRITEBACK_CACHE, since the kernel ignores it then.
        max_write: the longest WRITE that is wanted, in bytes; shorter where the kernel has no INIT_MAX_PAGES.
        max_stack_depth: how deeply stacked the file systems may be that back files by passthrough: 1 or 2.
        page_bytes: the size of the kernel's pages.

    Raises:
        UnsupportedVersion: the kernel is too old.

    Source: `<linux/fuse.h>`, "Version negotiation"; process_init_reply in fs/fuse/inode.c.
    """
    if offer.major > abi.KERNEL_VERSION:
        return Retry(abi.KERNEL_MINOR_VERSION)
    if (offer.major, offer.minor) < (abi.KERNEL_VERSION, MIN_MINOR_VERSION):
        raise UnsupportedVersion(f"{offer.major}.{offer.minor}")
    flags = offer.flags & (wanted_flags | _ALWAYS)
    if flags & abi.INIT_WRITEBACK_CACHE:
        flags &= ~abi.INIT_PASSTHROUGH
    max_write = max(max_write, _MIN_MAX_WRITE_BYTES)
    pages = min(-(-max_write // page_bytes), 0xFFFF) if flags & abi.INIT_MAX_PAGES else _DEFAULT_MAX_PAGES
    return Settings(
        minor=min(offer.minor, abi.KERNEL_MINOR_VERSION),
        flags=flags,
        max_readahead=offer.max_readahead,
        max_write=min(max_write, pages * page_bytes),
        max_background=MAX_BACKGROUND,
        congestion_threshold=CONGESTION_THRESHOLD,
        time_gran=1,
        max_pages=pages,
        max_stack_depth=max_stack_depth if flags & abi.INIT_PASSTHROUGH else 0,
    )


def init_reply(unique: int, settings: Settings | Retry) -> bytes:
    """Return the message that answers the INIT `unique`."""
    return replies.data(unique, replies.init(*settings))
