"""What the tests of this directory do to a stack, the stack itself, and what it shows."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from unionfs import Union

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Operation = Callable[[Union], None]


def _append(path: str) -> Operation:
    def append(union: Union) -> None:
        with union.open(path, "ab") as stream:
            stream.write(b" and more")

    return append


def _over(source: str, target: str) -> Operation:
    return lambda union: union.rename(source, target)


OPERATIONS: dict[str, Operation] = {
    "chmod a lower file": lambda union: union.chmod("/file", 0o640),
    "chown a lower file with attributes": lambda union: union.chown("/marked", 12, 34),
    "chmod a file in lower directories": lambda union: union.chmod("/dir/sub/deep", 0o600),
    "chmod a lower directory": lambda union: union.chmod("/dir/sub", 0o711),
    "chown a lower link": lambda union: union.chown("/link", 5, 6, follow_symlinks=False),
    "chmod one of several links": lambda union: union.chmod("/twin1", 0o604),
    "truncate a lower file to nothing": lambda union: union.truncate("/file", 0),
    "set an attribute": lambda union: union.setxattr("/file", "user.note", b"new"),
    "unlink a lower file": lambda union: union.unlink("/file"),
    "unlink one of several links": lambda union: union.unlink("/twin1"),
    "unlink one of two that are left": lambda union: union.unlink("/dir/triplet2"),
    "unlink a link to a copy": lambda union: union.unlink("/copied1"),
    "unlink another link to a copy": lambda union: union.unlink("/copied2"),
    "unlink a changed file": lambda union: union.unlink("/changed"),
    "unlink a new file": lambda union: union.unlink("/new"),
    "rmdir a lower directory": lambda union: union.rmdir("/empty"),
    "rmdir a directory of whiteouts": lambda union: union.rmdir("/emptied"),
    "rename a lower file": _over("/file", "/moved"),
    "rename one of several links": _over("/twin2", "/moved"),
    "rename another link to a copy": _over("/copied2", "/moved"),
    "rename over one of several links": _over("/new", "/twin1"),
    "rename over a link to a copy": _over("/new", "/copied2"),
    "rename over a lower file": _over("/new", "/file"),
    "rename over a whiteout": _over("/changed", "/gone"),
    "rename a new directory": _over("/fresh", "/elsewhere"),
    "rename a new directory over a whiteout": _over("/fresh", "/gone"),
    "rename a lower directory": _over("/dir", "/elsewhere"),
    "rename a merged directory": _over("/mixed", "/elsewhere"),
    "rename over a directory of whiteouts": _over("/fresh", "/emptied"),
    "rename a merged directory over a lower empty one": _over("/mixed", "/empty"),
    "create a file": lambda union: union.touch("/dir/created"),
    "create a file over a whiteout": lambda union: union.touch("/gone"),
    "make a directory over a whiteout": lambda union: union.mkdir("/gone"),
    "make a link": lambda union: union.symlink("target", "/dir/symlink"),
    "chmod one of two that are left": lambda union: union.chmod("/dir/triplet3", 0o604),
    "make a hard link to one of several": lambda union: union.link("/twin1", "/dir/hard"),
    "make a hard link to a copy": lambda union: union.link("/copied2", "/dir/hard"),
    "make a hard link to a lower file": lambda union: union.link("/file", "/dir/hard"),
}
#: What copies data up and then changes it: the file may also be the copy that has not changed yet, which shows the
#: same.
WRITES: dict[str, Operation] = {"append to a lower file": _append("/file"), "append below": _append("/dir/sub/deep")}


def fill(layer: Path) -> None:
    """Make files of all kinds, some with several names."""
    for directory in ("dir/sub", "empty", "emptied", "mixed"):
        (layer / directory).mkdir(parents=True)
    for name in ("file", "marked", "changed", "gone", "dir/sub/deep", "emptied/inside", "mixed/removed", "mixed/kept"):
        (layer / name).write_text(f"the lower {name} " * 400)
        os.utime(layer / name, ns=(10**18, 10**18 + 123))
    os.truncate(layer / "file", 300_000)  # with a hole at its end
    os.setxattr(layer / "marked", "user.note", b"a note")
    os.chmod(layer / "marked", 0o4751)
    (layer / "link").symlink_to("file")
    (layer / "twin1").write_text("twins")
    os.link(layer / "twin1", layer / "twin2")
    for first, *others in (("triplet1", "dir/triplet2", "dir/triplet3"), ("copied1", "copied2", "dir/copied3")):
        (layer / first).write_text(first)
        for other in others:
            os.link(layer / first, layer / other)


def open_union(base: Path) -> Union:
    """Open the stack below ``base``."""
    return Union(lower=[base / "lower0", base / "lower1"], upper=base / "upper", workdir=base / "work")


def restore(layers: Path, stack: Path) -> None:
    """Put a fresh copy of the writable layer in place, whiteouts and attributes included."""
    for name in ("upper", "work"):
        shutil.rmtree(stack / name, ignore_errors=True)
        os.spawnlp(os.P_WAIT, "cp", "cp", "-a", str(layers / name), str(stack / name))


Tree = dict[bytes, object]


def tree(union: Union) -> Tree:
    """Return what the union shows: of each name the type, mode, owner, content, attributes and number of links."""
    found: Tree = {}
    waiting = [b"/"]
    while waiting:
        directory = waiting.pop()
        for name in union.listdir(directory):
            path = directory.rstrip(b"/") + b"/" + name
            state = union.lstat(path)
            kind = state.st_mode & 0o170000
            content: object = None
            if kind == 0o040000:
                waiting.append(path)
            elif kind == 0o120000:
                content = union.readlink(path)
            elif kind == 0o100000:
                content = union.read_bytes(path)
            marks = {}
            if kind != 0o120000:
                marks = {key: union.getxattr(path, key) for key in union.listxattr(path, follow_symlinks=False)}
            links = 0 if kind == 0o040000 else state.st_nlink
            found[path] = (state.st_mode, state.st_uid, state.st_gid, links, content, marks)
    return found


def difference(left: Tree, before: Tree, after: Tree) -> str:
    """Return in what ``left`` is neither as ``before`` nor as ``after``."""
    paths = sorted(set(left) | set(before) | set(after))
    rows = [
        f"{path!r}: {left.get(path)!r:.90}"
        for path in paths
        if left.get(path) not in (before.get(path), after.get(path))
    ]
    mixed = [path for path in paths if before.get(path) != after.get(path)]
    return (
        "; ".join(rows) or f"a mixture of old and new: {[(path, left.get(path) == after.get(path)) for path in mixed]}"
    )
