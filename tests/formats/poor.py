"""A file system with as little as FAT or a network share has, for tests: ``python poor.py SOURCE MOUNTPOINT``.

No links of either kind, no special files, no extended attributes, no owners, hardly any modes, no flags of a rename.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import TYPE_CHECKING, NoReturn

import fuse

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_MODE = 0o755
_SPECIAL = 0o7000


def _refuse(number: int) -> NoReturn:
    raise fuse.FuseOSError(number)


class Poor(fuse.Operations):  # type: ignore[misc, unused-ignore]
    """Shows a directory with less than it can do."""

    def __init__(self, root: str) -> None:
        self.root = root

    def _at(self, path: str) -> str:
        return self.root + path

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        state = os.lstat(self._at(path)) if fh is None else os.fstat(fh)
        names = ("st_size", "st_nlink", "st_blocks", "st_atime", "st_mtime", "st_ctime")
        return {**{name: getattr(state, name) for name in names}, "st_mode": state.st_mode & ~0o7777 | _MODE}

    def readdir(self, path: str, fh: int) -> Iterator[str]:
        yield from (".", "..", *os.listdir(self._at(path)))

    def chmod(self, path: str, mode: int) -> None:
        if mode & _SPECIAL:
            _refuse(errno.EPERM)

    def chown(self, path: str, uid: int, gid: int) -> None:
        if uid > 0 or gid > 0:
            _refuse(errno.EPERM)

    def link(self, target: str, source: str) -> None:
        _refuse(errno.EPERM)

    def symlink(self, target: str, source: str) -> None:
        _refuse(errno.EPERM)

    def mknod(self, path: str, mode: int, dev: int) -> None:
        _refuse(errno.EPERM)

    def create(self, path: str, mode: int, fi: Any = None) -> int:
        return os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)

    def open(self, path: str, flags: int) -> int:
        return os.open(self._at(path), flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW))

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        os.truncate(self._at(path) if fh is None else fh, length)

    def fsync(self, path: str, datasync: int, fh: int) -> None:
        os.fsync(fh)

    def release(self, path: str, fh: int) -> None:
        os.close(fh)

    def mkdir(self, path: str, mode: int) -> None:
        os.mkdir(self._at(path), _MODE)

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rename(self, old: str, new: str) -> None:
        os.rename(self._at(old), self._at(new))

    def utimens(self, path: str, times: tuple[float, float] | None = None) -> None:
        os.utime(self._at(path), times)

    def statfs(self, path: str) -> dict[str, int]:
        state = os.statvfs(self._at(path))
        return {name: getattr(state, name) for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail")}

    getxattr = None
    setxattr = None
    listxattr = None
    removexattr = None
    readlink = None


if __name__ == "__main__":
    fuse.FUSE(Poor(os.path.abspath(sys.argv[1])), sys.argv[2], foreground=True, nothreads=True, hard_remove=True)
