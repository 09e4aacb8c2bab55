"""One directory tree of a stack, reached only through descriptors.

A ``Dir`` is a directory of a layer: it knows its parent and its name there, and opens itself relative to the nearest
ancestor that is open, so that neither depth nor a rename matters and a symbolic link leads nowhere. A
``DescriptorCache`` bounds how many of them stay open. This module knows nothing of merging. It runs in whichever thread
serves the union; only that thread may touch a ``Dir``.
"""

from __future__ import annotations

import errno
import os
import time
from struct import Struct

from unionfs import ondisk
from unionfs.lean import deque
from unionfs.syscalls import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import TypeVar

    from unionfs.layers.rights import Note, Place

    T = TypeVar("T")

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PATH_CHUNK_BYTES = 4000
_DIRENT = Struct("=Q8xHB")  # without the offset of the next one
_DIRENT_NAME = _DIRENT.size
_QUICK_READ_NS = 200_000
_QUICK_WRITE_OUT_NS = 2_000_000
_UNKNOWN_READ_NS = 1_000_000
_LOCAL = (files.BTRFS_MAGIC, files.OVERLAYFS_MAGIC)  # on disks, though their st_dev is that of none
_WEIGHT = 8  # about as many waits make a new opinion
_SHORT_DIRENT = 24  # bytes of the record of a name as short as these
_DOTS = (b".", b"..")

DT_UNKNOWN, DT_CHR, DT_DIR, DT_REG, DT_LNK = 0, 2, 4, 8, 10

Entry = tuple[bytes, int, int]
"""One name of a directory: name, DT_* type, inode number."""
Columns = tuple["list[bytes]", bytes, "list[int]"]
"""Many of them: the names, their types, their numbers. What is asked of all at once costs a fraction for each."""


class DescriptorCache:
    """Keeps at most ``limit`` directories open, first in, first out.

    Descriptors are closed by :meth:`trim` alone, which the owner calls between two operations: within one operation a
    number that was handed out stays good.
    """

    __slots__ = ("limit", "opened")

    def __init__(self, limit: int = 512) -> None:
        self.limit = limit
        self.opened: deque[Dir] = deque()

    def trim(self) -> None:
        """Close the oldest descriptors beyond the limit."""
        opened = self.opened
        while len(opened) > self.limit:
            opened.popleft().close()

    def clear(self) -> None:
        """Close every descriptor."""
        while self.opened:
            self.opened.popleft().close()


class Dir:
    """A directory of one layer."""

    __slots__ = ("_xattr_whiteouts", "fd", "layer", "name", "parent")

    def __init__(self, layer: Layer, parent: Dir | None, name: bytes, fd: int = -1) -> None:
        self._xattr_whiteouts: bool | None = None  # None: not asked yet
        self.layer = layer
        self.parent = parent
        self.name = name
        self.fd = fd

    def descriptor(self) -> int:
        """Return an open descriptor of this directory, good until the next ``trim`` of the cache. Raises OSError."""
        return self.fd if self.fd >= 0 else self._open()

    def _open(self) -> int:
        names: list[bytes] = []
        ancestor: Dir = self
        while ancestor.fd < 0:
            names.append(ancestor.name)
            assert ancestor.parent is not None  # the root of a layer is always open
            ancestor = ancestor.parent
        names.reverse()
        self.fd = self.layer.open_chain(ancestor.fd, names)
        self.layer.cache.opened.append(self)
        return self.fd

    def close(self) -> None:
        """Close the descriptor; the next :meth:`descriptor` opens the directory again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def path(self) -> bytes:
        """Return the absolute path of this directory within its layer, for people and for redirects."""
        names: list[bytes] = []
        place: Dir = self
        while place.parent is not None:
            names.append(place.name)
            place = place.parent
        return b"/" + b"/".join(reversed(names))

    def entries(self) -> Iterator[Entry]:
        """Yield the names in this directory, ``.`` and ``..`` apart, each with its type and inode number."""
        for columns in self.batches():
            yield from zip(*columns, strict=True)

    def batches(self) -> Iterator[Columns]:
        """Yield the same, as many at a time as one system call brings."""
        directory = self.layer.open_listing(self.descriptor())
        try:
            while records := files.getdents(directory):
                yield _parse_dirents(records)
        finally:
            os.close(directory)

    def proc_path(self, name: bytes = b"") -> bytes:
        """Return a path for calls that take no directory descriptor (xattr(7)); the descriptor makes it exact."""
        path = b"/proc/self/fd/%d" % self.descriptor()
        return path + b"/" + name if name else path

    def marks(self, name: bytes = b"") -> ondisk.Marks:
        """Return what the attributes of ``name`` in this directory, or of the directory itself, say. Raises OSError."""
        if name:
            return read_marks(self.proc_path(name))
        try:
            marks = read_marks(self.descriptor(), follow=True)
        except OSError as error:
            if error.errno != errno.EBADF:  # opened to pass through alone, O_PATH of open(2)
                raise
            marks = read_marks(self.proc_path(), follow=True)
        self._xattr_whiteouts = marks.xattr_whiteouts
        return marks

    def has(self, name: bytes) -> bool:
        """Tell whether this directory has an entry ``name`` of any kind."""
        try:
            os.stat(name, dir_fd=self.descriptor(), follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # a marker is longer than the name that it is about
                raise
            return False
        return True

    def has_xattr_whiteouts(self) -> bool:
        """Tell whether empty regular files of this directory may stand for deletions (overlayfs.rst,
        "overlay.whiteout").
        """
        if self._xattr_whiteouts is None:
            return self.marks().xattr_whiteouts
        return self._xattr_whiteouts

    def is_xattr_whiteout(self, name: bytes) -> bool:
        """Tell whether the empty regular file ``name`` stands for a deletion."""
        if not self.has_xattr_whiteouts():
            return False
        path = self.proc_path(name)
        if ondisk.WHITEOUT_ATTRIBUTES.isdisjoint(os.listxattr(path, follow_symlinks=False)):
            return False
        return os.lstat(path).st_size == 0

    def is_opaque(self, marks: ondisk.Marks) -> bool:
        """Tell whether this directory, whose ``marks`` are given, hides what is below it, in any dialect."""
        return marks.opaque or self.has(ondisk.OPAQUE_MARKER)


def columns(entries: Iterable[Entry]) -> Columns:
    """Return ``entries`` column by column."""
    names, kinds, inos = tuple(zip(*entries, strict=True)) or ((), (), ())
    return list(names), bytes(kinds), list(inos)


def _parse_dirents(data: bytes) -> Columns:
    """Read records of struct linux_dirent64; see getdents(2)."""
    size, unpack = len(data), _DIRENT.unpack_from
    names: list[bytes] = []
    kinds = bytearray()
    inos: list[int] = []
    offset = 0
    while offset < size:
        ino, length, kind = unpack(data, offset)
        end = offset + length
        name = data[offset + _DIRENT_NAME : end].rstrip(b"\0")
        offset = end
        if length > _SHORT_DIRENT or name not in _DOTS:
            names.append(name)
            kinds.append(kind)
            inos.append(ino)
    return names, bytes(kinds), inos


def read_marks(path: bytes | int, *, follow: bool = False) -> ondisk.Marks:
    """Return the marks of the file at ``path``, or of an open one (then ``follow``), none where the file system has no
    extended attributes.
    """
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EACCES, errno.EPERM):
            return ondisk.NO_MARKS
        raise
    if not names:
        return ondisk.NO_MARKS
    wanted = [name for name in map(os.fsencode, names) if name in ondisk.MARK_ATTRIBUTES]
    if not wanted:
        return ondisk.NO_MARKS
    return ondisk.read_marks({name: os.getxattr(path, name, follow_symlinks=follow) for name in wanted})


class Layer:
    """One directory tree, opened once.

    ``index`` is its place in the stack, 0 for the topmost. ``path`` is what the user called it, for messages alone.
    ``whiteouts`` are inode numbers of whiteouts with many names, which nobody has to look at again. ``subvolume`` is
    the one that it begins in where the file system is btrfs: then others may follow, without a mount.
    """

    __slots__ = ("cache", "dev", "hidden", "index", "noatime", "path", "root", "subvolume", "uuid", "whiteouts")

    def __init__(self, path: bytes, fd: int, index: int, cache: DescriptorCache) -> None:
        self.path = path
        self.index = index
        self.cache = cache
        self.whiteouts: set[int] = set()
        self.hidden: frozenset[tuple[int, int]] = frozenset()  # st_dev, st_ino of directories that are not part of it
        self.noatime = _noatime(fd)
        self.dev = os.fstat(fd).st_dev
        self.uuid = _uuid(fd)
        self.subvolume = subvolume_of(fd, b"")
        self.root = Dir(self, None, b"", fd)

    def open_chain(self, ancestor: int, names: list[bytes]) -> int:
        """Open the directory at ``names`` beneath the descriptor ``ancestor``, however long the path.

        Raises OSError.
        """
        current, start = ancestor, 0
        while start < len(names):
            end, size = start + 1, len(names[start])
            while end < len(names) and size + len(names[end]) < _PATH_CHUNK_BYTES:
                size += len(names[end]) + 1
                end += 1
            try:
                following = self._open_confined(current, b"/".join(names[start:end]))
            finally:
                if current != ancestor:
                    os.close(current)
            current, start = following, end
        return current

    def _open_confined(self, directory: int, path: bytes) -> int:
        """Open to read if that is allowed (EPERM: not with O_NOATIME, in another owner's directory), else to pass
        through.
        """
        for flags in (_DIRECTORY | self.noatime, _DIRECTORY):
            try:
                return files.openat2(directory, path, flags, files.CONFINED)
            except OSError as error:
                if error.errno == errno.ENOSYS:
                    return _open_by_steps(directory, path)
                if error.errno not in (errno.EACCES, errno.EPERM):
                    raise
        return files.openat2(directory, path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, files.CONFINED)

    def open_listing(self, directory: int) -> int:
        """Open a directory once more, to read its entries from the start. Raises OSError."""
        try:
            return os.open(b".", _DIRECTORY | self.noatime, dir_fd=directory)
        except PermissionError:  # EPERM: no O_NOATIME here; EACCES: "." may not be looked up, mode 0600
            return os.open(files.proc_path(directory), _DIRECTORY & ~os.O_NOFOLLOW)

    def with_owners_rights(self, act: Callable[[], T], *places: Place) -> T:
        """Do ``act`` on this layer as :func:`with_owners_rights` does it. Raises what ``act`` raises."""
        return with_owners_rights(act, *places)

    def close(self) -> None:
        """Close the layer's root; the cache closes the rest."""
        self.root.close()


def _open_by_steps(directory: int, path: bytes) -> int:
    """Open a path one name after the other, each without following a link: for kernels before openat2(2)."""
    current = os.dup(directory)
    for name in path.split(b"/"):
        try:
            following = os.open(name, _DIRECTORY, dir_fd=current)
        finally:
            os.close(current)
        current = following
    return current


def _noatime(fd: int) -> int:
    """Return O_NOATIME where reading this layer may leave its access times alone (owner or CAP_FOWNER), otherwise 0."""
    try:
        os.close(os.open(b".", _DIRECTORY | os.O_NOATIME, dir_fd=fd))
    except OSError:
        return 0
    return os.O_NOATIME


def _uuid(fd: int) -> bytes:
    """Return the file system's UUID, all zeros where there is none to be had: origins then compare by handle alone."""
    try:
        return files.filesystem_uuid(fd)
    except OSError:
        return bytes(16)


def subvolume_of(directory: int, name: bytes) -> int | None:
    """Return the subvolume of btrfs that a file is in, or the open ``directory`` itself; None where there are none."""
    try:
        return ondisk.Origin(b"", *files.file_handle(directory, name)).subvolume
    except OSError:
        return None


def with_owners_rights(act: Callable[[], T], *places: Place, note: Note | None = None) -> T:
    """Do ``act``; where that is refused for want of rights (EACCES), once more with those that their owner is lent.

    See :func:`unionfs.layers.rights.lend` for the arguments. Raises what ``act`` raises.
    """
    try:
        return act()
    except OSError as error:
        if error.errno != errno.EACCES:
            raise
    from unionfs.layers import rights  # not needed by most: root is refused nothing

    return rights.lend(act, *places, note=note)


# -- who waits for a disk: the thread that answers requests, or another one --------------------------------------------


class Pace:
    """How long one kind of wait takes on the file system of a layer, as a moving average; ``quick`` below ``limit_ns``.

    To hand a wait to another thread takes some 65 µs, and a good disk takes no longer itself. So what has shown itself
    quick is waited for where it was asked for, and others wait a little as well; anything else is for another thread.
    It may be used in any thread.
    """

    __slots__ = ("average_ns", "limit_ns")

    def __init__(self, limit_ns: int, average_ns: int = 0) -> None:
        self.limit_ns = limit_ns
        self.average_ns = average_ns

    @property
    def quick(self) -> bool:
        """Whether waiting here costs less than having another thread wait."""
        return self.average_ns < self.limit_ns

    def wait(self, work: Callable[..., T], *arguments: object) -> T:
        """Do ``work`` with an eye on the clock. Raises what that raises."""
        begun = time.perf_counter_ns()
        try:
            return work(*arguments)
        finally:
            self.average_ns += (time.perf_counter_ns() - begun - self.average_ns) // _WEIGHT


def pace_of_reads(device: int, descriptor: int) -> Pace:
    """Return the pace of reads of up to 128 KiB from the file system with that st_dev, on which ``descriptor`` is open.

    A disk has to show itself quick; memory is, until it has to be fetched from swap, although preadv2(2) may not know
    of it. What may be at the other end of a network, or another server, never is.
    """
    kind = files.filesystem_type(descriptor)
    if kind == files.TMPFS_MAGIC:
        return Pace(_QUICK_READ_NS)
    local = kind in _LOCAL or (os.major(device) and kind != files.FUSE_MAGIC)  # whose st_dev may be that of a disk
    return Pace(_QUICK_READ_NS if local else 0, _UNKNOWN_READ_NS)


def pace_of_writing_out() -> Pace:
    """Return the pace at which little reaches the disk: small copies, syncs. It is quick until it shows otherwise."""
    return Pace(_QUICK_WRITE_OUT_NS)
