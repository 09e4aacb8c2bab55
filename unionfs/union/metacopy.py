"""Files whose data stands apart from their attributes: copies of attributes alone, and data-only layers.

The rules are those of overlayfs.rst, "Metadata only copy up" and "Data-only lower layers", and of ovl_lookup in
fs/overlayfs/namei.c: the data is the next regular file of that name further down, or where ``overlay.redirect`` says;
an absolute redirect that leads to nothing there leads into the data-only layers, which show nothing by themselves.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import ondisk
from unionfs.layers.layer import Dir, read_marks
from unionfs.syscalls import files
from unionfs.union import pieces
from unionfs.union.nodes import Data, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.layers.layer import Layer
    from unionfs.union.view import View

    Place = tuple[Dir, bytes]

_CLOSED = os.O_NOFOLLOW | os.O_CLOEXEC


# -- reading ---------------------------------------------------------------------------------------------------------


def note(view: View, node: Node, marks: ondisk.Marks) -> None:
    """Remember where the data of ``node`` is, whose ``marks`` say that its attributes stand alone."""
    upper = node.home is None or node.home.layer is view.upper
    above = 0 if upper or node.home is None else node.home.layer.index
    beside = view.enter(node.parent) if node.parent is not None else ()
    found = _Search(view, above).find(beside, node.name if upper else node.home_name, marks)
    node.data = Data(*(found or (None, b"")), in_upper=upper)
    if upper:
        node.in_upper = False


def note_sparse(view: View, node: Node) -> None:
    """See whether a lower file that has fewer blocks than bytes is one without its data."""
    assert node.home is not None
    marks = node.home.marks(node.home_name)
    if marks.metacopy:
        note(view, node, marks)


def open_lower(view: View, node: Node, flags: int) -> int:
    """Open the data of a file that the writable layer does not have; return the descriptor. Raises OSError.

    EIO where the attributes are there and the data is not.
    """
    if node.data is None:
        descriptor = view.open_own(node, flags)
        try:
            marks = read_marks(files.proc_path(descriptor) if flags & os.O_PATH else descriptor, follow=True)
        except OSError:
            os.close(descriptor)
            raise
        if not marks.metacopy:
            return descriptor
        os.close(descriptor)
        note(view, node, marks)
    assert node.data is not None
    if node.data.place is None:
        raise OSError(errno.EIO, "the data of this file is in none of the layers", node.name)
    return os.open(node.data.name, flags | _CLOSED, dir_fd=node.data.place.descriptor())


def attributes(view: View, node: Node) -> os.stat_result:
    """Return the attributes of a file whose data stands elsewhere: its own, but for the blocks. Raises OSError."""
    data = node.data
    assert data is not None
    if data.frozen is not None:
        return data.frozen
    state = os.stat(view.proc_path(node), follow_symlinks=node.descriptor >= 0)
    if data.place is None:
        return state
    blocks = os.stat(data.name, dir_fd=data.place.descriptor(), follow_symlinks=False).st_blocks
    return pieces.with_field(state, st_blocks=blocks)


class _Search:
    """The way to the data of one file, from the layer number ``above`` downwards."""

    def __init__(self, view: View, above: int) -> None:
        self._view = view
        self._above = above

    def find(self, beside: tuple[Dir, ...], name: bytes, marks: ondisk.Marks) -> Place | None:
        """Return where the data is; ``beside`` are the parts of the directory that the file stands in."""
        redirect: bytes | None = None
        guarded = False
        found: tuple[Dir, ondisk.Marks] | None
        while True:
            guarded = guarded or (marks.untrusted and self._view.guarded)
            redirect = marks.redirect or redirect
            if marks.redirect is not None:
                beside, name = self._turn(marks.redirect, beside)
            found = None if guarded else self._next(beside, name)
            if found is None:
                break
            part, marks = found
            if not marks.metacopy:
                return part, name
            self._above = part.layer.index
        return _in_data_layers(self._view.data_layers, redirect)

    def _turn(self, redirect: bytes, beside: tuple[Dir, ...]) -> tuple[tuple[Dir, ...], bytes]:
        names = ondisk.redirect_names(redirect)
        if not names:
            return (), b""
        if redirect.startswith(b"/"):
            beside = self._view.below(names[:-1], self._above)
        return beside, names[-1]

    def _next(self, beside: tuple[Dir, ...], name: bytes) -> tuple[Dir, ondisk.Marks] | None:
        """Return the next regular file called ``name`` further down, None if something else comes first."""
        for part in beside:
            if part.layer.index <= self._above:
                continue
            try:
                state = os.stat(name, dir_fd=part.descriptor(), follow_symlinks=False)
            except FileNotFoundError:
                if part.has(ondisk.aufs_whiteout(name)):
                    return None
                continue
            deletes = not state.st_size and pieces.is_whiteout(part, name, state)
            return (part, part.marks(name)) if stat.S_ISREG(state.st_mode) and not deletes else None
        return None


def _in_data_layers(layers: list[Layer], redirect: bytes | None) -> Place | None:
    """Return the regular file that an absolute redirect names in the first data-only layer that has it."""
    names = ondisk.redirect_names(redirect) if redirect is not None and redirect.startswith(b"/") else []
    if not names:
        return None
    *directories, name = names
    for layer in layers:
        place = layer.root
        for directory in directories:
            place = Dir(layer, place, directory)
        try:
            state = os.stat(name, dir_fd=place.descriptor(), follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
                raise
            continue
        if stat.S_ISREG(state.st_mode):
            return place, name
    return None
