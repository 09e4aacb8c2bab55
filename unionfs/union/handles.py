"""Files that nobody counts on any longer, found again by what a file handle holds: open_by_handle_at(2), NFS.

The kernel does not say for which files somebody has a handle, and to remember each file that it forgets would let the
server grow. So nothing is remembered until somebody asks for a forgotten file: then the merged tree is read once, and
from then on the table of nodes takes note of each node that leaves it. It runs in the thread that serves the union.

With ``nfs_export=on`` handles hold over mounts: then a file's id is its inode number, and its generation is made from
the handle that its real file has in its layer (name_to_handle_at(2)), of the lower file it was copied from if it was:
file systems see to it that no other file ever has the same.
"""

from __future__ import annotations

import errno
import os

from unionfs import errors, ondisk
from unionfs.layers.layer import DT_DIR
from unionfs.syscalls import files
from unionfs.union import pieces
from unionfs.union.nodes import AnyNode, DirNode, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from unionfs.union.view import View

Place = tuple[int, bytes]
"""The id of a directory, and a name in it."""

_GENERATIONS = 2147483629
"""How many there are: a prime below 2^31, so that handles which differ in few bits have different ones."""


def export(view: View) -> None:
    """Let handles hold over mounts, which takes layers whose files have handles. Raises LayerError."""
    for layer in view.lowers if view.upper is None else [view.upper, *view.lowers]:
        try:
            files.file_handle(layer.root.fd, b"")
        except OSError as error:
            raise errors.NoFileHandles(path=layer.path, reason=error.strerror) from None
    view.nodes.exported = True


def attach(view: View, node: AnyNode, origin: bytes | None = None) -> None:
    """Enter a node that has its id into the table, with its generation; ``origin`` is its ``overlay.origin``.

    Raises OSError.
    """
    nodes = view.nodes
    if nodes.exported:
        node.generation = nodes.kept_generation(node) or _generation(view, node, origin)
    nodes.attach(node)


def _generation(view: View, node: AnyNode, origin: bytes | None) -> int:
    copied = None if origin is None else ondisk.decode_origin(origin)
    if copied is not None:
        handle = copied.handle
    elif node.descriptor >= 0:
        _kind, handle = files.file_handle(node.descriptor, b"")
    elif isinstance(node, DirNode) and node.upper is not None and node.lowers:
        _kind, handle = files.file_handle(*pieces.place(node.lowers[0]))
    else:
        _kind, handle = files.file_handle(*view.place(node))
    return int.from_bytes(handle, "little") % _GENERATIONS + 1


class Forgotten:
    """Where each file was when it was forgotten. A file that nobody knows cannot move, so it is there still.

    ``_several`` has all places of those that have more than one; some may be out of date.
    """

    __slots__ = ("_places", "_several")

    def __init__(self) -> None:
        self._places: dict[int, Place] = {}
        self._several: dict[int, set[Place]] = {}

    def note(self, node: AnyNode) -> None:
        """Take note of a node that leaves the table, with the names that are known of it."""
        if isinstance(node, Node) and node.links is not None:
            for parent, name in node.links.names:
                self.add(node.id, (parent.id, name))
        elif node.parent is not None:
            self._places[node.id] = node.parent.id, node.name
        else:
            self._places.pop(node.id, None)

    def add(self, node_id: int, place: Place) -> None:
        """Take note of one place of a file, which may have others."""
        first = self._places.setdefault(node_id, place)
        if first != place:
            self._several.setdefault(node_id, {first}).add(place)

    def places(self, node_id: int) -> Iterable[Place]:
        """Return where a file may be; nothing for one that there never was."""
        place = self._places.get(node_id)
        return (*(() if place is None else (place,)), *self._several.get(node_id, ()))


def recall(view: View, node_id: int) -> AnyNode:
    """Return the node ``node_id``, bringing it back into the table if it was forgotten. Raises OSError (ESTALE)."""
    node = view.nodes.by_id.get(node_id)
    if node is not None:
        return node
    if view.nodes.forgotten is None:
        view.nodes.forgotten = _read_tree(view)
    for parent_id, name in view.nodes.forgotten.places(node_id):
        parent = _directory(view, parent_id)
        found = None if parent is None else _child(view, parent, name, node_id)
        if found is not None:
            return found
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _directory(view: View, node_id: int) -> DirNode | None:
    """Return the directory ``node_id``, having brought back those above it that were forgotten as well."""
    assert view.nodes.forgotten is not None
    steps: list[Place] = []
    node = view.nodes.by_id.get(node_id)
    while node is None:
        place = next(iter(view.nodes.forgotten.places(node_id)), None)
        if place is None:
            return None
        steps.append((node_id, place[1]))
        node_id = place[0]
        node = view.nodes.by_id.get(node_id)
    while steps and isinstance(node, DirNode):
        node_id, name = steps.pop()
        node = _child(view, node, name, node_id)
    return node if isinstance(node, DirNode) else None


def _child(view: View, parent: DirNode, name: bytes, node_id: int) -> AnyNode | None:
    """Return what is called ``name`` if it is the node ``node_id``; do not keep what is of no use."""
    found = view.lookup(parent, name)
    if found is not None and found[0].id == node_id:
        return found[0]
    view.nodes.forget(parent if found is None else found[0], 0)
    return None


def _read_tree(view: View) -> Forgotten:
    """Go through the merged tree, keeping neither nodes nor descriptors."""
    forgotten = Forgotten()
    waiting = [view.nodes.root]
    while waiting:
        directory = waiting.pop()
        for name, kind, ino in view.names(directory):
            if ino and kind != DT_DIR:
                forgotten.add(view.nodes.kept_ids.get(ino, ino), (directory.id, name))
                continue
            found = view.lookup(directory, name)
            if found is None:
                continue
            node = found[0]
            forgotten.add(node.id, (directory.id, name))
            if isinstance(node, DirNode):
                waiting.append(node)
            else:
                view.nodes.forget(node, 0)
        view.nodes.forget(directory, 0)
        view.cache.trim()
    return forgotten
