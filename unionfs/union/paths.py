"""From a path, as a program writes it, to a node: ``..`` and links stay within the union; see path_resolution(7).

A union without a kernel has nobody that counts on its nodes, so this module remembers those that it has met, a bounded
number of them, and lets the oldest go. It knows nothing of what is done with a path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import deque
from typing import NamedTuple

from unionfs.union.nodes import AnyNode, DirNode, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.union.view import View

MAX_LINKS = 40
"""How many symbolic links one path may pass through: MAXSYMLINKS in the kernel's include/linux/namei.h."""
_REMEMBERED_NODES = 4096
_HERE, _UP = b".", b".."


class Place(NamedTuple):
    """Where a path leads: a directory, a name in it (b"", b"." and b".." are none), and what is there, if anything."""

    parent: DirNode
    name: bytes
    node: AnyNode | None

    @property
    def is_name(self) -> bool:
        """Whether this is an ordinary name, which can be created, removed or renamed."""
        return self.name not in (b"", _HERE, _UP)


def error(number: int) -> OSError:
    """Return the OSError for ``number``; whoever knows the path fills it in."""
    return OSError(number, os.strerror(number))


class Paths:
    """Finds nodes of ``view`` by path, and remembers them for a while."""

    __slots__ = ("_known", "view")

    def __init__(self, view: View) -> None:
        self.view = view
        self._known: deque[AnyNode] = deque()

    # -- resolution --------------------------------------------------------------------------------------------------

    def locate(self, path: bytes, *, follow: bool = True) -> Place:
        """Return where ``path`` leads, its last name perhaps to nothing; ``follow`` a symbolic link at its end.

        Raises OSError: ENOENT (also for an empty path), ENOTDIR, ELOOP, ENAMETOOLONG, EACCES.
        """
        if not path:
            raise error(errno.ENOENT)
        root = self.view.nodes.root
        trail = _components(path)
        place, links = Place(root, b"", root), 0
        while trail:
            here = _directory(place.node)
            place = self._step(here, trail.pop())
            if isinstance(place.node, Node) and (trail or follow):
                target = self._target(place.node)
                if target is not None:
                    links += 1
                    place = self._turn(here, target, trail, links)
        return place

    def _step(self, here: DirNode, name: bytes) -> Place:
        if name == _HERE:
            return Place(here, name, here)
        if name == _UP:
            return Place(here, name, here.parent or here)
        return Place(here, name, self.child(here, name))

    def _target(self, node: Node) -> bytes | None:
        """Return where a symbolic link points; None for any other file."""
        return self.view.readlink(node) if stat.S_ISLNK(self.view.stat(node).st_mode) else None

    def _turn(self, here: DirNode, target: bytes, trail: list[bytes], links: int) -> Place:
        """Go on with ``target`` instead of the link in ``here`` that was met; return where from."""
        if links > MAX_LINKS:
            raise error(errno.ELOOP)
        if not target:
            raise error(errno.ENOENT)
        trail.extend(_components(target))
        start = self.view.nodes.root if target.startswith(b"/") else here
        return Place(start, b"", start)

    def node(self, path: bytes, *, follow: bool = True) -> AnyNode:
        """Return the node at ``path``. Raises OSError (ENOENT, ENOTDIR, ELOOP …)."""
        found = self.locate(path, follow=follow).node
        if found is None:
            raise error(errno.ENOENT)
        return found

    def directory(self, path: bytes) -> DirNode:
        """Return the directory at ``path``. Raises OSError, ENOTDIR for anything else that is there."""
        return _directory(self.node(path))

    def canonical(self, path: bytes) -> bytes:
        """Return the absolute path of what ``path`` leads to, free of links and dots. Raises OSError."""
        place = self.locate(path)
        if place.node is None:
            raise error(errno.ENOENT)
        if isinstance(place.node, DirNode):
            return place.node.path()
        return place.parent.path().rstrip(b"/") + b"/" + place.name

    # -- the nodes that were met -------------------------------------------------------------------------------------

    def child(self, parent: DirNode, name: bytes) -> AnyNode | None:
        """Return what is called ``name`` in ``parent``, None if there is nothing. Raises OSError."""
        node = parent.children.get(name)
        if node is not None:
            return node
        found = self.view.lookup(parent, name)
        return None if found is None else self.remember(found[0])

    def remember(self, node: AnyNode) -> AnyNode:
        """Keep a node until the next :meth:`trim` that finds too many; return it."""
        self._known.append(node)
        return node

    def trim(self) -> None:
        """Between two operations: let the oldest nodes and descriptors go, as far as there are too many."""
        self.view.cache.trim()
        while len(self._known) > _REMEMBERED_NODES:
            self.view.nodes.forget(self._known.popleft(), 0)


def _components(path: bytes) -> list[bytes]:
    """Split a path into its names, the first one last; a slash at its end asks for a directory, as a dot there does."""
    names = [name for name in path.split(b"/") if name]
    if names and path.endswith(b"/"):
        names.append(_HERE)
    names.reverse()
    return names


def _directory(node: AnyNode | None) -> DirNode:
    if node is None:
        raise error(errno.ENOENT)
    if not isinstance(node, DirNode):
        raise error(errno.ENOTDIR)
    return node
