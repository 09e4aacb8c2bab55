"""Which operations there are, how often, and with what: a table, and the choice of the next one.

Knows nothing of mounts: an operation is the name of a method of ``Actor`` and its arguments.
"""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

from unionfs.syscalls.files import RENAME_EXCHANGE, RENAME_NOREPLACE

from . import layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from random import Random

    Pick = Callable[["Situation"], object]

#: user::rwx user:1000:r-- group::r-x mask::r-x other::---, laid out as in linux/posix_acl_xattr.h.
ACL = bytes.fromhex("02000000 01000700ffffffff 02000400e8030000 04000500ffffffff 10000500ffffffff 20000000ffffffff")


class Situation(NamedTuple):
    """What a choice is made from: chance, and the paths that are there now."""

    random: Random
    standing: Sequence[bytes]


class Operation(NamedTuple):
    """A call of ``Actor``; ``who`` is the user that performs it."""

    name: str
    arguments: tuple[object, ...]
    who: int


class Row(NamedTuple):
    """``weight`` says how often; ``picks`` give the arguments; others than root take part where ``for_all``."""

    weight: int
    name: str
    picks: tuple[Pick, ...]
    for_all: bool = True


def of(*values: object) -> Pick:
    """Return a pick of one of the values."""
    return lambda now: now.random.choice(values)


def standing(now: Situation) -> bytes:
    """Pick something that is there."""
    return now.random.choice(now.standing) if now.standing else b"a"


def free(now: Situation) -> bytes:
    """Pick a name in a directory, or in what is taken for one; often it is free."""
    return os.path.join(now.random.choice((b"", standing(now))), now.random.choice(layers.NAMES))


def wild(now: Situation) -> bytes:
    """Pick any path."""
    return b"/".join(now.random.choices(layers.NAMES, k=now.random.randint(1, layers.DEPTH + 2)))


def old(now: Situation) -> bytes:
    """Pick a path that is probably there."""
    return now.random.choices((standing, free, wild), (8, 1, 1))[0](now)


def owners(now: Situation) -> tuple[int, int]:
    """Pick an owner and a group, of which -1 leaves one as it is; never both, see ``differences``."""
    return now.random.choice(((0, 0), (1000, 1000), (0, 1000), (1000, -1), (-1, 1000), (-1, 0)))


def new(now: Situation) -> bytes:
    """Pick a path that is probably not there."""
    return now.random.choices((standing, free, wild), (2, 7, 1))[0](now)


mode = of(0o644, 0o600, 0o755, 0o777, 0o000, 0o4711, 0o2775, 0o1777)
size = of(0, 1, 7, 4096, 20_000)
content = of(b"", b"x", b"hello", b"\0" * 10, b"long" * 2000)
moment = of(0, -1, 1_500_000_000_987_654_321, (1 << 31) * 10**9 + 5, -(1 << 31) * 10**9)
xattr = of(*layers.XATTRS)
acl = of("system.posix_acl_access", "system.posix_acl_default")
slot = of(0, 1, 2, 3)
name = of(*layers.NAMES)
device_free = of(stat.S_IFIFO | 0o640, stat.S_IFSOCK | 0o600, stat.S_IFREG | 0o644)

TABLE = (
    Row(4, "create", (new, mode, of(0, os.O_EXCL, os.O_TRUNC))),
    Row(4, "write", (old, content, size, of(0, os.O_APPEND, os.O_TRUNC))),
    Row(2, "truncate", (old, size)),
    Row(2, "read", (old,)),
    # allocate, beyond the end, punch a hole, fill with zeros
    Row(2, "fallocate", (old, of(0, 1, 3, 0x10, 0x11), size, size), for_all=False),
    Row(1, "copy_range", (old, old)),
    Row(1, "direct", (old, of(0, 1, 3)), for_all=False),
    Row(1, "holes", (old,)),
    Row(5, "mkdir", (new, mode)),
    Row(4, "rmdir", (old,)),
    Row(6, "unlink", (old,)),
    Row(1, "empty", (old,)),
    Row(1, "iterate", (old, name, name), for_all=False),
    Row(10, "rename", (old, new, of(0, 0, RENAME_NOREPLACE))),
    Row(3, "rename", (old, old, of(0, RENAME_EXCHANGE))),
    Row(4, "link", (old, new)),
    Row(3, "symlink", (of(*layers.TARGETS), new)),
    Row(1, "mknod", (new, device_free, of(0))),
    Row(1, "mknod", (new, of(stat.S_IFCHR | 0o660, stat.S_IFBLK | 0o600), of(os.makedev(1, 3)))),
    Row(3, "chmod", (old, mode)),
    Row(2, "chown", (old, owners)),
    Row(2, "utimens", (old, moment, moment)),
    Row(1, "touch", (old,)),
    Row(2, "setxattr", (old, xattr, of(*layers.VALUES), of(0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))),
    Row(1, "setxattr", (old, acl, of(ACL), of(0))),
    Row(1, "getxattr", (old, xattr)),
    Row(1, "getxattr", (old, acl)),
    Row(1, "listxattr", (old,), for_all=False),  # setfsuid(2) leaves CAP_SYS_ADMIN, which shows "trusted."
    Row(1, "removexattr", (old, xattr)),
    Row(1, "removexattr", (old, acl)),
    Row(1, "readlink", (old,)),
    Row(2, "readdir", (old,)),
    Row(2, "stat", (old,)),
    Row(1, "access", (old, of(os.R_OK, os.W_OK, os.X_OK, os.F_OK))),
    Row(6, "open", (slot, old, of(os.O_RDONLY, os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT)), for_all=False),
    Row(1, "tmpfile", (slot, old), for_all=False),
    Row(1, "close", (slot,), for_all=False),
    Row(2, "fread", (slot, size), for_all=False),
    Row(2, "fwrite", (slot, content, size), for_all=False),
    Row(2, "fstat", (slot,), for_all=False),
    Row(1, "ftruncate", (slot, size), for_all=False),
    Row(1, "fchmod", (slot, mode), for_all=False),
    Row(1, "fchown", (slot, owners), for_all=False),
    Row(1, "fsetxattr", (slot, xattr, of(*layers.VALUES)), for_all=False),
    Row(1, "flock", (slot, of(fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)), for_all=False),
    Row(1, "lock", (slot, of(fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK), size, size), for_all=False),
    Row(2, "map", (slot,), for_all=False),
    Row(2, "mread", (slot,), for_all=False),
    Row(1, "mwrite", (slot, content, size), for_all=False),
    Row(1, "fsync", (slot,), for_all=False),
    Row(1, "freaddir", (slot,), for_all=False),
    Row(1, "flink", (slot, new), for_all=False),
    Row(1, "fmkdir", (slot, name), for_all=False),
)


def choose(now: Situation) -> Operation:
    """Choose the next operation."""
    row = now.random.choices(TABLE, [row.weight for row in TABLE])[0]
    who = 1000 if row.for_all and now.random.random() < 0.2 else 0
    return Operation(row.name, tuple(pick(now) for pick in row.picks), who)


def unmapped(chosen: Operation) -> Operation:
    """Replace looking at a mapping, which does not always show its file on overlayfs, by reading."""
    return Operation("fread", (chosen.arguments[0], 0), 0) if chosen.name == "mread" else chosen


def known_to_libfuse2(chosen: Operation) -> Operation:
    """Replace what libfuse 2 has no request for, by what is nearest to it."""
    if chosen.name == "rename":
        return chosen._replace(arguments=(*chosen.arguments[:2], 0))
    if chosen.name == "setxattr" and str(chosen.arguments[1]).startswith("system.posix_acl_"):
        return Operation("listxattr", chosen.arguments[:1], 0)  # the kernel does not enforce ACLs for it
    if chosen.name in ("fchown", "fsetxattr"):  # an open directory that is removed has no path to ask for
        return Operation("fread", (chosen.arguments[0], 0), 0)
    if chosen.name == "tmpfile":
        return Operation("open", (*chosen.arguments, os.O_RDONLY), chosen.who)
    return chosen
