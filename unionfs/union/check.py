"""What must hold of a writable layer and its workdir between two mounts; what does not, and how it is mended.

Looking changes nothing and needs no lock; mending takes the lock that a mount takes, and is refused while there is one.
"""

from __future__ import annotations

import fcntl
import os
from typing import NamedTuple

from unionfs import ondisk
from unionfs.layers.layer import DT_CHR, DT_DIR, DT_REG, DescriptorCache, Dir, Layer
from unionfs.layers.writable import attributes_of, remove_tree
from unionfs.syscalls import files
from unionfs.union import metacopy, stack
from unionfs.union.nodes import Node
from unionfs.union.paths import Paths
from unionfs.union.stack import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from unionfs.union.view import View

    Mend = Callable[[], None]

_INCOMPATIBLE = b"incompat"
_INDEX = b"index"
_PASSES = 2  # a directory whose redirect was broken becomes opaque, and then must hold no whiteouts


class Finding(NamedTuple):
    """Something that ought not to be: ``path`` is absolute on the machine, ``problem`` says what is wrong with it.

    ``mendable`` tells whether :func:`repair` knows what to do about it.
    """

    path: str
    problem: str
    mendable: bool = True

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def check(upper: bytes, workdir: bytes | None = None, lowers: Sequence[bytes] = ()) -> list[Finding]:
    """Return what is wrong in a writable layer, its workdir, and its redirects into ``lowers`` (topmost first).

    Redirects are not followed when no lower layers are named. Raises LayerError, and OSError for what cannot be read.
    """
    with _Check(upper, workdir, lowers) as checking:
        return [finding for finding, _mend in checking.problems()]


def repair(upper: bytes, workdir: bytes | None = None, lowers: Sequence[bytes] = ()) -> list[Finding]:
    """Mend what :func:`check` finds; return the findings that are left.

    Raises LayerInUse while the layer is mounted, another LayerError or OSError as :func:`check` does.
    """
    with _Check(upper, workdir, lowers) as checking:
        stack.lock(checking.layer.root.fd, upper)
        for _ in range(_PASSES):
            for _finding, mend in list(checking.problems()):
                if mend is not None:
                    mend()
        return [finding for finding, _mend in checking.problems()]


class _Check:
    """One look at a layer: yields each problem with what would mend it, if anything does."""

    def __init__(self, upper: bytes, workdir: bytes | None, lowers: Sequence[bytes]) -> None:
        self._cache = DescriptorCache()
        self.layer = Layer(upper, stack.open_directory(upper), 0, self._cache)
        self._work = None if workdir is None else Layer(workdir, stack.open_directory(workdir), 0, self._cache)
        self._in_use = _is_locked(self.layer.root.fd)
        self._view: View | None = stack.open_to_read(Config(lowers, upper)) if lowers else None

    def __enter__(self) -> _Check:
        return self

    def __exit__(self, *_: object) -> None:
        self._cache.clear()
        self.layer.close()
        if self._work is not None:
            self._work.close()
        if self._view is not None:
            stack.close_view(self._view)

    def problems(self) -> Iterator[tuple[Finding, Mend | None]]:
        if self._work is not None:
            yield from self._check_work(self._work)
        waiting = [self.layer.root]
        while waiting:
            part = waiting.pop()
            yield from self._check_directory(part)
            waiting.extend(Dir(self.layer, part, name) for name, kind, _ino in part.entries() if kind == DT_DIR)
            self._cache.trim()

    # -- the layer ---------------------------------------------------------------------------------------------------

    def _check_directory(self, part: Dir) -> Iterator[tuple[Finding, Mend | None]]:
        marks = part.marks()
        opaque = part.is_opaque(marks)
        if marks.redirect is not None and not opaque and not self._leads_somewhere(part, marks.redirect):
            text = f"its redirect leads nowhere: {os.fsdecode(marks.redirect)}"
            yield _finding(part, b"", text), lambda: _stand_alone(part)
        entries = list(part.entries())
        names = {name: kind for name, kind, _ino in entries}
        for name, kind, _ino in entries:
            problem = _problem_of(part, name, kind, names, opaque=opaque)
            if problem is not None:
                yield _finding(part, name, problem), _remover(part, name)
            elif kind == DT_REG:
                yield from self._check_file(part, name, opaque=opaque)

    def _check_file(self, part: Dir, name: bytes, *, opaque: bool) -> Iterator[tuple[Finding, Mend | None]]:
        stored = attributes_of(part.proc_path(name))
        said = next((attribute for attribute in stored if os.fsdecode(attribute) in ondisk.WHITEOUT_ATTRIBUTES), None)
        if said is not None and not part.is_xattr_whiteout(name) and _is_empty(part, name):
            text = "deletes its name, which its directory does not announce"
            yield _finding(part, name, text), _remover(part, name) if opaque else _announcer(part, said)
        if self._view is not None and part.marks(name).metacopy and not self._has_data(self._view, part, name):
            yield _finding(part, name, "its data is in none of the layers", mendable=False), None

    def _leads_somewhere(self, part: Dir, redirect: bytes) -> bool:
        if not ondisk.redirect_names(redirect):
            return False
        if self._view is None:
            return True
        node = Paths(self._view).directory(part.path())
        return bool(self._view.enter(node))

    def _has_data(self, view: View, part: Dir, name: bytes) -> bool:
        """Tell whether the data of a file can be found that has attributes alone."""
        node = Paths(view).node(os.path.join(part.path(), name), follow=False)
        if isinstance(node, Node) and node.data is None:  # not noticed at lookup, where that would cost too much
            metacopy.note(view, node, part.marks(name))
        return isinstance(node, Node) and node.data is not None and node.data.place is not None

    # -- the workdir -------------------------------------------------------------------------------------------------

    def _check_work(self, work: Layer) -> Iterator[tuple[Finding, Mend | None]]:
        for part in (Dir(work, work.root, b"work"), Dir(work, work.root, _INDEX)):
            if not work.root.has(part.name):
                continue
            for name, _kind, _ino in list(part.entries()):
                if part.name == _INDEX:
                    if _is_unused(part, name):
                        yield _finding(part, name, "no name is left of this file"), _remover(part, name)
                elif name == _INCOMPATIBLE:
                    text = "a volatile mount was not ended cleanly: what was written last may be missing"
                    yield _finding(part, name, text), _remover(part, name)
                elif not self._in_use:
                    yield _finding(part, name, "was left by a crash"), _remover(part, name)


def _finding(part: Dir, name: bytes, problem: str, *, mendable: bool = True) -> Finding:
    path = os.path.join(part.layer.path + part.path(), name).rstrip(b"/")
    return Finding(os.fsdecode(path), problem, mendable)


def _remover(part: Dir, name: bytes) -> Mend:
    return lambda: remove_tree(part.descriptor(), name)


def _announcer(part: Dir, attribute: bytes) -> Mend:
    """Return what lets a directory say that empty files with ``attribute`` delete their names in it."""
    opaque = attribute[: -len(ondisk.WHITEOUT)] + ondisk.OPAQUE
    return lambda: os.setxattr(part.proc_path(), opaque, b"x")


def _is_locked(descriptor: int) -> bool:
    """Tell whether a mount uses a layer: then there is work in progress in its workdir."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _is_empty(part: Dir, name: bytes) -> bool:
    return os.stat(name, dir_fd=part.descriptor(), follow_symlinks=False).st_size == 0


def _problem_of(part: Dir, name: bytes, kind: int, names: dict[bytes, int], *, opaque: bool) -> str | None:
    """Return what is wrong with one entry of a directory; None if nothing is."""
    if name == ondisk.WHITEOUT_PREFIX:
        return "a whiteout of no name"
    hidden = ondisk.hidden_by(name)
    if hidden is not None and names.get(hidden, DT_DIR) != DT_DIR:
        return "a whiteout beside a file of the name that it deletes"
    deletes = hidden is not None or (kind == DT_CHR and _is_whiteout(part, name))
    return "a whiteout in an opaque directory, which has nothing to hide" if deletes and opaque else None


def _is_whiteout(part: Dir, name: bytes) -> bool:
    state = os.stat(name, dir_fd=part.descriptor(), follow_symlinks=False)
    return ondisk.is_whiteout(state.st_mode, state.st_rdev)


def _is_unused(index: Dir, name: bytes) -> bool:
    """Tell whether an indexed file has neither a name in the upper layer nor one in lower layers alone."""
    state = os.stat(name, dir_fd=index.descriptor(), follow_symlinks=False)
    return state.st_nlink + _lower_names(index, name) <= 0


def _lower_names(index: Dir, name: bytes) -> int:
    """Return what ``overlay.nlink`` adds to the link count (overlayfs.rst, "Index"), 0 where it does not say."""
    path = index.proc_path(name)
    for prefix in (ondisk.TRUSTED_PREFIX, ondisk.USER_PREFIX):
        try:
            value = os.getxattr(path, prefix + ondisk.NLINK, follow_symlinks=False)
            return int(value[1:]) if value[:1] == b"U" else 0
        except (OSError, ValueError):
            continue
    return 0


def _stand_alone(part: Dir) -> None:
    """Make a directory show what it holds itself and nothing more, at no instant what lies below its new name."""
    path = files.proc_path(part.descriptor())
    for prefix in (ondisk.TRUSTED_PREFIX, ondisk.USER_PREFIX):
        if os.fsdecode(prefix + ondisk.REDIRECT) in os.listxattr(path):
            os.setxattr(path, prefix + ondisk.OPAQUE, b"y")
            os.removexattr(path, prefix + ondisk.REDIRECT)
