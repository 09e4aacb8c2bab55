"""Going through directories of a union: ``scandir``, ``walk`` and ``glob`` on top of a listing with types."""

from __future__ import annotations

import fnmatch
import os
import posixpath
import stat as modes
from pathlib import PurePosixPath
from typing import AnyStr, Generic

from unionfs.layers.layer import DT_DIR, DT_LNK, DT_REG

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from unionfs.union.listing import Found
    from unionfs.union.reading import Reading


class Entry(Generic[AnyStr]):
    """One name of a directory, as :class:`os.DirEntry`: its type is known without asking for its attributes."""

    __slots__ = ("_ino", "_kind", "_union", "name", "path")

    def __init__(self, union: Reading, directory: AnyStr, name: AnyStr, kind: int, ino: int) -> None:
        self.name: AnyStr = name
        self.path: AnyStr = posixpath.join(directory, name)
        self._union = union
        self._kind = kind
        self._ino = ino

    def __repr__(self) -> str:
        return f"<Entry {self.name!r}>"

    def __fspath__(self) -> AnyStr:
        return self.path

    def inode(self) -> int:
        """Return the inode number that :meth:`stat` would give. Raises OSError if it has to be looked up."""
        return self._ino or self._union.lstat(self.path).st_ino

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether this is a directory, or a link to one. Raises OSError (EACCES) if a link cannot be followed."""
        return self._is(DT_DIR, modes.S_IFDIR, follow=follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Tell whether this is a regular file, or a link to one. Raises OSError as :meth:`is_dir` does."""
        return self._is(DT_REG, modes.S_IFREG, follow=follow_symlinks)

    def is_symlink(self) -> bool:
        """Tell whether this is a symbolic link."""
        return self._kind == DT_LNK

    def _is(self, kind: int, form: int, *, follow: bool) -> bool:
        if not (follow and self._kind == DT_LNK):
            return self._kind == kind
        return modes.S_IFMT(self._union._mode(self.path, follow=True)) == form

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the attributes of the file as they are now; see ``Union.stat``. Raises OSError."""
        return self._union.stat(self.path, follow_symlinks=follow_symlinks)


class Scan(Generic[AnyStr]):
    """An iterator over the entries of one directory; it holds no descriptor, so closing it is a courtesy."""

    def __init__(self, union: Reading, path: AnyStr, found: list[Found], decode: Callable[[bytes], AnyStr]) -> None:
        entries = (Entry(union, path, decode(name), kind, ino) for name, kind, ino in found)
        self._entries: Generator[Entry[AnyStr], None, None] = entries

    def __iter__(self) -> Iterator[Entry[AnyStr]]:
        return self

    def __next__(self) -> Entry[AnyStr]:
        return next(self._entries)

    def __enter__(self) -> Scan[AnyStr]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the iteration."""
        self._entries.close()


def walk(
    union: Reading, top: str, *, topdown: bool, onerror: Callable[[OSError], object] | None, followlinks: bool
) -> Iterator[tuple[str, list[str], list[str]]]:
    """Walk a tree as :func:`os.walk` does, without recursion."""
    waiting: list[str | tuple[str, list[str], list[str]]] = [top]
    while waiting:
        current = waiting.pop()
        if isinstance(current, tuple):
            yield current
            continue
        try:
            found = _split(union, current)
        except OSError as error:
            if onerror is not None:
                onerror(error)
            continue
        if topdown:
            yield found
        else:
            waiting.append(found)
        below = [posixpath.join(current, name) for name in reversed(found[1])]
        waiting.extend(path for path in below if followlinks or not union.is_symlink(path))


def _split(union: Reading, path: str) -> tuple[str, list[str], list[str]]:
    directories: list[str] = []
    others: list[str] = []
    for entry in union.scandir(path):
        (directories if entry.is_dir() else others).append(entry.name)
    return path, directories, others


def glob(union: Reading, pattern: str) -> Iterator[PurePosixPath]:
    """Yield each path that matches ``pattern``, once."""
    if not pattern:
        raise ValueError("an empty pattern matches nothing")
    parts = [part for part in pattern.split("/") if part]
    seen: set[PurePosixPath] = set()
    for path in _match(union, PurePosixPath("/"), parts):
        if path not in seen:
            seen.add(path)
            yield path


def _match(union: Reading, base: PurePosixPath, parts: list[str]) -> Iterator[PurePosixPath]:
    if not parts:
        yield base
        return
    part, rest = parts[0], parts[1:]
    if part == "**":
        for directory, _, _ in union.walk(base):
            yield from _match(union, PurePosixPath(directory), rest)
    elif not any(char in part for char in "*?["):
        if union.exists(base / part, follow_symlinks=bool(rest)):
            yield from _match(union, base / part, rest)
    else:
        yield from _match_names(union, base, part, rest)


def _match_names(union: Reading, base: PurePosixPath, part: str, rest: list[str]) -> Iterator[PurePosixPath]:
    if not union.is_dir(base):
        return
    for entry in union.scandir(str(base)):
        if fnmatch.fnmatchcase(entry.name, part):
            yield from _match(union, base / entry.name, rest)
