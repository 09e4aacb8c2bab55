"""Inode flags (ioctl_iflags(2)): which changes they forbid, where they stand, and what of them a copy-up takes along.

A file of a lower layer has its own. Its copy cannot have those that forbid changes, or nobody could rename it into
place: as with the kernel's overlayfs they stand in ``overlay.protattr`` (ovl_copy_fileattr in fs/overlayfs/copy_up.c),
and it is we who obey them. So it is with directories of the writable layer, in which copies must find their place
whatever programs may do there. All other files of that layer have real flags, which their file system obeys by itself.
"""

from __future__ import annotations

import errno
import os
import sys

from unionfs.ondisk import IMMUTABLE, PROTATTR, PROTECTED, encode_protection
from unionfs.syscalls import files
from unionfs.union.nodes import DirNode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.union.mutate import Mutations
    from unionfs.union.nodes import AnyNode
    from unionfs.union.view import View

_SYNC, _NOATIME = 0x08, 0x80
_COPIED = _SYNC | _NOATIME  # OVL_COPY_FS_FLAGS_MASK of fs/overlayfs/overlayfs.h
_NONE_HERE = (errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF)
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE
_WORD = 4  # bytes of the flags, with which both kinds of argument begin


def protection(view: View, node: AnyNode) -> int:
    """Return which flags of PROTECTED ``node`` has, but for real ones in the writable layer. Raises OSError."""
    if node.owned:
        return node.protection
    place = (node.descriptor, b"") if node.descriptor >= 0 else view.place(node)
    return files.statx_attributes(*place) & PROTECTED


def forbidding(open_flags: int) -> int:
    """Return the flags of which a file may have none to be opened with ``open_flags`` (may_open in fs/namei.c)."""
    if not open_flags & (os.O_ACCMODE | os.O_TRUNC):
        return 0
    return IMMUTABLE if open_flags & (os.O_APPEND | os.O_TRUNC) == os.O_APPEND else PROTECTED


def forbidding_space(mode: int) -> int:
    """Return the flags of which a file may have none for fallocate(2) with ``mode`` (vfs_fallocate in fs/open.c)."""
    return PROTECTED if mode & ~_KEEP_SIZE else IMMUTABLE


def expect_none(flags: int, node: AnyNode) -> None:
    """Raise OSError (EPERM) if there are any ``flags``: those of ``node`` that forbid what is about to be done."""
    if flags:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), node.name)


def refuse(view: View, node: AnyNode, among: int = PROTECTED) -> None:
    """Raise OSError (EPERM) where ``node`` has one of the flags ``among``."""
    expect_none(protection(view, node) & among, node)


def refuse_removal(view: View, parent: DirNode, node: AnyNode) -> None:
    """Raise OSError (EPERM) where flags keep a name of ``node`` in ``parent`` (may_delete in fs/namei.c)."""
    refuse(view, parent)
    refuse(view, node)


def keeps_names(parent: DirNode) -> bool:
    """Tell whether real flags keep what is in the writable layer's part of ``parent``: may_delete asks that first."""
    return parent.upper is not None and bool(read(parent.upper.descriptor()) & PROTECTED)


def read(descriptor: int) -> int:
    """Return the flags of an open file, 0 where its file system has none. Raises OSError."""
    try:
        return _flags_in(files.attribute_ioctl(descriptor, files.FS_IOC_GETFLAGS, b""))
    except OSError as error:
        if error.errno not in _NONE_HERE:
            raise
        return 0


def copy(flags: int, target: int) -> None:
    """Give the open copy ``target`` those of ``flags`` that a copy can have, if its file system can. Raises OSError."""
    if not flags & _COPIED:
        return
    wanted = read(target) | flags & _COPIED
    try:
        files.attribute_ioctl(target, files.FS_IOC_SETFLAGS, wanted.to_bytes(_WORD, sys.byteorder))
    except OSError as error:
        if error.errno not in _NONE_HERE:
            raise


def tell(view: View, node: AnyNode, command: int, argument: bytes) -> bytes:
    """Make one of ATTRIBUTE_IOCTLS on the real file; return the bytes to hand to the program. Raises OSError."""
    place, name = (None, files.proc_path(node.descriptor)) if node.descriptor >= 0 else view.place(node)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (os.O_NOFOLLOW if place is not None else 0)
    descriptor = os.open(name, flags, dir_fd=place)
    try:
        told = files.attribute_ioctl(descriptor, command, argument)
    finally:
        os.close(descriptor)
    return _with_flags(told, _flags_in(told) | node.protection >> _shift(command))


def change(edit: Mutations, node: AnyNode, command: int, argument: bytes) -> bytes:
    """Set flags by one of ATTRIBUTE_CHANGES, after a copy-up; return as :func:`tell` does. Raises OSError."""
    edit.change(node, forbidding=0)
    if node.descriptor < 0 and (node.protection or isinstance(node, DirNode)):
        shift = _shift(command)
        flags = _flags_in(argument)
        if _protect(edit, node, flags << shift & PROTECTED):
            argument = _with_flags(argument, flags & ~(PROTECTED >> shift))
    return tell(edit.view, node, command, argument)


def _protect(edit: Mutations, node: AnyNode, wanted: int) -> bool:
    """Write down the flags that forbid changes; False where that cannot be, and the real ones have to do."""
    directory, name = edit.view.place(node)
    if not wanted:
        edit.upper.unmark(directory, name, PROTATTR)
    elif not edit.upper.mark(directory, name, PROTATTR, encode_protection(wanted)):
        return False
    node.protection = wanted
    return True


def _shift(command: int) -> int:
    """Return by how many bits PROTECTED has to be shifted to be FS_XFLAG_* of ioctl_xfs_fsgetxattr(2)."""
    return 1 if command in (files.FS_IOC_FSGETXATTR, files.FS_IOC_FSSETXATTR) else 0


def _flags_in(argument: bytes) -> int:
    return int.from_bytes(argument[:_WORD], sys.byteorder)


def _with_flags(argument: bytes, flags: int) -> bytes:
    return flags.to_bytes(_WORD, sys.byteorder) + argument[_WORD:]
