"""What the tests of this directory do to a stack, the stack itself, and what it shows."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from struct import pack
from typing import TYPE_CHECKING, NamedTuple

from unionfs import Union, idmap
from unionfs.idmap import IdMap, Ownership, Range
from unionfs.syscalls import files
from unionfs.union import stack as stacks
from unionfs.union.owners import MappedView, replaced
from unionfs.union.writing import Writing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    import pytest

    from unionfs.union.nodes import AnyNode

    Operation = Callable[[Union], None]


def _append(path: str) -> Operation:
    def append(union: Union) -> None:
        with union.open(path, "ab") as stream:
            stream.write(b" and more")

    return append


def _over(source: str, target: str) -> Operation:
    return lambda union: union.rename(source, target)


def flagged(source: str, target: str, flags: int) -> Operation:
    """Return what renames with flags of renameat2(2)."""

    def rename(union: Union) -> None:
        stack, (start, end) = union._stack, (union._locate(path, follow=False) for path in (source, target))
        assert stack.renames is not None
        stack.renames.rename((start.parent, start.name), (end.parent, end.name), flags)

    return rename


_ACL_ENTRIES = ((1, 6, -1), (2, 7, 4), (4, 4, -1), (16, 7, -1), (32, 0, -1))  # acl(5), <linux/posix_acl_xattr.h>
_ACL = b"\2\0\0\0" + b"".join(pack("<HHi", *entry) for entry in _ACL_ENTRIES)

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
    "exchange merged directories": flagged("/mixed", "/dir", files.RENAME_EXCHANGE),
    "exchange a lower file and a new directory": flagged("/file", "/fresh", files.RENAME_EXCHANGE),
    "exchange links to two files": flagged("/twin1", "/copied2", files.RENAME_EXCHANGE),
    "rename a directory below a merged one": _over("/mixed", "/dir/mixed"),
    "give an ACL": lambda union: union.setxattr("/file", "system.posix_acl_access", _ACL),
    "remove an attribute": lambda union: union.removexattr("/marked", "user.note"),
    "make a FIFO": lambda union: union.mkfifo("/dir/fifo"),
    "make a device": lambda union: union.mknod("/dir/device", 0o20600, os.makedev(1, 3)),
    "chmod a copy": lambda union: union.chmod("/attributes", 0o4710),
    "rename a copy": _over("/attributes", "/dir/moved"),
    "unlink a copy": lambda union: union.unlink("/attributes"),
    "give a file to nobody": lambda union: union.chown("/file", 5001, 5002),
    "give a directory to nobody": lambda union: union.chown("/dir", 5001, 5002),
    "give a new file back": lambda union: union.chown("/new", 7, 8),
}
#: Old and new name of a rename that leaves a program's whiteout: several steps, which are undone if one fails.
LEFT: dict[str, tuple[str, str]] = {
    "leave a whiteout of a lower file": ("/file", "/moved"),
    "leave a whiteout of a new file": ("/new", "/dir/moved"),
    "leave a whiteout of a link, over a lower file": ("/twin1", "/marked"),
    "leave a whiteout of a new file, over a link to a copy": ("/new", "/copied2"),
    "leave a whiteout of a copy, over a whiteout": ("/changed", "/gone"),
    "leave a whiteout of a directory": ("/mixed", "/elsewhere"),
    "leave a whiteout of a directory, over one of whiteouts": ("/fresh", "/emptied"),
}
LEAVING = {name: flagged(*names, files.RENAME_WHITEOUT) for name, names in LEFT.items()}
#: What copies data up and then changes it: the file may also be the copy that has not changed yet, which shows the
#: same.
WRITES: dict[str, Operation] = {
    "append to a lower file": _append("/file"),
    "append below": _append("/dir/sub/deep"),
    "append to a copy": _append("/attributes"),
    "append to a link": _append("/twin1"),
}


def fill(layer: Path) -> None:
    """Make files of all kinds, some with several names."""
    for directory in ("dir/sub", "empty", "emptied", "mixed"):
        (layer / directory).mkdir(parents=True)
    for name in (
        "file",
        "marked",
        "changed",
        "attributes",
        "gone",
        "dir/sub/deep",
        "emptied/inside",
        "mixed/removed",
        "mixed/kept",
    ):
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


class Way(NamedTuple):
    """A way to open a stack: what of a ``Config`` is not as usual."""

    whiteouts: str | None = None
    metacopy: bool = False
    nfs_export: bool = False
    owners: Ownership | None = None


_IDS = 1000
_FEW = IdMap((Range(0, 0, _IDS),), missing=0)
_SHIFTED = IdMap((Range(0, 6000, _IDS), Range(_IDS, 0, 6000)))
WAYS = {
    "overlay": Way(),
    "userxattr": Way(whiteouts="userxattr"),
    "oci": Way(whiteouts="oci"),
    "metacopy": Way(metacopy=True),
    "nfs_export": Way(nfs_export=True),
    "remembered": Way(owners=Ownership(attribute=idmap.CONTAINERS_OVERRIDE, always=True)),
    "namespace": Way(owners=Ownership(_FEW, _FEW, idmap.CONTAINERS_OVERRIDE)),
    "mapped": Way(owners=Ownership(_SHIFTED, _SHIFTED)),
}


def refuse_as_a_namespace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process give no file to ids from 1000 on, and make no device but whiteouts: user_namespaces(7)."""
    chown, fchown, mknod = os.chown, os.fchown, os.mknod

    def refusing(give: Callable[..., None]) -> Callable[..., None]:
        def give_here(place: object, uid: int, gid: int, **options: Any) -> None:
            if max(uid, gid) >= _IDS:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            give(place, uid, gid, **options)

        return give_here

    def make_here(path: bytes, mode: int = 0o600, device: int = 0, **options: Any) -> None:
        if device and stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK):
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        mknod(path, mode, device, **options)

    monkeypatch.setattr(os, "chown", refusing(chown))
    monkeypatch.setattr(os, "fchown", refusing(fchown))
    monkeypatch.setattr(os, "mknod", make_here)


class _WayUnion(Union):
    """A union that is opened in other ways than programs have."""

    def __init__(self, base: Path, way: Way) -> None:
        lowers = [os.fsencode(base / name) for name in ("lower0", "lower1")]
        upper, workdir = (os.fsencode(base / name) for name in ("upper", "work"))
        config = stacks.Config(lowers, upper, workdir, whiteouts=way.whiteouts, metacopy=way.metacopy)
        config.nfs_export, config.owners = way.nfs_export, way.owners
        self._own_workdir = False
        Writing.__init__(self, stacks.open_stack(config, own_process=False))

    def _attributes(self, node: AnyNode) -> os.stat_result:
        """Return what is remembered of a file, whether or not somebody of that number can be shown."""
        view, state = self._stack.view, super()._attributes(node)
        if not isinstance(view, MappedView):
            return state
        kept = view.on_disk(node, view.stat(node))
        return replaced(state, kept.st_mode, kept.st_uid, kept.st_gid, kept.st_rdev)


def open_union(base: Path, way: Way = WAYS["overlay"]) -> Union:
    """Open the stack below ``base``."""
    return _WayUnion(base, way)


def prepare(base: Path, way: Way = WAYS["overlay"]) -> None:
    """Make two lower layers below ``base``, and a writable one with changes."""
    for name in ("lower0", "lower1", "upper", "work"):
        (base / name).mkdir()
    fill(base / "lower1")
    (base / "lower0/mixed").mkdir()
    (base / "lower0/mixed/over").write_text("over")
    with open_union(base, way) as union:
        union.write_text("/new", "new")
        union.write_text("/changed", "changed again")
        union.unlink("/gone")
        union.unlink("/emptied/inside")
        union.mkdir("/fresh")
        union.write_text("/fresh/file", "fresh")
        union.write_text("/mixed/added", "added")
        union.unlink("/mixed/removed")
        union.unlink("/triplet1")
        union.chmod("/copied1", 0o604)
        union.chmod("/attributes", 0o604)
        union.chown("/new", 5001, 5002)


def restore(layers: Path, stack: Path) -> None:
    """Put a fresh copy of the writable layer in place, whiteouts and attributes included."""
    for name in ("upper", "work"):
        shutil.rmtree(stack / name, ignore_errors=True)
        os.spawnlp(os.P_WAIT, "cp", "cp", "-a", str(layers / name), str(stack / name))


Tree = dict[bytes, tuple[object, ...]]


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
