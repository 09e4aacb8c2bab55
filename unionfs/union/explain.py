"""Where a name of the merged tree comes from, layer by layer, and what it hides. Reads only."""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from unionfs import ondisk
from unionfs.layers.layer import Dir
from unionfs.union import stack
from unionfs.union.nodes import DirNode
from unionfs.union.paths import Paths

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.layers.layer import Layer
    from unionfs.union.paths import Place
    from unionfs.union.stack import Config
    from unionfs.union.view import View

SHOWN, MERGED, HIDDEN, DELETES, ABSENT = "shown", "merged", "hidden", "deletes", "absent"
WHITEOUT = "whiteout"

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class Fact(NamedTuple):
    """What one layer has under a name.

    ``layer``: the layer as it was named; ``path``: where in it, absolute; ``kind``: "file", "directory", "symbolic
    link", "whiteout", "absent" …; ``role``: "shown", "merged" (into a directory shown above), "hidden" (by a layer
    above), "deletes" or "absent"; ``opaque``: a directory that hides those below; ``redirect``: where its lower parts
    are, if moved.
    """

    layer: str
    path: str
    kind: str
    role: str
    opaque: bool = False
    redirect: str | None = None

    def __str__(self) -> str:
        notes = [self.role] if self.role not in (self.kind, SHOWN) else []
        notes += ["opaque"] * self.opaque
        notes += [f"redirected to {self.redirect}"] if self.redirect is not None else []
        return f"{self.layer}: {self.kind}" + (f" ({', '.join(notes)})" if notes else "")


class Explanation(NamedTuple):
    """Why ``path`` shows what it shows: the facts of each layer, topmost first."""

    path: str
    facts: tuple[Fact, ...]

    @property
    def source(self) -> Fact | None:
        """The fact of the layer that the name comes from; None if nothing shows."""
        return next((fact for fact in self.facts if fact.role == SHOWN), None)

    @property
    def hides(self) -> tuple[Fact, ...]:
        """The facts of the layers whose file of this name does not show."""
        return tuple(fact for fact in self.facts if fact.role == HIDDEN and fact.kind != WHITEOUT)

    def __str__(self) -> str:
        deleting = next((fact for fact in self.facts if fact.role == DELETES), None)
        if self.source is not None:
            verdict = f"from {self.source.layer}"
        else:
            verdict = f"deleted by {deleting.layer}" if deleting is not None else "in no layer"
        present = [f"  {fact}" for fact in self.facts if fact.role != ABSENT]
        return "\n".join([f"{self.path}: {verdict}", *present])


def explain_of(config: Config, path: bytes) -> Explanation:
    """Explain ``path`` in a stack that is opened to be looked at, mounted or not. Raises LayerError, and OSError."""
    view = stack.open_to_read(config)
    try:
        return explain(view, Paths(view).locate(path, follow=False))
    except OSError as problem:
        problem.filename = path
        raise
    finally:
        stack.close_view(view)


def explain(view: View, place: Place) -> Explanation:
    """Explain what ``place`` shows, and what each layer has there. Raises OSError."""
    parent, name, node = place
    if isinstance(node, DirNode):
        parent, name = node.parent or node, node.name
    own = _parts(view, node) if isinstance(node, DirNode) else {}
    beside = _parts(view, parent)
    facts: list[Fact] = []
    decided = False
    for layer in ([view.upper] if view.upper is not None else []) + view.lowers:
        part = own.get(layer.index)
        if part is not None:
            role = MERGED if any(fact.role == SHOWN for fact in facts) else SHOWN
            facts.append(_directory(part, role))
        else:
            at = beside.get(layer.index)
            fact = _other(layer, at or _literal(layer, parent.path()), name)
            role = _role(fact, decided=decided or at is None, directory=bool(own))
            facts.append(fact._replace(role=role))
        decided = decided or facts[-1].opaque or facts[-1].role in (DELETES, HIDDEN) or (not own and role == SHOWN)
    return Explanation(os.fsdecode(parent.path().rstrip(b"/") + b"/" + name), tuple(facts))


def _parts(view: View, node: DirNode) -> dict[int, Dir]:
    """Return the directories that merge into ``node``, by the numbers of their layers."""
    upper = (node.upper,) if node.upper is not None else ()
    return {part.layer.index: part for part in upper + view.enter(node)}


def _role(fact: Fact, *, decided: bool, directory: bool) -> str:
    """Return the role of what a layer has beside the parts of a directory that shows."""
    if fact.kind == ABSENT:
        return ABSENT
    if decided:
        return HIDDEN
    if fact.kind == WHITEOUT:
        return DELETES
    return HIDDEN if directory else SHOWN


def _directory(part: Dir, role: str) -> Fact:
    marks = part.parent.marks(part.name) if part.parent is not None else part.marks()
    redirect = None if marks.redirect is None else os.fsdecode(marks.redirect)
    layer, path = os.fsdecode(part.layer.path), os.fsdecode(part.path())
    return Fact(layer, path, "directory", role, part.is_opaque(marks), redirect)


def _literal(layer: Layer, path: bytes) -> Dir | None:
    """Return the directory of this layer that has the path ``path``, though it does not show; None if there is none."""
    part = layer.root
    for name in path.split(b"/"):
        if name:
            part = Dir(layer, part, name)
    try:
        part.descriptor()
    except OSError as problem:
        if problem.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            raise
        return None
    return part


def _other(layer: Layer, at: Dir | None, name: bytes) -> Fact:
    """Return what ``layer`` has under ``name`` in its directory ``at``; the role is yet to be found."""
    if at is None:
        return Fact(os.fsdecode(layer.path), "", ABSENT, ABSENT)
    path = os.fsdecode(at.path().rstrip(b"/") + b"/" + name)
    return Fact(os.fsdecode(layer.path), path, _kind(at, name), ABSENT)


def _kind(at: Dir, name: bytes) -> str:
    try:
        state = os.stat(name, dir_fd=at.descriptor(), follow_symlinks=False)
    except FileNotFoundError:
        return WHITEOUT if at.has(ondisk.aufs_whiteout(name)) else ABSENT
    if ondisk.is_whiteout(state.st_mode, state.st_rdev) or (not state.st_size and at.is_xattr_whiteout(name)):
        return WHITEOUT
    return _KINDS[stat.S_IFMT(state.st_mode)]
