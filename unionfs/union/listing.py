"""What a directory holds, in an order that lasts: the position of a name is its cookie for seekdir(3) and telldir(3).

A listing is read from the layers while it is being asked for, keeps every name's position for as long as it lives, and
takes note of names that come and go. So a reader sees each name that stood all along exactly once, whatever others do.
"""

from __future__ import annotations

from array import array

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

Found = tuple[bytes, int, int]
"""name, DT_* type, inode number (0: to be looked up)."""


class Listing:
    """The names of one directory, ``.`` and ``..`` apart, by position."""

    __slots__ = ("_index", "_source", "inos", "kinds", "names")

    def __init__(self, source: Iterator[Found]) -> None:
        self._source: Iterator[Found] | None = source
        self._index: dict[bytes, int] | None = None
        self.names: list[bytes | None] = []
        self.kinds = bytearray()
        self.inos = array("Q")

    def reaches(self, position: int) -> bool:
        """Tell whether there is an entry at ``position``, reading on from the layers as far as that needs.

        Raises OSError.
        """
        while position >= len(self.names):
            found = next(self._source, None) if self._source is not None else None
            if found is None:
                self._source = None
                return False
            self._append(found)
        return True

    def _append(self, found: Found) -> None:
        name, kind, ino = found
        self.names.append(name)
        self.kinds.append(kind)
        self.inos.append(ino)

    def _positions(self) -> dict[bytes, int]:
        """Return where each name stands, having read the listing to its end: from now on it follows the changes."""
        if self._index is None:
            self.reaches(1 << 62)
            self._index = {name: position for position, name in enumerate(self.names) if name is not None}
        return self._index

    def add(self, name: bytes, kind: int, ino: int) -> None:
        """Take note that ``name`` exists now, or is another file now."""
        positions = self._positions()
        position = positions.get(name)
        if position is None:
            positions[name] = len(self.names)
            self._append((name, kind, ino))
        else:
            self.kinds[position] = kind
            self.inos[position] = ino

    def remove(self, name: bytes) -> None:
        """Take note that ``name`` is gone."""
        position = self._positions().pop(name, None)
        if position is not None:
            self.names[position] = None
