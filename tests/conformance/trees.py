"""What a case starts from, as data: entries by name, written into one directory or spread over layers."""

from __future__ import annotations

import os
import socket
import stat
import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: The time of every entry that names none: 2001-09-09T01:46:40.123456789Z.
LONG_AGO_NS = 1_000_000_000_123_456_789


class Entry(NamedTuple):
    """One name. ``kind`` is a file type of stat(2), or ``link`` for another name of the file ``target``."""

    kind: int
    data: bytes = b""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    xattrs: Mapping[str, bytes] = {}
    mtime_ns: int = LONG_AGO_NS
    target: str = ""
    rdev: int = 0
    holes: Sequence[tuple[int, bytes]] = ()


_HARD_LINK = 0


def file(data: bytes = b"0123456789", mode: int = 0o644, **more: object) -> Entry:
    """Return a regular file; ``holes`` lists (offset, data) to write into an otherwise empty file instead."""
    return Entry(stat.S_IFREG, data, mode, **more)  # type: ignore[arg-type]


def folder(mode: int = 0o755, **more: object) -> Entry:
    """Return a directory."""
    return Entry(stat.S_IFDIR, b"", mode, **more)  # type: ignore[arg-type]


def symlink(target: str) -> Entry:
    """Return a symbolic link."""
    return Entry(stat.S_IFLNK, target=target)


def hard(target: str) -> Entry:
    """Return a further name of the file ``target`` of the same tree, which must be named before."""
    return Entry(_HARD_LINK, target=target)


def node(kind: int, mode: int = 0o644, rdev: int = 0) -> Entry:
    """Return a fifo, socket, or device."""
    return Entry(kind, mode=mode, rdev=rdev)


def names_in(tree: Mapping[str, Entry], directory: str = "") -> list[str]:
    """Return the sorted names that ``directory`` of the tree must list."""
    prefix = f"{directory}/" if directory else ""
    return sorted({name[len(prefix) :].split("/")[0] for name in tree if name.startswith(prefix)})


def build(root: Path, tree: Mapping[str, Entry]) -> None:
    """Write the whole tree below ``root``, made if need be.

    Times and default ACLs come last: making a child changes or takes its parent's.
    """
    root.mkdir(parents=True, exist_ok=True)
    directories = sorted(name for name, entry in tree.items() if entry.kind == stat.S_IFDIR)
    for name in (*directories, *(name for name in tree if name not in directories)):
        _make(root, name, tree[name])
    for name, entry in sorted(tree.items(), reverse=True):
        _dress(root / name, entry)


def spread(layers: Sequence[Path], name: str, tree: Mapping[str, Entry]) -> None:
    """Write the tree into ``layers`` (topmost first) as directory ``name``: a file into one, a directory into all.

    Below a file, other layers hold something else of its name, which must never be seen.
    """
    for index, layer in enumerate(layers):
        homes = {path: index if tree[path].kind == stat.S_IFDIR else _home(path, tree, len(layers)) for path in tree}
        mine = {path: tree[path] for path, home in homes.items() if home == index}
        hidden = {path: file(b"hidden by " + os.fsencode(path)) for path, home in homes.items() if home < index}
        build(layer / name, {**mine, **hidden})


def _home(path: str, tree: Mapping[str, Entry], count: int) -> int:
    """Return the layer of a file: names of one file share a layer."""
    entry = tree[path]
    return zlib.crc32(os.fsencode(entry.target if entry.kind == _HARD_LINK else path)) % count


def _make(root: Path, name: str, entry: Entry) -> None:
    path = root / name
    if entry.kind == _HARD_LINK:
        os.link(root / entry.target, path)
        return
    if entry.kind == stat.S_IFLNK:
        os.symlink(entry.target, path)
        return
    _make_real(path, entry)
    os.chown(path, *entry.owner)
    os.chmod(path, entry.mode)


def _make_real(path: Path, entry: Entry) -> None:
    if entry.kind == stat.S_IFDIR:
        path.mkdir()
    elif entry.kind == stat.S_IFREG:
        _write(path, entry)
    elif entry.kind == stat.S_IFSOCK:
        _bind(path)
    else:
        os.mknod(path, entry.kind | entry.mode, entry.rdev)


def _write(path: Path, entry: Entry) -> None:
    with path.open("wb") as out:
        out.write(entry.data)
        for offset, data in entry.holes:
            out.seek(offset)
            out.write(data)


def _bind(path: Path) -> None:
    """bind(2) takes 107 bytes of path: go through the descriptor of the directory."""
    directory = os.open(path.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)


def _dress(path: Path, entry: Entry) -> None:
    for key, value in entry.xattrs.items():
        os.setxattr(path, key, value)
    if entry.kind != _HARD_LINK:
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
