"""Files with several names: one file stays one file when it is copied up through one of them.

As with the kernel's ``index=on``: the copy stands in ``index/`` of the workdir under a name made from the lower file's
handle, and every name in the writable layer is a link to it. ``overlay.nlink`` holds what to add to its link count.
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


class LinkIndex:
    """The index of one writable layer; it is made when the first file is entered."""

    __slots__ = ("base", "directory", "upper", "view")

    def __init__(self, view: View, upper: WritableLayer, base: int) -> None:
        self.view = view
        self.upper = upper
        self.base = base
        self.directory: Dir | None = None
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
        """Move the staged copy of a lower file with several names into the index; it is the home of ``node`` from now on."""
        directory = self.directory
        if directory is None:
            os.mkdir(b"index", 0o700, dir_fd=self.base)
            directory = self._open()
        assert node.home is not None
        name = self._entry_name(node.home, node.home_name, state)
        links = self.nodes.share(node, (state.st_dev, state.st_ino))
        links.delta = state.st_nlink - 2
        self._write_delta(self.upper.work, staged, links)
        files.renameat2(self.upper.work, staged, directory.descriptor(), name)
        copy = os.stat(name, dir_fd=directory.descriptor(), follow_symlinks=False)
        self.nodes.share(node, (copy.st_dev, copy.st_ino))
        node.home, node.home_name = directory, name

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
        if node.links is not None and self.is_indexed(node):
            node.links.delta -= 1
            assert node.home is not None
            self._write_delta(node.home.descriptor(), node.home_name, node.links)

    def drop_if_unused(self, node: Node) -> None:
        """Remove an indexed file's entry once none of its names is left."""
        if node.links is None or not self.is_indexed(node) or node.home is None:
            return
        state = os.stat(node.home_name, dir_fd=node.home.descriptor(), follow_symlinks=False)
        if state.st_nlink + node.links.delta <= 0:
            os.unlink(node.home_name, dir_fd=node.home.descriptor())

    def _write_delta(self, directory: int, name: bytes, links: Links) -> None:
        self.upper.mark(directory, name, ondisk.NLINK, b"U%+d" % links.delta)

    # -- lookup ------------------------------------------------------------------------------------------------------

    def find(self, place: Dir, name: bytes, state: os.stat_result) -> tuple[bytes, os.stat_result] | None:
        """If a lower file was copied up through another of its names, return the copy's name in the index and attributes."""
        directory = self.directory
        if directory is None:
            return None
        entry = self._entry_name(place, name, state)
        try:
            return entry, os.stat(entry, dir_fd=directory.descriptor(), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def read_delta(self, node: Node, state: os.stat_result) -> None:
        """Make ``node`` shared under its upper file, with the count that ``overlay.nlink`` holds."""
        links = self.nodes.share(node, (state.st_dev, state.st_ino))
        attribute = self.upper.dialect.attribute(ondisk.NLINK)
        if attribute is None:
            return
        try:
            value = os.getxattr(self.view.proc_path(node), attribute, follow_symlinks=False)
            links.delta = int(value[1:]) if value[:1] == b"U" else 0
        except (OSError, ValueError):
            links.delta = 0
