"""What a directory holds, in an order that lasts: the position of a name is its cookie for seekdir(3) and telldir(3).

A listing is read from the layers while it is being asked for, keeps every name's position for as long as it lives, and
takes note of names that come and go. So a reader sees each name that stood all along exactly once, whatever others do.
What is new takes a place that became free, or else one before the first: a reader who makes or renames a file for each
name that it gets comes to an end.
"""

from __future__ import annotations

from struct import Struct, pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator

    from unionfs.layers.layer import Columns

Found = tuple[bytes, int, int]
"""name, DT_* type, inode number (0: to be looked up)."""
Run = tuple[int, "list[bytes]", bytes, "list[int]"]
"""Rows that follow one another: the position of the first; names, empty where one is gone; DT_* types; inode numbers
(0: to be looked up)."""

UNKNOWN_INO = 0xFFFFFFFF
"""The number to tell where a lookup is refused, as libfuse has it: 0 would be no name at all."""
_INO = Struct("=Q")
_STRIDE = 256
_BIAS = 1 << 30
"""The offset of position 0: room for positions below it, and an offset that fits into 31 bits, as some want it."""


def offset_after(position: int) -> int:
    """Return the offset at which what follows ``position`` begins."""
    return _BIAS + position + 1


def after_change(listing: Listing | None, stat: Callable[[], os.stat_result]) -> os.stat_result:
    """Return the attributes of what has just got a name in a directory, with which its ``listing`` is to follow.

    Raises OSError; the name is there all the same, so the directory is to be read again.
    """
    try:
        return stat()
    except OSError:
        if listing is not None:
            listing.failed = True
        raise


class _Rows:
    """Names with their types and inode numbers; empty where a name is gone.

    Numbers are packed, and by hand: the module ``array`` takes longer to load than a stack to open.
    """

    __slots__ = ("_inos", "kinds", "names")

    def __init__(self) -> None:
        self.names: list[bytes] = []
        self.kinds = bytearray()
        self._inos = bytearray()

    def extend(self, found: Columns) -> None:
        """Append what a directory holds."""
        names, kinds, inos = found
        self.names += names
        self.kinds += kinds
        self._inos += pack(f"={len(inos)}Q", *inos)

    def inos(self, start: int, end: int) -> list[int]:
        """Return the inode numbers in some rows."""
        return memoryview(self._inos[start * _INO.size : end * _INO.size]).cast("Q").tolist()

    def ino(self, row: int) -> int:
        """Return the inode number in one row."""
        number: int = _INO.unpack_from(self._inos, row * _INO.size)[0]
        return number

    def set_ino(self, row: int, ino: int) -> None:
        """Change the inode number in one row."""
        _INO.pack_into(self._inos, row * _INO.size, ino)


class Listing:
    """The names of one directory, ``.`` and ``..`` apart, by position: from 0 as read, below 0 what came later.

    One that ``failed`` could not be read to its end: it lacks names, and another has to take its place.
    """

    __slots__ = ("_free", "_index", "_late", "_read", "_source", "failed")

    def __init__(self, source: Iterator[Columns]) -> None:
        self._source: Iterator[Columns] | None = source
        self._index: dict[bytes, int] | None = None
        self._free: list[int] = []
        self._read = _Rows()
        self._late = _Rows()
        self.failed = False

    def position(self, offset: int) -> int:
        """Return where to go on at ``offset``; any that is none of ours means the start."""
        return max(offset - _BIAS, -len(self._late.names))

    def reaches(self, position: int) -> bool:
        """Tell whether there is an entry at ``position``, reading on from the layers as far as that needs.

        Raises OSError.
        """
        names = self._read.names
        while position >= len(names):
            try:
                found = next(self._source, None) if self._source is not None else None
            except OSError:
                self.failed = True
                raise
            if found is None:
                self._source = None
                return False
            self._read.extend(found)
        return True

    def finish(self) -> None:
        """Read what is left in the layers. Raises OSError."""
        self.reaches(1 << 62)

    def read_so_far(self) -> int:
        """Return how many names have been read from the layers until now."""
        return len(self._read.names)

    def runs(self, position: int) -> Iterator[Run]:
        """Yield what there is from ``position`` on, many rows at a time. Raises OSError."""
        for late in range(position, 0):
            yield late, [self._late.names[~late]], bytes((self._late.kinds[~late],)), [self._late.ino(~late)]
        start = max(position, 0)
        while self.reaches(start):
            rows = self._read
            end = min(start + _STRIDE, len(rows.names))
            yield start, rows.names[start:end], bytes(rows.kinds[start:end]), rows.inos(start, end)
            start = end

    def entries(self, position: int) -> Iterator[tuple[int, bytes, int, int]]:
        """Yield the same one by one: position, name, DT_* type, inode number (0 while it is not known).

        Raises OSError.
        """
        for first, names, kinds, inos in self.runs(position):
            for row, name in enumerate(names):
                if name:
                    yield first + row, name, kinds[row], inos[row]

    def set_ino(self, position: int, ino: int) -> None:
        """Keep the inode number of the entry at ``position``."""
        rows, row = self._row(position)
        rows.set_ino(row, ino)

    def add(self, name: bytes, kind: int, ino: int) -> None:
        """Take note that ``name`` exists now, or is another file now."""
        positions = self._positions()
        position = positions.get(name)
        if position is None:
            position = positions[name] = self._take_place()
        rows, row = self._row(position)
        rows.names[row], rows.kinds[row] = name, kind
        rows.set_ino(row, ino)

    def is_empty(self) -> bool:
        """Tell whether it has no name, reading on until there is one. Raises OSError."""
        return not self.reaches(0) if self._index is None else not self._index

    def remove(self, name: bytes) -> None:
        """Take note that ``name`` is gone."""
        position = self._positions().pop(name, None)
        if position is not None:
            rows, row = self._row(position)
            rows.names[row] = b""
            self._free.append(position)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _row(self, position: int) -> tuple[_Rows, int]:
        return (self._read, position) if position >= 0 else (self._late, ~position)

    def _take_place(self) -> int:
        """Return the place that became free last, so that a name that changes keeps its own, or a new one."""
        if self._free:
            return self._free.pop()
        self._late.extend(([b""], b"\0", [0]))
        return -len(self._late.names)

    def _positions(self) -> dict[bytes, int]:
        """Return where each name stands, having read the listing to its end: from now on it follows the changes."""
        if self._index is None:
            try:
                self.finish()
            except OSError:
                pass  # the change itself is done
            self._index = {name: position for position, name in enumerate(self._read.names) if name}
        return self._index
