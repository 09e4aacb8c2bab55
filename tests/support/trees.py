"""Directory trees as values: snapshots that can be compared, with a readable difference.

Names are bytes, and a tree is walked through descriptors, so that no depth and no name is out of reach. Nothing is
followed, and nothing but regular files is opened for reading.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple

import xxhash

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
CHUNK_BYTES = 1 << 20
SHOWN_DIFFERENCES = 40

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Entry(NamedTuple):
    """What programs see of one name, without what each file system decides for itself.

    ``size`` (bytes) is 0 for directories; ``digest`` is of a file's data; ``links`` holds all names of a hard link.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    digest: str
    target: bytes
    rdev: int
    xattrs: tuple[tuple[str, bytes], ...]
    links: tuple[bytes, ...]


Tree = dict[bytes, Entry]


def snapshot(root: Path | str | bytes) -> Tree:
    """Return all that is below ``root``, by its path from there; b"" is ``root`` itself. Raises OSError."""
    tree: Tree = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    for path, directory, name in _walk(root):
        found = os.lstat(name, dir_fd=directory)
        tree[path] = _entry(directory, name, found)
        if found.st_nlink > 1 and not stat.S_ISDIR(found.st_mode):
            inodes.setdefault((found.st_dev, found.st_ino), []).append(path)
    for paths in inodes.values():
        for path in paths if len(paths) > 1 else ():
            tree[path] = tree[path]._replace(links=tuple(sorted(paths)))
    return tree


def _walk(root: Path | str | bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """Yield (path, descriptor of its directory, name), holding one descriptor whatever the depth: up goes by "..".

    A list of what is yet to come is kept a level, as in a recursive walk.
    """
    current = os.open(root, _DIRECTORY)
    try:
        yield b"", current, b"."
        pending = [_names(current)]
        path: list[bytes] = []
        while pending:
            if not pending[-1]:
                pending.pop()
                if path:
                    path.pop()
                    current = _move(current, b"..")
                continue
            name = pending[-1].pop()
            yield b"/".join((*path, name)), current, name
            if stat.S_ISDIR(os.lstat(name, dir_fd=current).st_mode):
                current = _move(current, name)
                path.append(name)
                pending.append(_names(current))
    finally:
        os.close(current)


def _names(directory: int) -> list[bytes]:
    return sorted(map(os.fsencode, os.listdir(directory)), reverse=True)


def _move(directory: int, name: bytes) -> int:
    """Open ``name`` in place of ``directory``."""
    there = os.open(name, _DIRECTORY, dir_fd=directory)
    os.dup2(there, directory, inheritable=False)
    os.close(there)
    return directory


def _entry(directory: int, name: bytes, found: os.stat_result) -> Entry:
    form = stat.S_IFMT(found.st_mode)
    return Entry(
        kind=KINDS[form],
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        size=0 if form == stat.S_IFDIR else found.st_size,
        mtime_ns=found.st_mtime_ns,
        digest=_digest(directory, name) if form == stat.S_IFREG else "",
        target=os.readlink(name, dir_fd=directory) if form == stat.S_IFLNK else b"",
        rdev=found.st_rdev if form in (stat.S_IFCHR, stat.S_IFBLK) else 0,
        xattrs=_xattrs(directory, name),
        links=(),
    )


def _digest(directory: int, name: bytes) -> str:
    state = xxhash.xxh3_128()
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        while data := os.read(descriptor, CHUNK_BYTES):
            state.update(data)
    finally:
        os.close(descriptor)
    return state.hexdigest()


def _xattrs(directory: int, name: bytes) -> tuple[tuple[str, bytes], ...]:
    """Read them through /proc: there are no *at calls for xattrs, and an O_PATH descriptor takes none; see open(2)."""
    descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        place = f"/proc/self/fd/{descriptor}"
        return tuple((key, os.getxattr(place, key)) for key in sorted(os.listxattr(place)))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:  # the file system has none
            raise
        return ()
    finally:
        os.close(descriptor)


def differences(before: Tree, after: Tree, ignore: Collection[str] = ()) -> list[str]:
    """Return a line for each name that only one tree has and each field that differs, but those to ``ignore``."""
    lines = [f"only in the first:  {_describe(name, before[name])}" for name in sorted(before.keys() - after.keys())]
    lines += [f"only in the second: {_describe(name, after[name])}" for name in sorted(after.keys() - before.keys())]
    for name in sorted(before.keys() & after.keys()):
        one, other = before[name]._asdict(), after[name]._asdict()
        lines += [
            f"{os.fsdecode(name) or '.'!r}: {field}: {_show(field, one)} != {_show(field, other)}"
            for field in Entry._fields
            if field not in ignore and one[field] != other[field]
        ]
    return lines


def _describe(name: bytes, entry: Entry) -> str:
    return f"{os.fsdecode(name)!r} ({entry.kind}, {entry.mode:04o}, {entry.size} bytes)"


def _show(field: str, values: Mapping[str, object]) -> str:
    value = values[field]
    return f"{value:04o}" if field == "mode" else repr(value)


def assert_same_tree(
    one: Tree | Path | str | bytes, other: Tree | Path | str | bytes, *, ignore: Collection[str] = ()
) -> None:
    """Fail with the differences between two trees, or snapshots of them; ``ignore`` names fields of ``Entry``."""
    unknown = set(ignore) - set(Entry._fields)
    assert not unknown, f"no such field: {unknown}"
    first, second = (tree if isinstance(tree, dict) else snapshot(tree) for tree in (one, other))
    lines = differences(first, second, ignore)
    more = [f"... and {len(lines) - SHOWN_DIFFERENCES} more"] if len(lines) > SHOWN_DIFFERENCES else []
    assert not lines, "the trees differ:\n" + "\n".join(lines[:SHOWN_DIFFERENCES] + more)


def digest_of_layer(root: Path | str | bytes) -> str:
    """Return a digest of all that must never change in a lower layer: every entry, with inode number and change time.

    The change time tells of what was changed and put back. Times of access are left out: reading a layer is allowed.
    """
    state = xxhash.xxh3_128()
    for path, directory, name in _walk(root):
        found = os.lstat(name, dir_fd=directory)
        entry = _entry(directory, name, found)
        state.update(repr((path, found.st_ino, found.st_nlink, found.st_ctime_ns, entry)).encode())
    return state.hexdigest()
