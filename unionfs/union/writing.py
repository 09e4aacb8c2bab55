"""The half of ``Union`` that changes the tree, always in the writable layer alone.

What is changed is first copied up from the layer that has it; what is removed there leaves a whiteout. Everything here
raises OSError with EROFS in a union without a writable layer.
"""

from __future__ import annotations

import errno
import math
import os
import stat as modes

from unionfs.union.mutate import Caller
from unionfs.union.nodes import DirNode
from unionfs.union.paths import error
from unionfs.union.reading import Reading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.union.mutate import Mutations
    from unionfs.union.nodes import AnyNode
    from unionfs.union.paths import Place
    from unionfs.union.turns import Path

_BILLION = 10**9


class Writing(Reading):
    """What ``os`` and ``pathlib`` offer to change a tree."""

    # -- creation ----------------------------------------------------------------------------------------------------

    def mkdir(self, path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a directory with the permission bits ``mode``, less the umask; it is empty, whatever was deleted there.

        ``parents`` makes those that are missing, ``exist_ok`` accepts a directory that is there, as
        :meth:`pathlib.Path.mkdir`.
        Raises OSError: EEXIST, ENOENT, ENOTDIR, EROFS, EACCES, ENOSPC.

        >>> union.mkdir("/srv/data", parents=True)
        """
        try:
            self._mkdir(path, mode)
        except FileNotFoundError:
            if not parents:
                raise
            parent = os.path.dirname(os.fsencode(path).rstrip(b"/"))
            if not parent.strip(b"/"):
                raise
            self.mkdir(parent, parents=True, exist_ok=True)
            self.mkdir(path, mode, exist_ok=exist_ok)
        except FileExistsError:
            if not exist_ok or not self.is_dir(path):
                raise

    def _mkdir(self, path: Path, mode: int) -> None:
        with self._turn(path):
            place, edit = self._vacant(os.fsencode(path).rstrip(b"/") or b"/")
            self._paths.remember(edit.mkdir(place.parent, place.name, mode, _caller(edit))[0])

    def makedirs(self, path: Path, mode: int = 0o777, exist_ok: bool = False) -> None:
        """Make a directory and those above it that are missing, as :func:`os.makedirs` does; see :meth:`mkdir`.

        >>> union.makedirs("/srv/data/2024", exist_ok=True)
        """
        self.mkdir(path, mode, parents=True, exist_ok=exist_ok)

    def mknod(self, path: Path, mode: int = 0o600 | modes.S_IFREG, device: int = 0) -> None:
        """Make a FIFO, socket, device or empty file, as :func:`os.mknod` does.

        Raises OSError: EEXIST, EROFS, and EPERM for a device without privilege and for the character device 0:0, with
        which overlayfs marks deletions.

        >>> union.mknod("/dev/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        """
        with self._turn(path):
            place, edit = self._vacant(os.fsencode(path))
            self._paths.remember(edit.mknod(place.parent, place.name, mode, device, _caller(edit))[0])

    def mkfifo(self, path: Path, mode: int = 0o666) -> None:
        """Make a named pipe, as :func:`os.mkfifo` does. Raises OSError (EEXIST, EROFS …).

        >>> union.mkfifo("/run/queue")
        """
        self.mknod(path, mode | modes.S_IFIFO)

    def symlink(self, target: Path, path: Path) -> None:
        """Make ``path`` a symbolic link to ``target``, which is stored as it is, as :func:`os.symlink` does.

        Raises OSError: EEXIST, ENOENT, EROFS.

        >>> union.symlink("releases/42", "/srv/current")
        """
        with self._turn(path):
            place, edit = self._vacant(os.fsencode(path))
            self._paths.remember(edit.symlink(place.parent, place.name, os.fsencode(target), _caller(edit))[0])

    def symlink_to(self, path: Path, target: Path) -> None:
        """Make ``path`` a symbolic link to ``target``, as :meth:`pathlib.Path.symlink_to` does; see :meth:`symlink`.

        >>> union.symlink_to("/srv/current", "releases/42")
        """
        self.symlink(target, path)

    def link(self, source: Path, path: Path) -> None:
        """Give the file ``source`` one more name, ``path``, as link(2) does: a symbolic link is itself linked.

        The file is copied up. Raises OSError: EEXIST, ENOENT, EROFS, EPERM for a directory.

        >>> union.link("/srv/data", "/srv/same-data")
        """
        with self._turn(source, path):
            node = self._node(source, follow=False)
            place, edit = self._vacant(os.fsencode(path))
            if isinstance(node, DirNode):
                raise error(errno.EPERM)
            edit.link(node, place.parent, place.name)

    def hardlink_to(self, path: Path, target: Path) -> None:
        """Make ``path`` one more name of ``target``, as :meth:`pathlib.Path.hardlink_to` does; see :meth:`link`.

        >>> union.hardlink_to("/srv/same-data", "/srv/data")
        """
        self.link(target, path)

    def touch(self, path: Path, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Make an empty file, or set the times of the one that is there to now, as :meth:`pathlib.Path.touch` does.

        Raises OSError: EEXIST if it is there and ``exist_ok`` is false, ENOENT, EROFS.

        >>> union.touch("/srv/.ready")
        """
        if exist_ok:
            try:
                self.utime(path)
                return
            except FileNotFoundError:
                pass
        with self._turn(path):
            place, edit = self._vacant(os.fsencode(path), follow=exist_ok)
            node, _state, descriptor = edit.create(place.parent, place.name, mode, _caller(edit))
            os.close(descriptor)
            self._paths.remember(node)

    def _vacant(self, path: bytes, *, follow: bool = False) -> tuple[Place, Mutations]:
        """Return a place where nothing is yet. Raises OSError: EEXIST, ENOENT, EROFS."""
        place = self._paths.locate(path, follow=follow)
        if place.node is not None:
            raise error(errno.EEXIST)
        return place, self._writable()

    # -- removal -----------------------------------------------------------------------------------------------------

    def unlink(self, path: Path, missing_ok: bool = False) -> None:
        """Remove a name that is no directory's, as :func:`os.unlink` and :meth:`pathlib.Path.unlink` do.

        Raises OSError: EISDIR, EROFS, and ENOENT unless ``missing_ok``.

        >>> union.unlink("/etc/motd", missing_ok=True)
        """
        try:
            with self._turn(path):
                place = self._locate(path, follow=False)
                if not place.is_name:
                    raise error(errno.EISDIR)
                self._removable(place).unlink(place.parent, place.name)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove(self, path: Path) -> None:
        """Remove a name that is no directory's: another name of :meth:`unlink`.

        >>> union.remove("/etc/motd")
        """
        self.unlink(path)

    def rmdir(self, path: Path) -> None:
        """Remove a directory that shows no names, as :func:`os.rmdir` does.

        Raises OSError: ENOTEMPTY, ENOTDIR, ENOENT, EROFS, EBUSY for the root, EINVAL for a path that ends with a dot.

        >>> union.rmdir("/srv/empty")
        """
        with self._turn(path):
            place = self._paths.locate(os.fsencode(path).rstrip(b"/") or b"/", follow=False)
            if not place.is_name:
                raise error({b"": errno.EBUSY, b".": errno.EINVAL}.get(place.name, errno.ENOTEMPTY))
            self._removable(place).rmdir(place.parent, place.name)

    def _removable(self, place: Place) -> Mutations:
        if place.node is None:
            raise error(errno.ENOENT)
        return self._writable()

    def rmtree(self, path: Path) -> None:
        """Remove a directory and all that is in it, however deep, as :func:`shutil.rmtree` does; follow no link.

        Raises OSError: ENOTDIR for anything but a directory (a link to one included), ENOENT, EROFS, EBUSY for the
        root. What was removed before an error stays removed.

        >>> union.rmtree("/usr/share/doc")
        """
        with self._turn(path):
            place = self._paths.locate(os.fsencode(path), follow=False)
            if not isinstance(place.node, DirNode):
                raise error(errno.ENOENT if place.node is None else errno.ENOTDIR)
            self._writable()
        waiting = [os.fsdecode(path)]
        while waiting:
            current = waiting[-1]
            below = self._remove_files(current)
            if below:
                waiting.extend(below)
            else:
                self.rmdir(waiting.pop())

    def _remove_files(self, path: str) -> list[str]:
        """Remove what a directory holds but its directories; return the paths of these."""
        below = []
        for entry in self.scandir(path):
            if entry.is_dir(follow_symlinks=False):
                below.append(entry.path)
            else:
                self.unlink(entry.path)
        return below

    # -- renaming ----------------------------------------------------------------------------------------------------

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or directory, replacing what ``target`` names, as :func:`os.rename` does on Linux.

        A directory with parts in lower layers is renamed by a redirect, where the writable layer can hold one, and by
        copying otherwise: there is no EXDEV. Raises OSError: ENOENT, EISDIR, ENOTDIR, ENOTEMPTY, EINVAL (into itself),
        EBUSY (the root), EROFS.

        >>> union.rename("/etc/app.conf.new", "/etc/app.conf")
        """
        with self._turn(source, target):
            start = self._locate_to_rename(source)
            end = self._locate_to_rename(target)
            if start.node is None:
                raise error(errno.ENOENT)
            if isinstance(start.node, DirNode) and _is_within(end.parent, start.node):
                raise error(errno.EINVAL)
            if isinstance(end.node, DirNode) and _is_within(start.parent, end.node):
                raise error(errno.ENOTEMPTY)
            self._writable()
            assert self._stack.renames is not None
            self._stack.renames.rename((start.parent, start.name), (end.parent, end.name))

    def _locate_to_rename(self, path: Path) -> Place:
        """Find one end of a rename; a slash may follow the name of a directory alone."""
        encoded = os.fsencode(path)
        place = self._paths.locate(encoded.rstrip(b"/") or b"/", follow=False)
        if not place.is_name:
            raise error(errno.EBUSY)
        if encoded.endswith(b"/") and place.node is not None and not isinstance(place.node, DirNode):
            raise error(errno.ENOTDIR)
        return place

    def replace(self, source: Path, target: Path) -> None:
        """Rename, replacing what ``target`` names: another name of :meth:`rename`, as :func:`os.replace` is on Linux.

        >>> union.replace("/etc/app.conf.new", "/etc/app.conf")
        """
        self.rename(source, target)

    # -- attributes --------------------------------------------------------------------------------------------------

    def _change(self, path: Path, *, follow: bool) -> tuple[Mutations, AnyNode]:
        """Return what changes the file at ``path``, and its node. Raises OSError: ENOENT … before EROFS."""
        node = self._node(path, follow=follow)
        return self._writable(), node

    def chmod(self, path: Path, mode: int, *, follow_symlinks: bool = True) -> None:
        """Set the permission bits of a file, set-id bits among them, as :func:`os.chmod` does.

        Raises OSError: ENOENT, EROFS, EPERM, and EOPNOTSUPP for a symbolic link itself.

        >>> union.chmod("/usr/bin/tool", 0o755)
        """
        with self._turn(path):
            edit, node = self._change(path, follow=follow_symlinks)
            edit.chmod(node, mode)

    def chown(self, path: Path, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """Set the numeric owner and group of a file, -1 for either to stay, as :func:`os.chown` does.

        Raises OSError: ENOENT, EROFS, EPERM without the privilege to give files away.

        >>> union.chown("/srv/data", 1000, -1)
        """
        with self._turn(path):
            edit, node = self._change(path, follow=follow_symlinks)
            edit.chown(node, uid, gid)

    def utime(
        self,
        path: Path,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """Set the times of access and modification, in seconds or with ``ns`` in nanoseconds, as :func:`os.utime` does.

        Neither means now. Raises OSError (ENOENT, EROFS, EPERM), and ValueError if both are given.

        >>> union.utime("/srv/data", ns=(0, 1_700_000_000_000_000_000))
        """
        if times is not None and ns is not None:
            raise ValueError("either times or ns can be given, not both")
        from unionfs.syscalls.files import UTIME_NOW

        if times is not None:
            ns = (math.floor(times[0] * _BILLION), math.floor(times[1] * _BILLION))
        atime, mtime = ((0, UTIME_NOW), (0, UTIME_NOW)) if ns is None else map(_split_ns, ns)
        with self._turn(path):
            edit, node = self._change(path, follow=follow_symlinks)
            edit.utimens(node, atime, mtime)

    def truncate(self, path: Path, length: int) -> None:
        """Cut or stretch a regular file to ``length`` bytes, as :func:`os.truncate` does.

        Raises OSError: EISDIR, ENOENT, EROFS, EINVAL for any other kind of file and for a negative length.

        >>> union.truncate("/var/log/messages", 0)
        """
        with self._turn(path):
            edit, node = self._change(path, follow=True)
            if isinstance(node, DirNode):
                raise error(errno.EISDIR)
            state = self._stack.view.stat(node)
            if length < 0 or not modes.S_ISREG(state.st_mode):
                raise error(errno.EINVAL)
            if length == state.st_size:
                edit.change(node)
                os.truncate(self._stack.view.proc_path(node), length)  # unlike ftruncate(2), may leave the times alone
            else:
                edit.truncate(node, length)

    def setxattr(
        self, path: Path, attribute: str | bytes, value: bytes, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """Set an extended attribute to ``value`` (bytes), ``flags`` being 0, os.XATTR_CREATE or os.XATTR_REPLACE.

        An attribute that a layer would take for its own is stored under another name. See setxattr(2).
        Raises OSError: EEXIST, ENODATA, EOPNOTSUPP, EPERM, EROFS, ENOSPC, E2BIG.

        >>> union.setxattr("/srv/data", "user.comment", b"first run")
        """
        with self._turn(path):
            edit, node = self._change(path, follow=follow_symlinks)
            edit.setxattr(node, os.fsencode(attribute), value, flags)

    def removexattr(self, path: Path, attribute: str | bytes, *, follow_symlinks: bool = True) -> None:
        """Remove an extended attribute; see removexattr(2). Raises OSError: ENODATA, EROFS …

        >>> union.removexattr("/srv/data", "user.comment")
        """
        with self._turn(path):
            edit, node = self._change(path, follow=follow_symlinks)
            edit.removexattr(node, os.fsencode(attribute))


def _caller(edit: Mutations) -> Caller:
    """New files belong to the process; its umask is applied by the system calls themselves."""
    return Caller(edit.uid, edit.gid)


def _split_ns(time_ns: int) -> tuple[int, int]:
    return divmod(time_ns, _BILLION)


def _is_within(place: DirNode, directory: DirNode) -> bool:
    """Tell whether ``place`` is ``directory`` or below it."""
    current: DirNode | None = place
    while current is not None and current is not directory:
        current = current.parent
    return current is not None
