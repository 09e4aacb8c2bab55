"""What directories of layers say: which names each shows, which it deletes further down, and where the layer ends; and
what inode numbers of their files are to be shown.

The merged view is made of such pieces; what they are in it, it knows itself. Reads only, as overlayfs.rst has it.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import ondisk
from unionfs.layers.layer import DT_CHR, DT_DIR, DT_REG, DT_UNKNOWN, Dir, columns, subvolume_of
from unionfs.lean import NamedTuple
from unionfs.syscalls import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Set
    from typing import Any

    from unionfs.layers.layer import Columns, Entry, Layer
    from unionfs.ondisk import Origin
    from unionfs.union.nodes import DirNode, Table

_S_IFMT = 0o170000
_S_IFCHR = stat.S_IFCHR
_S_IFREG = stat.S_IFREG
_FILESYSTEM_SHIFT = 48
_SUBVOLUMES = 0x4000
"""From this number on file systems are subvolumes, as many again; bit 15 is that of ids apart, see ``nodes``."""
_EVERY_INO = 1 << 64
_MAYBE_WHITEOUTS = bytes((DT_CHR, DT_UNKNOWN))


def stat_directory(part: Dir) -> os.stat_result:
    """Return the attributes of a directory of one layer. Raises OSError."""
    if part.fd >= 0:
        return os.stat(part.fd)
    assert part.parent is not None
    return os.stat(part.name, dir_fd=part.parent.descriptor(), follow_symlinks=False)


def place(part: Dir) -> tuple[int, bytes]:
    """Return a descriptor and the name beneath it at which a directory of one layer stands. Raises OSError."""
    return (part.descriptor(), b".") if part.parent is None else (part.parent.descriptor(), part.name)


def named(parts: Iterable[Dir], name: bytes) -> Iterator[Dir]:
    """Yield the directories called ``name`` in ``parts``, ending at the first whiteout or file of that name."""
    above: Dir | None = None
    for part in parts:
        if above is not None and above.has(ondisk.aufs_whiteout(name)):
            return
        above = part
        try:
            state = os.stat(name, dir_fd=part.descriptor(), follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(state.st_mode):
            return
        yield Dir(part.layer, part, name)


def ends_at(part: Dir) -> bool:
    """Tell whether a layer ends at this directory: because something is mounted there (openat2(2)), or it is hidden."""
    try:
        descriptor = part.descriptor()
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return True
    hidden = part.layer.hidden
    if not hidden:
        return False
    state = os.stat(descriptor)
    return (state.st_dev, state.st_ino) in hidden


def shown(part: Dir, deleted: list[bytes]) -> Iterator[Columns]:
    """Yield the names of one layer's directory that show, many at a time, and add to ``deleted`` those that it hides
    below itself.
    """
    empty_files = part.has_xattr_whiteouts()
    doubtful = _MAYBE_WHITEOUTS + bytes((DT_REG,)) if empty_files else _MAYBE_WHITEOUTS
    for found in part.batches():
        names, kinds, _inos = found
        if kinds.translate(None, doubtful) == kinds and ondisk.WHITEOUT_PREFIX not in b"/".join(names):
            yield found
        else:
            yield columns(_sifted(part, found, deleted, empty_files=empty_files))


def _sifted(part: Dir, found: Columns, deleted: list[bytes], *, empty_files: bool) -> Iterator[Entry]:
    for name, kind, ino in zip(*found, strict=True):
        if name.startswith(ondisk.WHITEOUT_PREFIX):
            hidden = ondisk.hidden_by(name)
            if hidden is not None:
                deleted.append(hidden)
            continue
        if kind == DT_UNKNOWN:
            kind = stat.S_IFMT(os.stat(name, dir_fd=part.descriptor(), follow_symlinks=False).st_mode) >> 12
        if kind == DT_CHR and (ino in part.layer.whiteouts or _is_device_whiteout(part, name)):
            deleted.append(name)
            continue
        if empty_files and kind == DT_REG and part.is_xattr_whiteout(name):
            deleted.append(name)
            continue
        yield name, kind, ino


def _is_device_whiteout(part: Dir, name: bytes) -> bool:
    state = os.stat(name, dir_fd=part.descriptor(), follow_symlinks=False)
    return ondisk.is_whiteout(state.st_mode, state.st_rdev)


def table(node: DirNode, lowers: tuple[Dir, ...]) -> Table:
    """Return the table of the lower parts of ``node``, several ones; a listing that was begun reads it by the way.

    Raises OSError.
    """
    if node.table is None and node.listing is not None:
        node.listing.finish()
    if node.table is None:
        for _ in merged(node, lowers):
            pass
    assert node.table is not None
    return node.table


def merged(node: DirNode, lowers: tuple[Dir, ...]) -> Iterator[tuple[Dir, Columns]]:
    """Yield the names in the lower parts of ``node`` once each, many at a time; at the end of several the table stands.

    Raises OSError.
    """
    names: Table = {}
    closed: set[bytes] = set()
    merge = len(lowers) > 1
    for position, part in enumerate(lowers):
        deleted: list[bytes] = []
        for found in shown(part, deleted):
            yield part, _enter(found, position, names, closed) if merge else found
        closed.update(deleted)
    if merge and node.lowers is lowers:
        node.table = names


def without(found: Columns, hidden: Set[bytes]) -> Columns:
    """Return what is not among the names that are ``hidden``."""
    if hidden.isdisjoint(found[0]):
        return found
    return columns(entry for entry in zip(*found, strict=True) if entry[0] not in hidden)


def _enter(found: Columns, position: int, names: Table, closed: set[bytes]) -> Columns:
    """Enter names of directory number ``position``; return those that are new. ``closed`` are names that have ended."""
    here = (position,)
    found = without(found, closed)
    new = without(found, names.keys())
    if new is not found:
        for name, kind, _ino in zip(*found, strict=True):
            known = names.get(name)
            if isinstance(known, tuple):
                if kind == DT_DIR:
                    names[name] = known + here
                else:
                    closed.add(name)
    names.update(dict.fromkeys(new[0], position))
    if DT_DIR in new[1]:
        names.update((name, here) for name, kind, _ino in zip(*new, strict=True) if kind == DT_DIR)
    return new


def is_merged(node: DirNode) -> bool:
    """Tell whether several layers make up a directory, as far as that is known without a look at its attributes.

    That may be said of one that hides what is below it, until it is entered.
    """
    if node.upper is not None:
        return bool(node.lowers)
    if node.lowers is not None or node.parent is None:
        return len(node.lowers or ()) > 1
    positions = (node.parent.table or {}).get(node.name)
    return isinstance(positions, tuple) and len(positions) > 1


def is_whiteout(part: Dir, name: bytes, state: os.stat_result) -> bool:
    """Tell whether an empty file deletes its name."""
    kind = state.st_mode & _S_IFMT
    return (kind == _S_IFCHR and state.st_rdev == 0) or (kind == _S_IFREG and part.is_xattr_whiteout(name))


def with_field(state: os.stat_result, **changed: int) -> os.stat_result:
    """Return the same attributes but for those that are named, of the ones beyond the tuple (st_blocks, st_rdev …)."""
    reduced: Any = state.__reduce__()
    fields, others = reduced[1]  # ten fields in the order of stat_result, and the rest by name
    return os.stat_result(fields, {**others, **changed})


def devices_of_programs(state: os.stat_result) -> os.stat_result:
    """Return attributes as a program is to see them, to whom a nested overlay's whiteout is the device 0:0."""
    rdev = ondisk.unescape_device(state.st_mode, state.st_rdev)
    return state if rdev == state.st_rdev else with_field(state, st_rdev=rdev)


# -- inode numbers -----------------------------------------------------------------------------------------------------


class Numbering(NamedTuple):
    """How the listings of one file system, or subvolume of btrfs, tell inode numbers.

    A directory may be a subvolume, whose number is another one than its listing tells, if that is one of ``nested`` or
    not above ``doubtful``.
    """

    base: int
    doubtful: int = 0
    nested: frozenset[int] | range = frozenset()


class Numbers:
    """What inode numbers are combined with (by ``^``) to be unique over all file systems of a stack, and stay the same
    after a copy-up and at the next mount: ``bases`` are those known by st_dev.

    A file system has its place among the layers. One that begins in the middle of a layer, without a mount, is a
    subvolume of btrfs: its own number tells it, whichever is met first. Handles of its files hold that (``struct
    btrfs_fid`` in fs/btrfs/export.h), those that copies keep as their origin among them.
    """

    __slots__ = ("_numberings", "_subvolumes", "bases")

    def __init__(self, layers: Iterable[Layer]) -> None:
        self.bases: dict[int, int] = {}
        self._numberings: dict[int, Numbering] = {}  # by st_dev
        self._subvolumes: dict[tuple[bytes, int], int] = {}
        for layer in layers:
            base = self.bases.setdefault(layer.dev, len(self.bases) << _FILESYSTEM_SHIFT)
            if layer.subvolume is not None:
                self._subvolumes[layer.uuid, layer.subvolume] = base

    def enter(self, dev: int, part: Dir | None, name: bytes) -> int:
        """Return the base of a file system that is met for the first time: at ``name`` in ``part``, or at ``part``."""
        subvolume = None
        if part is not None and part.layer.subvolume is not None:
            subvolume = subvolume_of(part.descriptor(), name)
        if part is None or subvolume is None:
            base = len(self.bases) << _FILESYSTEM_SHIFT
        else:
            base = self._of_subvolume(part.layer.uuid, subvolume)
        self.bases[dev] = base
        return base

    def of_listing(self, part: Dir) -> Numbering:
        """Return how a listing of ``part`` tells inode numbers. Raises OSError."""
        layer = part.layer
        numbering = self._numberings.get(layer.dev) or self._number(layer.dev, layer.root)
        if not numbering.nested:  # then all of the layer is in the same one
            return numbering
        dev = os.stat(part.descriptor()).st_dev
        return self._numberings.get(dev) or self._number(dev, part)

    def _number(self, dev: int, part: Dir) -> Numbering:
        """Find out the same for what ``part`` is in: a snapshot has empty directories in the place of subvolumes, which
        listings tell by the numbers of these; they are less than its own (``btrfs_get_free_objectid``).
        """
        base = self.bases.get(dev)
        base = self.enter(dev, part, b"") if base is None else base
        told = () if part.layer.subvolume is None else _subvolumes(part.descriptor())
        self._numberings[dev] = found = Numbering(base, *told)
        return found

    def of_origin(self, origin: Origin, layer: Layer) -> int:
        """Return the base of the file that a copy came from, on the file system of ``layer``."""
        if origin.subvolume is None:
            return self.bases[layer.dev]
        return self._of_subvolume(layer.uuid, origin.subvolume)

    def _of_subvolume(self, uuid: bytes, subvolume: int) -> int:
        base = self._subvolumes.get((uuid, subvolume))
        if base is None:
            taken = set(self._subvolumes.values())
            numbers = (_SUBVOLUMES | (subvolume + step) % _SUBVOLUMES for step in range(_SUBVOLUMES))
            base = next(number << _FILESYSTEM_SHIFT for number in numbers if number << _FILESYSTEM_SHIFT not in taken)
            self._subvolumes[uuid, subvolume] = base
        return base


def _subvolumes(directory: int) -> tuple[int, frozenset[int] | range]:
    """Return the subvolume of btrfs that an open directory is in, and those that begin there: any may where that is not
    told.
    """
    try:
        return subvolume_of(directory, b"") or _EVERY_INO, frozenset(files.subvolumes_in(directory))
    except OSError:
        return _EVERY_INO, range(_EVERY_INO)
