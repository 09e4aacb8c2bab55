"""The half of ``Union`` that changes nothing: attributes, links, extended attributes, and what directories hold.

Names and meanings are those of ``os`` and ``pathlib``; docs of a method say only what a union adds to them.
"""

from __future__ import annotations

import errno
import os
import stat as modes
from typing import overload

from unionfs.union.nodes import DirNode
from unionfs.union.paths import error
from unionfs.union.pieces import devices_of_programs
from unionfs.union.turns import Base, like

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import PurePosixPath
    from typing import Any

    from unionfs.union.listing import Found
    from unionfs.union.nodes import AnyNode
    from unionfs.union.scan import Scan
    from unionfs.union.turns import BytesPath, Path, StrPath

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EBADF)  # as pathlib's exists() has it


class Reading(Base):
    """What ``os`` and ``pathlib`` offer to look at a tree."""

    # -- attributes --------------------------------------------------------------------------------------------------

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the attributes of a file, as :func:`os.stat` does; times are in seconds, ``*_ns`` in nanoseconds.

        ``st_dev`` is the same for the whole union, ``st_ino`` is unique in it and survives a copy-up, ``st_nlink``
        counts the names in all layers (1 for a merged directory, as in the kernel's overlayfs).
        Raises OSError: ENOENT, ENOTDIR, ELOOP, EACCES.

        >>> union.stat("/etc/hosts").st_size
        """
        with self._turn(path):
            return self._attributes(self._node(path, follow=follow_symlinks))

    def lstat(self, path: Path) -> os.stat_result:
        """Return the attributes of a file or of a symbolic link itself; see :meth:`stat`. Raises OSError.

        >>> union.lstat("/etc/mtab").st_mode
        """
        return self.stat(path, follow_symlinks=False)

    def _attributes(self, node: AnyNode) -> os.stat_result:
        view = self._stack.view
        state = devices_of_programs(view.stat(node))
        reduced: Any = state.__reduce__()  # ten fields in the order of stat_result, and the rest by name
        fields, others = reduced[1]
        return os.stat_result((fields[0], node.ino, self._device(), view.links(node, state), *fields[4:]), others)

    def _device(self) -> int:
        view = self._stack.view
        return (view.upper or view.lowers[0]).dev

    def exists(self, path: Path, *, follow_symlinks: bool = True) -> bool:
        """Tell whether there is such a file; a link to nothing is none. Raises OSError (EACCES, ENAMETOOLONG).

        >>> union.exists("/etc/hosts")
        True
        """
        return self._mode(path, follow=follow_symlinks) != 0

    def is_dir(self, path: Path, *, follow_symlinks: bool = True) -> bool:
        """Tell whether ``path`` is a directory; False if there is nothing. Raises OSError as :meth:`exists` does."""
        return modes.S_ISDIR(self._mode(path, follow=follow_symlinks))

    def is_file(self, path: Path, *, follow_symlinks: bool = True) -> bool:
        """Tell whether ``path`` is a regular file; False if there is nothing. Raises OSError as :meth:`exists` does."""
        return modes.S_ISREG(self._mode(path, follow=follow_symlinks))

    def is_symlink(self, path: Path) -> bool:
        """Tell whether ``path`` is a symbolic link, to whatever. Raises OSError as :meth:`exists` does."""
        return modes.S_ISLNK(self._mode(path, follow=False))

    def _mode(self, path: Path, *, follow: bool) -> int:
        """Return st_mode, 0 if there is no such file."""
        try:
            with self._turn(path):
                return self._stack.view.stat(self._node(path, follow=follow)).st_mode
        except OSError as problem:
            if problem.errno not in _ABSENT:
                raise
            return 0

    def statvfs(self, path: Path = "/") -> os.statvfs_result:
        """Return the figures (in blocks of ``f_frsize`` bytes) of the file system that takes the changes.

        That is the writable layer's, or the topmost layer's if nothing can be written; see statvfs(3). Raises OSError.

        >>> union.statvfs("/").f_bavail
        """
        with self._turn(path):
            self._node(path)
            return self._stack.view.statfs()

    # -- links -------------------------------------------------------------------------------------------------------

    @overload
    def readlink(self, path: StrPath) -> str: ...
    @overload
    def readlink(self, path: BytesPath) -> bytes: ...
    def readlink(self, path: Path) -> str | bytes:
        """Return where a symbolic link points, as it is written: str for str, bytes for bytes.

        Raises OSError: EINVAL if it is no symbolic link, ENOENT … See readlink(2).

        >>> union.readlink("/etc/mtab")
        '../proc/self/mounts'
        """
        with self._turn(path):
            node = self._node(path, follow=False)
            if isinstance(node, DirNode):
                raise error(errno.EINVAL)
            return like(path, self._stack.view.readlink(node))

    def resolve(self, path: Path) -> PurePosixPath:
        """Return the absolute path within the union that ``path`` leads to, free of links, ``.`` and ``..``.

        A link never leads out of the union: its root is the root of every absolute link. Raises OSError: ENOENT, ELOOP
        …

        >>> union.resolve("/bin/../etc/./hosts")
        PurePosixPath('/etc/hosts')
        """
        from pathlib import PurePosixPath

        with self._turn(path):
            return PurePosixPath(os.fsdecode(self._paths.canonical(os.fsencode(path))))

    # -- extended attributes -----------------------------------------------------------------------------------------

    def getxattr(self, path: Path, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """Return the value of an extended attribute, in bytes; see getxattr(2).

        What a layer notes for itself (``trusted.overlay.*``, ``user.overlay.*``) is not shown.
        Raises OSError: ENODATA if there is none, EOPNOTSUPP if the layer's file system has none at all.

        >>> union.getxattr("/data", "user.comment")
        b'first run'
        """
        with self._turn(path):
            return self._stack.view.getxattr(self._node(path, follow=follow_symlinks), os.fsencode(attribute))

    def listxattr(self, path: Path = "/", *, follow_symlinks: bool = True) -> list[str]:
        """Return the names of the extended attributes of a file, as :meth:`getxattr` takes them. Raises OSError.

        >>> union.listxattr("/data")
        ['user.comment']
        """
        with self._turn(path):
            found = self._stack.view.listxattr(self._node(path, follow=follow_symlinks))
            return [os.fsdecode(name) for name in found]

    # -- directories -------------------------------------------------------------------------------------------------

    @overload
    def listdir(self, path: StrPath = "/") -> list[str]: ...
    @overload
    def listdir(self, path: BytesPath) -> list[bytes]: ...
    def listdir(self, path: Path = "/") -> list[str] | list[bytes]:
        """Return the names in a directory, merged from all layers, in no order: str for str, bytes for bytes.

        Raises OSError: ENOENT, ENOTDIR, EACCES.

        >>> union.listdir("/etc")
        ['hosts', 'passwd']
        """
        found = [name for name, _kind, _ino in self._entries(path)]
        return found if isinstance(os.fspath(path), bytes) else [os.fsdecode(name) for name in found]

    def _entries(self, path: Path) -> list[Found]:
        """Return what a directory holds now: whole, so that a loop over it may change the directory."""
        with self._turn(path):
            return list(self._stack.view.names(self._paths.directory(os.fsencode(path))))

    def iterdir(self, path: Path = "/") -> Iterator[PurePosixPath]:
        """Yield the path of each file in a directory, in no order; the directory may be changed meanwhile.

        The paths are of this union, not of the machine: hand them to its methods. Raises OSError as :meth:`listdir`
        does.

        >>> [path for path in union.iterdir("/etc") if union.is_file(path)]
        [PurePosixPath('/etc/hosts'), PurePosixPath('/etc/passwd')]
        """
        from pathlib import PurePosixPath

        base = PurePosixPath(os.fsdecode(path))
        return (base / os.fsdecode(name) for name, _kind, _ino in self._entries(path))

    @overload
    def scandir(self, path: StrPath = "/") -> Scan[str]: ...
    @overload
    def scandir(self, path: BytesPath) -> Scan[bytes]: ...
    def scandir(self, path: Path = "/") -> Scan[str] | Scan[bytes]:
        """Return an iterator over a directory, whose entries know their type, as :func:`os.scandir` does.

        Raises OSError as :meth:`listdir` does.

        >>> with union.scandir("/etc") as entries:
        ...     sum(entry.stat().st_size for entry in entries if entry.is_file())
        """
        from unionfs.union.scan import Scan

        found = self._entries(path)
        if isinstance(os.fspath(path), bytes):
            return Scan(self, os.fsencode(path), found, bytes)
        return Scan(self, os.fsdecode(path), found, os.fsdecode)

    def walk(
        self,
        top: Path = "/",
        topdown: bool = True,
        onerror: Callable[[OSError], object] | None = None,
        followlinks: bool = False,
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield (directory, names of directories in it, other names) for a tree, as :func:`os.walk` does.

        An error of a directory goes to ``onerror``, or is passed over. However deep the tree, memory grows with the
        names of the directories on the way alone.

        >>> for directory, subdirectories, files in union.walk("/etc"):
        ...     print(directory, len(files))
        """
        from unionfs.union.scan import walk

        return walk(self, os.fsdecode(top), topdown=topdown, onerror=onerror, followlinks=followlinks)

    def glob(self, pattern: str) -> Iterator[PurePosixPath]:
        """Yield the paths that match a pattern, from the root: ``*``, ``?``, ``[…]``, ``**`` for any depth.

        Hidden names match as others do and links to directories are not entered by ``**``, as with
        :meth:`pathlib.Path.glob`.
        Raises OSError (EACCES).

        >>> list(union.glob("etc/*.conf"))
        [PurePosixPath('/etc/resolv.conf')]
        """
        from unionfs.union.scan import glob

        return glob(self, pattern)
