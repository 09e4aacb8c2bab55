"""Files with several names: one file stays one file when it is copied up through one of them.

As with the kernel's ``index=on``: the copy stands in ``index/`` of the workdir under a name made from the lower file's
handle, and every name in the writable layer is a link to it. ``overlay.nlink`` holds what to add to its link count.
Where there is no such attribute, and for a file that lost a name before it was ever copied, a symbolic link in
``links/`` of the workdir, whose target is that number, does the same.
"""

from __future__ import annotations

import os

from unionfs import ondisk
from unionfs.layers.layer import Dir
from unionfs.syscalls import files
from unionfs.union.nodes import Links, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.layers.writable import WritableLayer
    from unionfs.union.nodes import NodeTable
    from unionfs.union.view import View

_RECORDS = b"links"


class LinkIndex:
    """The index of one writable layer; it is made when the first file is entered."""

    __slots__ = ("_entries", "base", "directory", "upper", "view")

    def __init__(self, view: View, upper: WritableLayer, base: int) -> None:
        self.view = view
        self.upper = upper
        self.base = base
        self.directory: Dir | None = None
        self._entries: dict[int, bytes] | None = None  # name in the index by inode number, once somebody asked
        try:
            self._open()
        except FileNotFoundError:
            pass

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
        """Return the value of ``overlay.origin`` for a lower file, None where its file system has no handles."""
        try:
            kind, handle = files.file_handle(place.descriptor(), name)
        except OSError:
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
        links.delta += state.st_nlink - 2
        if not self.upper.mark(self.upper.work, staged, ondisk.NLINK, b"U%+d" % links.delta):
            self._record(name, links.delta)
        files.renameat2(self.upper.work, staged, directory.descriptor(), name)
        copy = os.stat(name, dir_fd=directory.descriptor(), follow_symlinks=False)
        self.nodes.share(node, (copy.st_dev, copy.st_ino))
        if self._entries is not None:
            self._entries[copy.st_ino] = name
        node.home, node.home_name = directory, name
        if self.upper.dialect.attribute(ondisk.NLINK) is not None:
            self._record(name, 0)

    def link_out(self, node: Node) -> bytes:
        """Make one more link to an indexed file, in the workdir; return its name there. Raises OSError."""
        assert node.home is not None
        staged = self.upper.staging_name()
        files.linkat(node.home.descriptor(), node.home_name, self.upper.work, staged)
        return staged

    # -- counting ----------------------------------------------------------------------------------------------------

    def is_indexed(self, node: Node) -> bool:
        """Tell whether the home of ``node`` is in this index."""
        return node.home is not None and node.home is self.directory

    def lower_name_gone(self, node: Node) -> None:
        """Take note that one of the names which only a lower layer has does not count any longer."""
        links = node.links
        if links is None or node.home is None or (node.in_upper and not self.is_indexed(node)):
            return
        links.delta -= 1
        if node.in_upper:
            self._write_delta(node.home.descriptor(), node.home_name, links)
            return
        state = os.stat(node.home_name, dir_fd=node.home.descriptor(), follow_symlinks=False)
        entry = self._entry_name(node.home, node.home_name, state)
        self._record(entry, links.delta if state.st_nlink + links.delta > 0 else 0)

    def drop_if_unused(self, node: Node) -> None:
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

    def _write_delta(self, directory: int, name: bytes, links: Links) -> None:
        if not self.upper.mark(directory, name, ondisk.NLINK, b"U%+d" % links.delta):
            self._record(name, links.delta)

    def _record(self, entry: bytes, delta: int) -> None:
        """Write down, or forget when it is 0, what to add to the link count of the file that ``entry`` stands for."""
        name = _RECORDS + b"/" + entry
        if delta == 0:
            try:
                os.unlink(name, dir_fd=self.base)
            except FileNotFoundError:
                pass
            return
        staged = self.upper.staging_name()
        os.symlink(b"%d" % delta, staged, dir_fd=self.upper.work)
        try:
            os.rename(staged, name, src_dir_fd=self.upper.work, dst_dir_fd=self.base)
        except FileNotFoundError:
            os.mkdir(_RECORDS, 0o700, dir_fd=self.base)
            os.rename(staged, name, src_dir_fd=self.upper.work, dst_dir_fd=self.base)

    def _recorded(self, entry: bytes) -> int:
        try:
            return int(os.readlink(_RECORDS + b"/" + entry, dir_fd=self.base))
        except (FileNotFoundError, ValueError):
            return 0

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
        if self.directory is None:
            return None
        if self._entries is None:
            self._entries = {ino: name for name, _kind, ino in self.directory.entries()}
        return self._entries.get(state.st_ino)

    def read_delta(self, node: Node, state: os.stat_result) -> None:
        """Make ``node`` shared under its upper file, with the count that ``overlay.nlink`` holds."""
        links = self.nodes.share(node, (state.st_dev, state.st_ino))
        attribute = self.upper.dialect.attribute(ondisk.NLINK)
        if attribute is None:
            links.delta = self._recorded(node.home_name) if self.is_indexed(node) else 0
            return
        try:
            value = os.getxattr(self.view.proc_path(node), attribute, follow_symlinks=False)
            links.delta = int(value[1:]) if value[:1] == b"U" else 0
        except (OSError, ValueError):
            links.delta = 0

    def read_lost_names(self, node: Node, state: os.stat_result) -> None:
        """Make the lower file ``node`` shared, with the names that it has lost so far."""
        links = self.nodes.share(node, (state.st_dev, state.st_ino))
        if node.home is not None:
            links.delta = self._recorded(self._entry_name(node.home, node.home_name, state))
