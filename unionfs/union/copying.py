"""Copying one file's data, attributes and owner to another, both open: all that a copy-up does beside naming things.

Knows nothing of layers or nodes, but for the attributes that belong to a layer's format. Runs in any thread.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import ondisk
from unionfs.syscalls import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK_BYTES = 8 << 20
_PUNCH_HOLE = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, fallocate(2)
CAPABILITY = "security.capability"
_ACL = "system.posix_acl_access"
_WITHOUT_SET_ID = 0o1777
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.EINVAL)
_NO_REFLINK = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EBADF)


def share_data(source: int, target: int) -> bool:
    """Let the empty ``target`` have the data of ``source``, if the file system can. Raises OSError."""
    try:
        files.clone_file(source, target)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        return False
    return True


def copy_data(source: int, target: int, size: int, *, holes: bool = True) -> None:
    """Copy ``size`` bytes, leaving holes as holes if there may be some. Raises OSError."""
    if not holes:
        _copy_range(source, target, 0, size)
        return
    os.ftruncate(target, size)
    position = 0
    while position < size:
        start, end = _next_extent(source, position, size)
        _copy_range(source, target, start, end)
        position = end


def _next_extent(source: int, position: int, size: int) -> tuple[int, int]:
    """Return the next stretch of data at or after ``position`` as (start, end), both ``size`` if none follows
    (lseek(2)).
    """
    try:
        start = os.lseek(source, position, os.SEEK_DATA)
        return start, min(os.lseek(source, start, os.SEEK_HOLE), size)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno == errno.EINVAL:
            return position, size
        raise


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        copied = 0
        try:
            copied = os.copy_file_range(source, target, min(end - start, _CHUNK_BYTES), start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
        if copied == 0:  # some file systems do nothing and call it a success
            copied = os.pwrite(target, os.pread(source, min(end - start, _CHUNK_BYTES), start), start)
        if copied == 0:  # the lower file is shorter than it said: somebody changed it
            return
        start += copied


def capability(target: int) -> bytes | None:
    """Return the file capabilities of an open file, which a write takes away; None without any (capabilities(7))."""
    try:
        return os.getxattr(target, CAPABILITY)
    except OSError:
        return None


def free(target: int, size: int) -> None:
    """Give back the space of data that is not whole; where that cannot be done, nobody reads it all the same."""
    try:
        files.fallocate(target, _PUNCH_HOLE, 0, size)
    except OSError:
        pass


def copy_attributes(source: int | bytes, target: int | bytes) -> list[str]:
    """Copy the extended attributes (ACLs are among them) that do not belong to a layer's format; return their names,
    for :func:`amend`. Raises OSError.
    """
    try:
        names = os.listxattr(source, follow_symlinks=isinstance(source, int))
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return []
        raise
    copied = [name for name in names if not ondisk.is_private_attribute(os.fsencode(name))]
    for name in copied:
        copy_attribute(source, target, name)
    return copied


def amend(source: int | bytes, target: int | bytes, names: list[str]) -> None:
    """Put right what owner and mode alone do not carry over, ``names`` being the attributes of ``source``.

    chown(2) has taken file capabilities away. And where ``target`` can have no ACL, the bits of its group are those
    of the ACL's mask, which may be more than the owning group had (acl(5)). Raises OSError.
    """
    if CAPABILITY in names:
        copy_attribute(source, target, CAPABILITY)
    if _ACL not in names or _has_acl(target):
        return
    from unionfs.idmap import group_of_acl  # not needed by most

    group = group_of_acl(os.getxattr(source, _ACL, follow_symlinks=isinstance(source, int)))
    os.chmod(target, stat.S_IMODE(os.stat(target).st_mode) & (0o7707 | group << 3))


def _has_acl(target: int | bytes) -> bool:
    try:
        return bool(os.getxattr(target, _ACL, follow_symlinks=isinstance(target, int)))
    except OSError as error:
        if error.errno in (*_UNSUPPORTED, errno.ENODATA):
            return False
        raise


def copy_attribute(source: int | bytes, target: int | bytes, name: str) -> None:
    """Copy one extended attribute if the target can have it. Raises OSError."""
    try:
        value = os.getxattr(source, name, follow_symlinks=isinstance(source, int))
        os.setxattr(target, name, value, follow_symlinks=isinstance(target, int))
    except OSError as error:
        if error.errno not in (*_UNSUPPORTED, errno.ENODATA):
            raise


def set_metadata(target: int, state: os.stat_result) -> None:
    """Give the open file ``target`` the owner, mode and times of ``state``; the mode last but one, as chown(2) clears
    bits.
    """
    own = os.fstat(target)
    same = (own.st_uid, own.st_gid) == (state.st_uid, state.st_gid)
    given = same or gives(lambda: os.fchown(target, state.st_uid, state.st_gid))
    os.fchmod(target, state.st_mode & (0o7777 if given else _WITHOUT_SET_ID))
    os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))


def gives(chown: Callable[[], None]) -> bool:
    """Tell whether ``chown`` could give a copy to the owner of the original.

    Without privilege (EPERM), or with an owner unknown to the user namespace (EINVAL), the copy belongs to who makes
    it, and is then never set-id: as ``cp -p`` does it.
    """
    try:
        chown()
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EINVAL):
            raise
        return False
    return True


def copy_metadata(source: bytes, directory: int, name: bytes) -> None:
    """Give the directory ``name`` the attributes, owner, mode and times of the one at the path ``source``, which need
    not be readable.

    Raises OSError.
    """
    copied = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        names = copy_attributes(source, copied)
        set_metadata(copied, os.lstat(source))
        amend(source, copied, names)
    finally:
        os.close(copied)
