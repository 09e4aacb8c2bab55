"""System calls on mounts: the classic ones, and those that work on descriptors. Names are bytes.

Constants are those of <linux/mount.h>. Calls that the C library has no wrapper for go by number: one number for every
machine since Linux 5.2, only pivot_root's is older and differs.
"""

from __future__ import annotations

import ctypes
from struct import Struct

from unionfs.syscalls._libc import X86_64, check, libc

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_MOVE = 0x2000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = 0o2000000
MOVE_MOUNT_F_EMPTY_PATH = 0x04
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_RELATIME = 0x0
MOUNT_ATTR_NOATIME = 0x10
MOUNT_ATTR_STRICTATIME = 0x20
MOUNT_ATTR_ATIME = 0x70  # the bits that tell these three apart

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

_SYS_PIVOT_ROOT = 155 if X86_64 else 41
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442

_MOUNT_ATTR = Struct("=QQQQ")  # to set, to clear, propagation, user namespace

_mount = libc.mount
_mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_syscall = libc.syscall
_syscall.restype = ctypes.c_long


def mount(source: bytes | None, target: bytes, kind: bytes | None, flags: int = 0, data: bytes | None = None) -> None:
    """Mount ``source`` of file system type ``kind`` on ``target``, or bind, move or change it; see mount(2).

    ``data`` is the file system's own option string, at most 4,095 bytes. Raises OSError with the target.
    """
    check(_mount(source, target, kind, flags, data), target)


def unmount(target: bytes, flags: int = 0) -> None:
    """Unmount what is topmost on ``target``; ``flags`` as for umount2(2). Raises OSError (EBUSY while in use)."""
    check(libc.umount2(target, flags), target)


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Make the mount ``new_root`` the root of this mount namespace, the old one being put on ``put_old``.

    ``pivot_root(b".", b".")`` stacks the old root on the new one, where ``unmount(b".", MNT_DETACH)`` removes it:
    see the notes of pivot_root(2). Raises OSError.
    """
    check(_syscall(_SYS_PIVOT_ROOT, new_root, put_old), new_root)


def clone_tree(directory: int, path: bytes, *, recursive: bool = False) -> int:
    """Return a descriptor of a detached copy of the mount at ``path`` (b"" for ``directory`` itself).

    Without ``recursive`` it holds none of what is mounted below. See open_tree(2), OPEN_TREE_CLONE. Raises OSError
    (EPERM without CAP_SYS_ADMIN, EINVAL for a mount with locked children, ENOSYS before Linux 5.2).
    """
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return check(_syscall(_SYS_OPEN_TREE, directory, path, flags), path)


def attach_tree(tree: int, directory: int, path: bytes) -> None:
    """Attach the detached mount ``tree`` at ``path`` (b"" for ``directory`` itself); see move_mount(2)."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    check(_syscall(_SYS_MOVE_MOUNT, tree, b"", directory, path, flags), path)


def set_attributes(directory: int, path: bytes, attributes: int, *, clear: int = 0, recursive: bool = False) -> None:
    """Add MOUNT_ATTR_* flags to the mount at ``path`` (b"" for ``directory`` itself), or to all mounts from there on,
    having taken ``clear`` away.

    See mount_setattr(2). Raises OSError (ENOSYS before Linux 5.12).
    """
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    value = _MOUNT_ATTR.pack(attributes, clear, 0, 0)
    check(_syscall(_SYS_MOUNT_SETATTR, directory, path, flags, value, _MOUNT_ATTR.size), path)
