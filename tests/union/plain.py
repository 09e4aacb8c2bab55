"""What a stack of layers must show, worked out another way: copied layer by layer into a plain directory.

Independent of the engine on purpose: the rules of overlayfs.rst, in the order of the layers from the bottom up.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    import unionfs

OPAQUE = ("trusted.overlay.opaque", "user.overlay.opaque")


def flatten(lowers: Sequence[Path], target: Path) -> None:
    """Fill the empty directory ``target`` with what ``lowers``, topmost first, show together."""
    for layer in reversed(lowers):
        _lay(layer, target, {})


def _lay(source: Path, target: Path, links: dict[int, Path]) -> None:
    names = os.listdir(os.fsencode(source))
    for name in sorted(names):
        if name.startswith(b".wh."):
            _delete(target / os.fsdecode(name[4:]))
    for name in names:
        if not name.startswith(b".wh."):
            _lay_one(source / os.fsdecode(name), target / os.fsdecode(name), links)


def _lay_one(source: Path, target: Path, links: dict[int, Path]) -> None:
    state = source.lstat()
    if stat.S_ISCHR(state.st_mode) and state.st_rdev == 0:
        _delete(target)
        return
    if stat.S_ISDIR(state.st_mode):
        if not target.is_dir() or target.is_symlink() or _is_opaque(source):
            _delete(target)
            target.mkdir()
        _lay(source, target, links)
        _dress(source, target, state)
        return
    _delete(target)
    known = links.get(state.st_ino)
    if known is not None and state.st_nlink > 1 and os.path.lexists(known):
        os.link(known, target, follow_symlinks=False)
        return
    links[state.st_ino] = target
    if stat.S_ISLNK(state.st_mode):
        target.symlink_to(os.readlink(source))
    elif stat.S_ISREG(state.st_mode):
        shutil.copyfile(source, target)
    else:
        os.mknod(target, state.st_mode, state.st_rdev)
    _dress(source, target, state)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def _is_opaque(directory: Path) -> bool:
    marks = [os.getxattr(directory, name) for name in OPAQUE if name in os.listxattr(directory)]
    return b"y" in marks or (directory / ".wh..wh..opq").exists()


def _dress(source: Path, target: Path, state: os.stat_result) -> None:
    os.chown(target, state.st_uid, state.st_gid, follow_symlinks=False)
    if not target.is_symlink():
        os.chmod(target, stat.S_IMODE(state.st_mode))
    for name in os.listxattr(target, follow_symlinks=False):  # of a directory of this name in a lower layer
        os.removexattr(target, name, follow_symlinks=False)
    for name in os.listxattr(source, follow_symlinks=False):
        if ".overlay." not in name:
            os.setxattr(target, name, os.getxattr(source, name, follow_symlinks=False), follow_symlinks=False)
    os.utime(target, ns=(state.st_mtime_ns, state.st_mtime_ns), follow_symlinks=False)


class Facts(NamedTuple):
    """What is compared of one name; the times of directories are left out, since changing what is inside sets them."""

    kind: int
    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    names: tuple[str, ...]
    mtime_ns: int
    content: bytes
    xattrs: tuple[tuple[str, bytes], ...]


def of_directory(root: Path) -> dict[str, Facts]:
    """Return the facts of all below a plain directory."""
    return _with_names(_collect(os, os.fspath(root), ""))


def of_union(union: unionfs.Union) -> dict[str, Facts]:
    """Return the facts of all in a union."""
    return _with_names(_collect(union, "", ""))


Found = dict[str, tuple[Facts, os.stat_result]]


def _with_names(found: Found) -> dict[str, Facts]:
    """Give each file with several names all of these; st_nlink may count more of them, but not fewer."""
    inodes: dict[int, list[str]] = {}
    for path, (facts, state) in found.items():
        if facts.kind != stat.S_IFDIR:
            inodes.setdefault(state.st_ino, []).append(path)
    names = {path: tuple(sorted(paths)) for paths in inodes.values() for path in paths}
    assert [path for path in names if found[path][1].st_nlink < len(names[path])] == []
    return {path: facts._replace(names=names.get(path, ())) for path, (facts, _state) in found.items()}


def _collect(api: Any, root: str, path: str) -> Found:
    found: Found = {}
    for name in api.listdir(f"{root}{path}/"):
        below = f"{path}/{name}"
        state = api.lstat(root + below)
        found[below] = _facts(api, root + below, state), state
        if stat.S_ISDIR(state.st_mode):
            found |= _collect(api, root, below)
    return found


def _facts(api: Any, path: str, state: os.stat_result) -> Facts:
    directory = stat.S_ISDIR(state.st_mode)
    content = b""
    if stat.S_ISLNK(state.st_mode):
        content = os.fsencode(api.readlink(path))
    elif stat.S_ISREG(state.st_mode):
        content = Path(path).read_bytes() if api is os else api.read_bytes(path)
    names = sorted(api.listxattr(path, follow_symlinks=False))
    return Facts(
        stat.S_IFMT(state.st_mode),
        stat.S_IMODE(state.st_mode),
        state.st_uid,
        state.st_gid,
        0 if directory else state.st_size,
        state.st_rdev,
        (),
        0 if directory else state.st_mtime_ns,
        content,
        tuple((key, api.getxattr(path, key, follow_symlinks=False)) for key in names),
    )


def differences(one: dict[str, Facts], other: dict[str, Facts]) -> list[str]:
    """Return a line for each path that one tree alone has, and for each fact that differs."""
    lines = [
        f"{path!r} is only in {'the first' if path in one else 'the second'}"
        for path in sorted(one.keys() ^ other.keys())
    ]
    for path in sorted(one.keys() & other.keys()):
        pairs = zip(Facts._fields, one[path], other[path], strict=True)
        lines += [f"{path!r}: {field}: {mine!r} != {theirs!r}" for field, mine, theirs in pairs if mine != theirs]
    return lines
