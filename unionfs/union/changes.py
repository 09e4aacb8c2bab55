"""What the writable layer adds, changes and deletes, in the words of ``docker diff``.

The merged tree is compared with the tree that the lower layers make without the writable one, only where that one says
something. Nothing is changed, and no file is read: what was copied up counts as changed, whatever is in it.

A, added: there is nothing below. A directory that was renamed is new at its new name, with all that is in it.
C, changed: data, attributes or kind; also each directory above a change.
D, deleted: no longer there, by a whiteout, an opaque directory or a rename; what was in a deleted directory is not
listed.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from unionfs import ondisk
from unionfs.union import stack
from unionfs.union.nodes import AnyNode, DirNode
from unionfs.union.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from unionfs.union.stack import Config

ADDED, CHANGED, DELETED = "A", "C", "D"


class Change(NamedTuple):
    """One change: ``kind`` is "A", "C" or "D"; ``path`` is absolute, decoded as :func:`os.fsdecode` does."""

    kind: str
    path: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


Known = tuple[AnyNode, os.stat_result]


def changes_of(config: Config) -> list[Change]:
    """Return the changes in the writable layer of a stack that is opened to be looked at, mounted or not.

    Raises LayerError, and OSError for a directory that cannot be read.
    """
    view = stack.open_to_read(config)
    try:
        return changes(view)
    finally:
        stack.close_view(view)


def changes(view: View) -> list[Change]:
    """Return the changes in the writable layer of ``view``, sorted by path, byte by byte. Raises OSError."""
    if view.upper is None:
        return []
    found = _Comparison(view).run()
    return [Change(found[path], os.fsdecode(path)) for path in sorted(found)]


class _Comparison:
    """The merged tree (``new``) beside the tree of the lower layers alone (``old``), and what differs so far."""

    def __init__(self, view: View) -> None:
        self.new = view
        self.old = View(view.lowers, None, view.cache)
        self.found: dict[bytes, str] = {}
        self.waiting: list[tuple[DirNode, DirNode | None, bytes]] = []

    def run(self) -> dict[bytes, str]:
        self.waiting.append((self.new.nodes.root, self.old.nodes.root, b""))
        while self.waiting:
            self._directory(*self.waiting.pop())
        for path in list(self.found):
            self._mark_above(path)
        return self.found

    def _mark_above(self, path: bytes) -> None:
        above = path.rpartition(b"/")[0]
        while above and above not in self.found:
            self.found[above] = CHANGED
            above = above.rpartition(b"/")[0]

    def _directory(self, new: DirNode, old: DirNode | None, path: bytes) -> None:
        for name in self._names(new, old):
            self.new.cache.trim()
            below = path + b"/" + name
            after = _lookup(self.new, new, name)
            before = None if old is None else _lookup(self.old, old, name)
            kind = self._compare(after, before)
            if kind is not None:
                self.found[below] = kind
            if after is not None and isinstance(after[0], DirNode):
                other = before[0] if before is not None and isinstance(before[0], DirNode) else None
                self.waiting.append((after[0], other, below))

    def _names(self, new: DirNode, old: DirNode | None) -> Iterable[bytes]:
        """Return the names that may differ: those of the writable layer, or all if other directories merge."""
        if old is None:
            return [name for name, _kind, _ino in self.new.names(new)]
        if _parts(self.new, new) == _parts(self.old, old):
            own = new.upper.entries() if new.upper is not None else ()
            return {ondisk.hidden_by(name) or name for name, _kind, _ino in own}
        return {name for view, node in ((self.new, new), (self.old, old)) for name, _kind, _ino in view.names(node)}

    def _compare(self, after: Known | None, before: Known | None) -> str | None:
        if after is None or before is None:
            return ADDED if after is not None else DELETED if before is not None else None
        if os.path.samestat(after[1], before[1]):
            return None
        both = isinstance(after[0], DirNode) and isinstance(before[0], DirNode)
        return CHANGED if not both or self._attributes_differ(after, before) else None

    def _attributes_differ(self, after: Known, before: Known) -> bool:
        """Tell whether a directory changed by itself: copied up on the way to a change further down, it did not."""
        if _attributes(after[1]) != _attributes(before[1]):
            return True
        return _xattrs(self.new, after[0]) != _xattrs(self.old, before[0])


def _lookup(view: View, parent: DirNode, name: bytes) -> Known | None:
    """Look a name up without leaving it in the table: a whole tree would not fit there."""
    known = view.lookup(parent, name)
    if known is not None:
        view.nodes.forget(known[0], 0)
    return known


def _parts(view: View, node: DirNode) -> list[tuple[int, bytes]]:
    return [(part.layer.index, part.path()) for part in view.enter(node)]


def _attributes(state: os.stat_result) -> tuple[int, int, int, int]:
    return state.st_mode, state.st_uid, state.st_gid, state.st_mtime_ns


def _xattrs(view: View, node: AnyNode) -> dict[bytes, bytes]:
    try:
        return {name: view.getxattr(node, name) for name in view.listxattr(node)}
    except OSError:  # a file system without any, or no right to read them: nothing that could be compared
        return {}
