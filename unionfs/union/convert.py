"""Rewriting a layer from one dialect into another, in place.

All that the new dialect needs is written first, for the whole layer, and is on disk before anything of the others goes:
names, and then attributes, which a file has in common with all its names. In between each mark stands twice, which says
the same. So a crash at any instant leaves a layer that shows the same tree, and another run ends what was begun. A
directory keeps its times.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from unionfs import errors, ondisk
from unionfs.layers.layer import DT_CHR, DT_DIR, DT_REG, DT_UNKNOWN, DescriptorCache, Dir
from unionfs.layers.writable import attributes_of, put_times_back, remove_tree
from unionfs.syscalls import files
from unionfs.union import stack as stacks
from unionfs.union.nodes import DirNode, Node
from unionfs.union.stack import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from unionfs.layers.writable import WritableLayer

_PREFIXES = (ondisk.TRUSTED_PREFIX, ondisk.USER_PREFIX)
_NAME_MAX_BYTES = 255
_NEEDS_LOWER = "it has redirects, or files without their data; name the layers below it with '--lower'"


class Converted(NamedTuple):
    """How much a conversion has rewritten."""

    deletions: int
    hiding_directories: int


def convert(
    layer: bytes, dialect: str, lowers: Sequence[bytes] = (), workdir: bytes | None = None, data: Sequence[bytes] = ()
) -> Converted:
    """Write the marks of ``layer`` in the dialect called ``dialect``, and in no other.

    Redirects and files without data have a place in "overlay" alone; for others, ``lowers`` (topmost first) and
    ``data`` layers must be there to copy from. A workdir is made beside the layer if none is named.
    Raises UsageError for an unknown dialect, LayerInUse while the layer is mounted, ConversionImpossible and other
    LayerErrors, and OSError.
    """
    target = stacks.demanded_dialect(dialect)
    layer = os.path.abspath(layer)
    base = stacks.default_workdir(layer) if workdir is None else workdir
    config = Config(lowers, layer, base, whiteouts=dialect, data_layers=data)
    try:
        if not target.redirects:
            _part_from_lowers(config, target)
        return _with_layer(config, lambda writable: _Conversion(writable).run())
    finally:
        if workdir is None:
            stacks.remove_workdir(base)


def _with_layer(config: Config, work: Callable[[WritableLayer], Converted]) -> Converted:
    opened: list[int] = []
    try:
        writable, _base = stacks.open_writable(config, opened, DescriptorCache())
        try:
            return work(writable)
        finally:
            writable.cache.clear()
    finally:
        for descriptor in opened:
            os.close(descriptor)


# -- what needs lower layers -----------------------------------------------------------------------------------------


def _part_from_lowers(config: Config, target: ondisk.Dialect) -> None:
    """Copy from lower layers what only a redirect, or a file without data, could take from there."""
    assert config.upper is not None
    view = stacks.open_to_read(Config([config.upper]))
    try:
        bound = any(_is_bound(part) for part in _directories(view.lowers[0].root))
    finally:
        stacks.close_view(view)
    if not bound:
        return
    if not config.lowers:
        raise errors.ConversionImpossible(path=config.upper, dialect=target.name, reason=_NEEDS_LOWER)
    stack = stacks.open_stack(config, own_process=False)
    try:
        _copy_bound(stack)
    finally:
        stack.close()


def _is_bound(part: Dir) -> bool:
    """Tell whether a directory has a redirect, or holds a file without data."""
    if part.marks().redirect is not None:
        return True
    return any(part.marks(name).metacopy for name, kind, _ino in part.entries() if kind in (DT_REG, DT_UNKNOWN))


def _copy_bound(stack: stacks.Stack) -> None:
    edit, view = stack.writable(), stack.view
    assert stack.renames is not None
    waiting = [view.nodes.root]
    while waiting:
        parent = waiting.pop()
        assert parent.upper is not None
        parent.impure = True  # a file without data counts as one, also where nothing announces it
        for name, _kind, _ino in list(parent.upper.entries()):
            found = view.lookup(parent, name)
            node = None if found is None else found[0]
            if isinstance(node, Node):
                if node.owned:
                    edit.copyup.file(node)
                view.nodes.forget(node, 0)
            elif isinstance(node, DirNode) and node.upper is not None:
                if parent.upper.marks(name).redirect is not None:
                    stack.renames.copy_whole(node)
                waiting.append(node)
        view.cache.trim()


def _directories(root: Dir) -> Iterator[Dir]:
    """Yield ``root`` and every directory below it; what happens to their entries meanwhile may be seen or not."""
    waiting = [root]
    while waiting:
        part = waiting.pop()
        yield part
        found = (name for name, kind, _ino in part.entries() if _is_directory(part, name, kind))
        waiting.extend(Dir(part.layer, part, name) for name in found)
        part.layer.cache.trim()


def _is_directory(part: Dir, name: bytes, kind: int) -> bool:
    if kind != DT_UNKNOWN:
        return kind == DT_DIR
    return stat.S_ISDIR(os.stat(name, dir_fd=part.descriptor(), follow_symlinks=False).st_mode)


# -- the marks -------------------------------------------------------------------------------------------------------


class _Content(NamedTuple):
    """What one directory of a layer holds, directories apart: deleted names by how they are, and its files."""

    devices: list[bytes]
    empty_files: list[bytes]
    markers: list[bytes]
    private: list[bytes]
    others: list[bytes]
    opaque: bool


def _read(part: Dir, *, hidden: bool) -> _Content:
    """Read a directory; ``hidden``: a marker beside it deletes what is below it."""
    content = _Content([], [], [], [], [], hidden or part.is_opaque(part.marks()))
    for name, kind, _ino in list(part.entries()):
        if not _is_directory(part, name, kind) or name.startswith(ondisk.WHITEOUT_PREFIX):
            _list_of(content, part, name, kind).append(name)
    return content


def _list_of(content: _Content, part: Dir, name: bytes, kind: int) -> list[bytes]:
    if name.startswith(ondisk.WHITEOUT_PREFIX):
        return content.markers if ondisk.hidden_by(name) is not None else content.private
    if kind not in (DT_CHR, DT_REG, DT_UNKNOWN):
        return content.others
    state = os.stat(name, dir_fd=part.descriptor(), follow_symlinks=False)
    if ondisk.is_whiteout(state.st_mode, state.st_rdev):
        return content.devices
    return content.empty_files if stat.S_ISREG(state.st_mode) and part.is_xattr_whiteout(name) else content.others


class _Conversion:
    """The passes over one layer: what is to be goes in, what was goes out."""

    def __init__(self, layer: WritableLayer) -> None:
        self._layer = layer
        self._dialect = layer.dialect
        self._deletions = 0
        self._hiding = 0

    def run(self) -> Converted:
        self._refuse_long_names()
        for work in (self._add, self._remove_names, self._remove_attributes):
            for part in _directories(self._layer.root):
                before = os.stat(part.descriptor())
                work(part, _read(part, hidden=self._is_marked(part)))
                put_times_back(part.descriptor(), before)
            files.syncfs(self._layer.root.fd)
        return Converted(self._deletions, self._hiding)

    def _refuse_long_names(self) -> None:
        """See, before anything is written, that each deleted name leaves room for the prefix of its marker."""
        if self._dialect.device_whiteouts:
            return
        for part in _directories(self._layer.root):
            content = _read(part, hidden=False)
            for name in (*content.devices, *content.empty_files):
                if len(ondisk.aufs_whiteout(name)) > _NAME_MAX_BYTES and not content.opaque:
                    reason = f"'{os.fsdecode(name)}', which is deleted, is too long for a marker"
                    path = self._layer.path + part.path()
                    raise errors.ConversionImpossible(path=path, dialect=self._dialect.name, reason=reason)

    def _is_marked(self, part: Dir) -> bool:
        return part.parent is not None and part.parent.has(ondisk.aufs_whiteout(part.name))

    # -- first pass --------------------------------------------------------------------------------------------------

    def _add(self, part: Dir, content: _Content) -> None:
        if content.opaque:
            self._hiding += 1
            for name in content.empty_files:  # superfluous, and no longer announced once the directory hides
                os.unlink(name, dir_fd=part.descriptor())
            self._hide(part)
        else:
            self._deletions += len(content.devices) + len(content.empty_files)
            self._deletions += sum(self._deletes(part, marker) for marker in content.markers)
            self._add_whiteouts(part, content)
        for name in (b".", *content.others):
            self._add_hints(part, name)

    def _hide(self, part: Dir) -> None:
        """Make a directory hide what is below it, in the new dialect."""
        directory = part.descriptor()
        if not (self._dialect.prefix is None and part.has(ondisk.OPAQUE_MARKER)):
            self._layer.mark_opaque(directory, b".")

    def _deletes(self, part: Dir, marker: bytes) -> bool:
        """Tell whether a marker is about a name that its own layer does not have."""
        hidden = ondisk.hidden_by(marker)
        return hidden is not None and not part.has(hidden)

    def _add_whiteouts(self, part: Dir, content: _Content) -> None:
        directory = part.descriptor()
        if self._dialect.device_whiteouts:
            for marker in content.markers:
                hidden = ondisk.hidden_by(marker)
                if hidden is not None and not part.has(hidden):
                    self._layer.write_whiteout(directory, hidden)
            return
        for name in (*content.devices, *content.empty_files):
            self._layer.write_whiteout(directory, name)

    def _add_hints(self, part: Dir, name: bytes) -> None:
        """Write the attributes of the format (but for what is deleted or hidden) under the new dialect's prefix."""
        path = part.proc_path(name)
        stored = attributes_of(path)
        for attribute in stored:
            wanted = self._renamed(attribute)
            if wanted is None or wanted in stored:
                continue
            value = os.getxattr(path, attribute, follow_symlinks=False)
            try:
                os.setxattr(path, wanted, value, follow_symlinks=False)
            except PermissionError:
                continue  # xattr(7): links and special files take no user.* attributes; they do without

    def _renamed(self, attribute: bytes) -> bytes | None:
        """Return what an attribute of another dialect is called in the new one, None if it has no place there."""
        for prefix in _PREFIXES:
            marker = attribute[len(prefix) :] if attribute.startswith(prefix) else b""
            if not marker or prefix == self._dialect.prefix or not ondisk.is_private_attribute(attribute):
                continue
            lost = marker in (ondisk.OPAQUE, ondisk.WHITEOUT)
            return None if lost or self._dialect.prefix is None else self._dialect.prefix + marker
        return None

    # -- second pass -------------------------------------------------------------------------------------------------

    def _remove_names(self, part: Dir, content: _Content) -> None:
        directory = part.descriptor()
        superfluous = content.opaque or not self._dialect.device_whiteouts
        if superfluous:
            for name in (*content.devices, *content.empty_files):
                os.unlink(name, dir_fd=directory)
        else:
            for name in content.empty_files:
                self._layer.rewrite_whiteout(directory, name)
        if self._dialect.device_whiteouts or content.opaque:
            for marker in content.markers:
                os.unlink(marker, dir_fd=directory)
        self._remove_private(directory, content.private)

    def _remove_private(self, directory: int, names: list[bytes]) -> None:
        for name in names:
            if self._dialect.device_whiteouts or name != ondisk.OPAQUE_MARKER:
                remove_tree(directory, name)

    # -- third pass --------------------------------------------------------------------------------------------------

    def _remove_attributes(self, part: Dir, content: _Content) -> None:
        for name in (b".", *content.others):
            self._remove_hints(part, name)

    def _remove_hints(self, part: Dir, name: bytes) -> None:
        path = part.proc_path(name)
        for attribute in attributes_of(path):
            if self._is_foreign(attribute) or self._says_whiteouts(path, attribute):
                try:
                    os.removexattr(path, attribute, follow_symlinks=False)
                except OSError as error:
                    if error.errno != errno.ENODATA:
                        raise

    def _is_foreign(self, attribute: bytes) -> bool:
        """Tell whether an attribute belongs to a layer's format, but not to the new dialect, which has no empty files
        that stand for deletions.
        """
        prefix = self._dialect.prefix
        own = prefix is not None and attribute.startswith(prefix) and attribute != prefix + ondisk.WHITEOUT
        return ondisk.is_private_attribute(attribute) and not own

    def _says_whiteouts(self, path: bytes, attribute: bytes) -> bool:
        """Tell whether it is what announces empty files that stand for deletions, of which none are left."""
        own = self._dialect.attribute(ondisk.OPAQUE)
        return attribute == own and os.getxattr(path, attribute, follow_symlinks=False) == b"x"
