"""From libfuse's paths to nodes: a bounded memory of nodes, and the files that are open after their last name is gone.

libfuse knows files by path alone. It gives an open file that is unlinked, or replaced, another name: it renames the
file to ``.fuse_hidden`` and 16 digits, asks for that path from then on, and unlinks it after the last close. Here such
a rename is the unlink that it stands for, and the hidden name leads to the node for as long as it is open: it shows in
no directory, keeps no directory from being removed, and reaches no layer.
"""

from __future__ import annotations

import errno
import os
import re

from unionfs.fuse.fusepy_library import ENCODING
from unionfs.union.nodes import AnyNode, DirNode, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.union.view import View

_REMEMBERED_NODES = 16384
_HIDDEN = re.compile(rb"\.fuse_hidden[0-9a-f]{16}")  # hidden_name() in libfuse's lib/fuse.c


class Paths:
    """Finds the nodes of ``view`` by path, and counts as their one user: libfuse does not tell what it forgets."""

    __slots__ = ("_hidden", "_lost", "_remembered", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        self._remembered: dict[int, AnyNode] = {}
        self._hidden: dict[bytes, Node] = {}
        self._lost: dict[int, list[bytes]] = {}  # the hidden names of a node

    def trim(self) -> None:
        """Forget the nodes that were remembered first, beyond the limit; to be called between operations alone."""
        while len(self._remembered) > _REMEMBERED_NODES:
            node = self._remembered.pop(next(iter(self._remembered)))
            self.view.nodes.forget(node, 1)

    # -- finding -----------------------------------------------------------------------------------------------------

    def entry(self, path: str | None) -> tuple[DirNode, bytes]:
        """Return the directory in which ``path`` stands, and its name there. Raises OSError."""
        names = _split(path)
        return self._walk(names), names[-1]

    def find(self, path: str | None) -> tuple[AnyNode, os.stat_result | None]:
        """Return the node at ``path``, with its attributes if they had to be read on the way. Raises OSError."""
        names = _split(path)
        name = names[-1]
        if not name:
            return self.view.nodes.root, None
        parent = self._walk(names)
        node = parent.children.get(name)
        return self._look_up(parent, name) if node is None else (node, None)

    def node(self, path: str | None) -> AnyNode:
        """Return the node at ``path``, which may be hidden. Raises OSError (ENOENT, ENOTDIR)."""
        return self.hidden(path) or self.find(path)[0]

    def at(self, place: tuple[DirNode, bytes]) -> AnyNode | None:
        """Return the node that has this name in this directory, None where there is none. Raises OSError."""
        try:
            return place[0].children.get(place[1]) or self._look_up(*place)[0]
        except FileNotFoundError:
            return None

    def file(self, path: str | None) -> Node:
        """Return the node at ``path``, which is no directory. Raises OSError (EISDIR, ENOENT)."""
        node = self.node(path)
        if isinstance(node, DirNode):
            raise _error(errno.EISDIR)
        return node

    def directory(self, path: str | None) -> DirNode:
        """Return the directory at ``path``. Raises OSError (ENOTDIR, ENOENT)."""
        node = self.node(path)
        if not isinstance(node, DirNode):
            raise _error(errno.ENOTDIR)
        return node

    def _walk(self, names: list[bytes]) -> DirNode:
        place = self.view.nodes.root
        for name in names[:-1]:
            child = place.children.get(name) or self._look_up(place, name)[0]
            if not isinstance(child, DirNode):
                raise _error(errno.ENOTDIR)
            place = child
        return place

    def _look_up(self, parent: DirNode, name: bytes) -> tuple[AnyNode, os.stat_result]:
        found = self.view.lookup(parent, name)
        if found is None:
            raise _error(errno.ENOENT)
        self.remember(found[0])
        return found

    # -- counting ----------------------------------------------------------------------------------------------------

    def remember(self, node: AnyNode) -> None:
        """Keep ``node`` in the table for a while."""
        if node.id not in self._remembered:
            self._remembered[node.id] = node
            node.lookups += 1

    def removing(self, node: AnyNode | None, act: Callable[[], None]) -> None:
        """Do what takes a name away from ``node``: only who has it open still counts. Raises what ``act`` does."""
        if node is None:
            act()
            return
        if not _has_other_names(node) and self._remembered.pop(node.id, None) is not None:
            node.lookups -= 1
        try:
            act()
        finally:
            if node.parent is None:
                self.view.nodes.forget(node, 0)
            elif self.view.nodes.by_id.get(node.id) is node:
                self.remember(node)

    # -- open files without a name -----------------------------------------------------------------------------------

    def hides(self, node: AnyNode, name: bytes) -> bool:
        """Tell whether to call ``node`` by ``name`` means that it loses its name, since it is open."""
        return isinstance(node, Node) and node.opened is not None and _HIDDEN.fullmatch(name) is not None

    def hide(self, node: Node, name: bytes, unlink: Callable[[], None]) -> None:
        """Remove a name of ``node`` by ``unlink``; the hidden ``name`` leads to it until it is closed."""
        self.removing(node, unlink)
        node.lookups += 1
        self._hidden[name] = node
        self._lost.setdefault(node.id, []).append(name)

    def hidden(self, path: str | None) -> Node | None:
        """Return the open file that ``path`` stands for if that is a hidden name."""
        return self._hidden.get(_split(path)[-1]) if self._hidden else None

    def closed(self, node: Node) -> None:
        """Nobody has ``node`` open any longer."""
        for name in self._lost.pop(node.id, ()):
            del self._hidden[name]
            self.view.nodes.forget(node, 1)


def _split(path: str | None) -> list[bytes]:
    """Return the names in an absolute path, one empty name for the root; libfuse has no path for what was removed."""
    if path is None:
        raise _error(errno.ESTALE)
    return path.encode(ENCODING).split(b"/")[1:]


def _has_other_names(node: AnyNode) -> bool:
    return isinstance(node, Node) and node.links is not None and len(node.links.names) > 1


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))
