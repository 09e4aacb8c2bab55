"""Files with several names: one file stays one file when it is copied up through one of them.

As with the kernel's ``index=on``: the copy stands in ``index/`` of the workdir under a name made from the lower file's
handle, and every name in the writable layer is a link to it. ``overlay.nlink`` holds what to add to its link count.
Where there is no such attribute, and for a file that lost a name before it was ever copied, a symbolic link in
``links/`` of the workdir, whose target is that number, does the same.

The count must be right whenever the server dies. So a name that only lower layers have of an indexed file becomes a
link to it before it goes, as in ovl_nlink_start() of fs/overlayfs/util.c: then the step that takes the name changes the
count. While links are added that do not count, ``links/`` has the count itself, ``=N``. Before a lower file loses a
name it has ``DELTA INODE/NAME``: one less if the writable layer covers that name in its directory of that number. The
next server settles what is left.
"""

from __future__ import annotations

import errno
import os

from unionfs import ondisk
from unionfs.layers.layer import DT_DIR, Dir
from unionfs.syscalls import files
from unionfs.union.nodes import AnyNode, DirNode, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.layers.writable import WritableLayer
    from unionfs.union.nodes import NodeTable
    from unionfs.union.view import View

_RECORDS = b"links"
#: What name_to_handle_at(2) says where files have no handles, or none that can be used.
_NO_HANDLES = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EOVERFLOW, errno.EPERM)
_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM)
_COUNTS = (ondisk.TRUSTED_PREFIX + ondisk.NLINK, ondisk.USER_PREFIX + ondisk.NLINK)


class LinkIndex:
    """The index of one writable layer; it is made when the first file is entered."""

    __slots__ = ("_entries", "_unsettled", "base", "directory", "upper", "view")

    def __init__(self, view: View, upper: WritableLayer, base: int) -> None:
        self.view = view
        self.upper = upper
        self.base = base
        self.directory: Dir | None = None
        self._entries: dict[int, bytes] | None = None  # name in the index by inode number, once somebody asked
        self._unsettled: set[bytes] = set()  # entries of which only the count itself stands written
        try:
            self._open()
        except FileNotFoundError:
            pass
        self._settle_records()

    def _open(self) -> Dir:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self.directory = Dir(self.upper, None, b"index", os.open(b"index", flags, dir_fd=self.base))
        return self.directory

    def close(self) -> None:
        """Close the index's directory."""
        if self.directory is not None:
            self.directory.close()

    @property
    def nodes(self) -> NodeTable:
        """The table of nodes that this index serves."""
        return self.view.nodes

    # -- identity ----------------------------------------------------------------------------------------------------

    def origin(self, place: Dir, name: bytes) -> bytes | None:
        """Return the value of ``overlay.origin`` for a lower file, None where its file system has no handles.

        Raises OSError where it has, or the same file would be another one in the index.
        """
        try:
            kind, handle = files.file_handle(place.descriptor(), name)
        except OSError as error:
            if error.errno not in _NO_HANDLES:
                raise
            return None
        return ondisk.Origin(place.layer.uuid, kind, handle).encode()

    def _entry_name(self, place: Dir, name: bytes, state: os.stat_result) -> bytes:
        origin = self.origin(place, name)
        return origin.hex().encode() if origin is not None else b"ino-%x-%x" % (state.st_dev, state.st_ino)

    # -- copy-up -----------------------------------------------------------------------------------------------------

    def enter(self, node: Node, staged: bytes, state: os.stat_result) -> None:
        """Move the staged copy of a lower file with several names into the index; it is the home of ``node`` from now
        on.
        """
        directory = self.directory
        if directory is None:
            os.mkdir(b"index", 0o700, dir_fd=self.base)
            directory = self._open()
        assert node.home is not None
        name = self._entry_name(node.home, node.home_name, state)
        links = self.nodes.share(node, (state.st_dev, state.st_ino))
        count = state.st_nlink + links.delta
        self._write_record(name, b"=%d" % count)
        self.upper.mark(self.upper.work, staged, ondisk.NLINK, b"L%+d" % links.delta)
        copy = os.stat(staged, dir_fd=self.upper.work, follow_symlinks=False)
        files.renameat2(self.upper.work, staged, directory.descriptor(), name)
        self.nodes.share(node, (copy.st_dev, copy.st_ino))
        if self._entries is not None:
            self._entries[copy.st_ino] = name
        node.home, node.home_name = directory, name
        links.delta = count - copy.st_nlink

    def link_in(self, node: Node, directory: int, name: bytes) -> None:
        """Make a name that counted before a link to the indexed file; the count has been written down. Raises OSError.

        However that ends, what is to be added to the number of links stands there afterwards.
        """
        assert node.home is not None and node.links is not None
        staged = self.upper.staging_name()
        self._unsettled.add(node.home_name)
        try:
            files.linkat(node.home.descriptor(), node.home_name, self.upper.work, staged)
            self.upper.publish_copy(staged, directory, name)
            node.links.delta -= 1
        except OSError:
            self.upper.discard(staged)
            raise
        finally:
            self.settle(node)

    def settle(self, node: Node) -> None:
        """Before the count of ``node`` changes, see that it is not the count itself that stands written."""
        if node.home_name in self._unsettled and node.links is not None:
            self._write_delta(node.home_name, node.links.delta)
            self._unsettled.remove(node.home_name)

    def bring(self, node: Node, directory: int, name: bytes) -> None:
        """Make a name that only a lower layer has a link to the indexed file, in the writable layer. Raises OSError."""
        assert node.home is not None and node.links is not None
        state = os.stat(node.home_name, dir_fd=node.home.descriptor(), follow_symlinks=False)
        self._write_record(node.home_name, b"=%d" % (state.st_nlink + node.links.delta))
        self.link_in(node, directory, name)

    # -- counting ----------------------------------------------------------------------------------------------------

    def is_indexed(self, node: Node) -> bool:
        """Tell whether the home of ``node`` is in this index."""
        return node.home is not None and node.home is self.directory

    def before_loss(self, node: AnyNode, parent: DirNode, name: bytes) -> bool:
        """Before the writable layer covers a name that it does not have itself, see that the count will follow at once.

        Return whether it has the name from now on. Raises OSError.
        """
        if isinstance(node, DirNode) or node.links is None or node.home is None:
            return False
        assert parent.upper is not None
        if self.is_indexed(node):
            self.bring(node, parent.upper.descriptor(), name)
            return True
        state = os.stat(node.home_name, dir_fd=node.home.descriptor(), follow_symlinks=False)
        if state.st_nlink + node.links.delta > 1:
            entry = self._entry_name(node.home, node.home_name, state)
            directory = os.stat(parent.upper.descriptor()).st_ino
            self._write_record(entry, b"%d %d/%s" % (node.links.delta, directory, name))
        return False

    def name_gone(self, node: Node, *, in_upper: bool) -> None:
        """Take note that one of the names of a file is gone; ``in_upper``: one that the writable layer itself had.

        If that cannot be written down, the next server settles what was written before.
        """
        try:
            self.settle(node)
            if not in_upper:
                self._lower_name_gone(node)
            self._drop_if_unused(node)
        except OSError:
            pass

    def _lower_name_gone(self, node: Node) -> None:
        """Take note that one of the names of a lower file that was never copied does not count any longer."""
        links = node.links
        if links is None or node.home is None or node.in_upper:
            return
        links.delta -= 1
        state = os.stat(node.home_name, dir_fd=node.home.descriptor(), follow_symlinks=False)
        entry = self._entry_name(node.home, node.home_name, state)
        self._record(entry, links.delta if state.st_nlink + links.delta > 0 else 0)

    def _drop_if_unused(self, node: Node) -> None:
        """Remove an indexed file's entry once none of its names is left; who has the file open keeps it."""
        if node.links is None or not self.is_indexed(node) or node.home is None:
            return
        place = node.home.descriptor()
        state = os.stat(node.home_name, dir_fd=place, follow_symlinks=False)
        if state.st_nlink + node.links.delta > 0:
            return
        if node.descriptor < 0 and node.lookups > 0:
            node.descriptor = os.open(node.home_name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
        os.unlink(node.home_name, dir_fd=place)
        if self._entries is not None:
            self._entries.pop(state.st_ino, None)
        self._record(node.home_name, 0)
        node.links.delta = 0

    def _write_delta(self, entry: bytes, delta: int) -> None:
        """Write down what to add to the link count of an indexed file."""
        assert self.directory is not None
        marked = self.upper.mark(self.directory.descriptor(), entry, ondisk.NLINK, b"U%+d" % delta)
        self._record(entry, 0 if marked else delta)

    def _record(self, entry: bytes, delta: int) -> None:
        """Write down, or forget when it is 0, what to add to the link count of the file that ``entry`` stands for."""
        if delta:
            self._write_record(entry, b"%d" % delta)
            return
        try:
            os.unlink(_RECORDS + b"/" + entry, dir_fd=self.base)
        except FileNotFoundError:
            pass

    def _write_record(self, entry: bytes, value: bytes) -> None:
        name = _RECORDS + b"/" + entry
        staged = self.upper.staging_name()
        os.symlink(value, staged, dir_fd=self.upper.work)
        try:
            self._place_record(staged, name)
        except OSError:
            self.upper.discard(staged)
            raise

    def _place_record(self, staged: bytes, name: bytes) -> None:
        try:
            os.rename(staged, name, src_dir_fd=self.upper.work, dst_dir_fd=self.base)
        except FileNotFoundError:
            os.mkdir(_RECORDS, 0o700, dir_fd=self.base)
            os.rename(staged, name, src_dir_fd=self.upper.work, dst_dir_fd=self.base)

    def _recorded(self, entry: bytes, links: int) -> int:
        """Return what to add to ``links``, the number that the file ``entry`` has where it is at home."""
        try:
            value, _, place = os.readlink(_RECORDS + b"/" + entry, dir_fd=self.base).partition(b" ")
            if not place:
                return int(value[1:]) - links if value[:1] == b"=" else int(value)
            directory, name = place.split(b"/")
            return int(value) - self._is_covered(int(directory), name)
        except (FileNotFoundError, ValueError):
            return 0

    def _settle_records(self) -> None:
        """Bring to their end the changes in the middle of which an earlier server died."""
        try:
            records = os.open(_RECORDS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.base)
        except FileNotFoundError:
            return
        try:
            for entry in map(os.fsencode, os.listdir(records)):
                self._settle(entry, os.readlink(entry, dir_fd=records))
        finally:
            os.close(records)

    def _settle(self, entry: bytes, value: bytes) -> None:
        if b" " in value:
            self._record(entry, self._recorded(entry, 0))
        elif value[:1] == b"=" and self.directory is not None and self.directory.has(entry):
            state = os.stat(entry, dir_fd=self.directory.descriptor(), follow_symlinks=False)
            self._write_delta(entry, self._recorded(entry, state.st_nlink))

    def _is_covered(self, directory: int, name: bytes) -> bool:
        """Tell whether the writable layer has, or deletes, ``name`` in its directory with this inode number."""
        waiting = [self.upper.root]
        while waiting:
            place = waiting.pop()
            if os.stat(place.descriptor()).st_ino == directory:
                return place.has(name) or place.has(ondisk.aufs_whiteout(name))
            waiting += [Dir(self.upper, place, child) for child, kind, _ino in place.entries() if kind == DT_DIR]
            self.upper.cache.trim()
        return False

    # -- lookup ------------------------------------------------------------------------------------------------------

    def find(self, place: Dir, name: bytes, state: os.stat_result) -> tuple[bytes, os.stat_result] | None:
        """If a lower file was copied up through another of its names, return the copy's name in the index and
        attributes.
        """
        directory = self.directory
        if directory is None:
            return None
        entry = self._entry_name(place, name, state)
        try:
            return entry, os.stat(entry, dir_fd=directory.descriptor(), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def entry_of(self, state: os.stat_result) -> bytes | None:
        """Return the name in the index of a file that was met in the writable layer, None if it was made there."""
        if self.directory is None or (self.upper.subvolume is not None and state.st_dev != self.upper.dev):
            return None
        if self._entries is None:
            self._entries = {ino: name for name, _kind, ino in self.directory.entries()}
        return self._entries.get(state.st_ino)

    def count(self, node: Node, state: os.stat_result, *, in_upper: bool) -> None:
        """Find out how many names ``node`` has, which was just met in the writable layer or below. Raises OSError."""
        try:
            (self._read_delta if in_upper else self._read_lost_names)(node, state)
        except OSError:
            self.nodes.forget(node, 0)  # who asks again must not be told a wrong number
            raise

    def _read_delta(self, node: Node, state: os.stat_result) -> None:
        """Make ``node`` shared under its upper file, with the count that ``overlay.nlink`` holds.

        It is relative to the upper file's links (U), or to those of the lower one (L) if the kernel died between the
        two steps of a copy-up; see ovl_get_nlink() of fs/overlayfs/util.c. Or it stands in another dialect, in which
        the layer was written earlier. From now on it is to be relative to the upper's, and in the layer's own.
        """
        links = self.nodes.share(node, (state.st_dev, state.st_ino))
        indexed, path = self.is_indexed(node), self.view.proc_path(node)
        own = self.upper.dialect.attribute(ondisk.NLINK)
        unsettled = indexed and node.home_name in self._unsettled  # the attribute is out of date
        attribute, value = (None, b"") if unsettled else _first_of(path, (own, *_COUNTS) if indexed else (own,))
        if attribute is None:
            links.delta = self._recorded(node.home_name, state.st_nlink) if indexed else 0
            return
        links.delta = self._decoded(value, node, state.st_nlink)
        if indexed and (attribute != own or value[:1] == b"L"):
            self._write_delta(node.home_name, links.delta)
            if attribute != own:
                os.removexattr(path, attribute, follow_symlinks=False)

    def _decoded(self, value: bytes, node: Node, links: int) -> int:
        """Return what to add to ``links``, which the upper file has, by the ``value`` of ``overlay.nlink``."""
        try:
            if value[:1] == b"L" and self.is_indexed(node):
                return self._lower_links(node.home_name) + int(value[1:]) - links
            return int(value[1:]) if value[:1] == b"U" else 0
        except (OSError, ValueError):
            return 0

    def _lower_links(self, entry: bytes) -> int:
        """Return the link count of the lower file that ``entry`` stands for. Raises OSError and ValueError."""
        origin = ondisk.decode_origin(bytes.fromhex(entry.decode()))
        layer = None if origin is None else self.view.origin_layer(origin)
        if origin is None or layer is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), entry)
        lower = files.open_handle(layer.root.descriptor(), origin.kind, origin.handle)
        try:
            return os.stat(lower).st_nlink
        finally:
            os.close(lower)

    def _read_lost_names(self, node: Node, state: os.stat_result) -> None:
        """Make the lower file ``node`` shared, with the names that it has lost so far."""
        links = self.nodes.share(node, (state.st_dev, state.st_ino))
        if node.home is not None:
            links.delta = self._recorded(self._entry_name(node.home, node.home_name, state), state.st_nlink)


def _first_of(path: bytes, attributes: tuple[bytes | None, ...]) -> tuple[bytes | None, bytes]:
    """Return the first of ``attributes`` that a file has, and its value. Raises OSError."""
    for attribute in attributes:
        try:
            if attribute is not None:
                return attribute, os.getxattr(path, attribute, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
    return None, b""
