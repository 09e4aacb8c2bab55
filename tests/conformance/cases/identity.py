"""Which file is which: device and inode numbers, and file handles. stat(2), readdir(3), open_by_handle_at(2)."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..calls import Handle, Stream, append, handle_of, open_handle, opened, refused
from ..table import Place, case
from ..trees import file, folder, hard, node, symlink

TREE = {
    "a": file(b"a"), "b": file(b"b"), "twin": hard("a"), "d": folder(), "d/x": file(), "d/y": file(), "d/sub": folder(),
    "d/sub/z": file(), "l": symlink("a"), "p": node(stat.S_IFIFO), "s": node(stat.S_IFSOCK), "e": folder(),
}  # fmt: skip


def inodes(at: Place) -> dict[str, int]:
    """Return the inode number of everything, by path."""
    return {str(path.relative_to(at.path)): os.lstat(path).st_ino for path in at.path.rglob("*")}


def change(at: Place) -> None:
    """Copy everything up, in one way or another."""
    append(at.path / "a", b"!")
    os.chmod(at.path / "b", 0o600)
    os.chown(at.path / "d", 1, 1)
    for name in ("d/x", "d/sub/z", "p", "s", "e"):
        os.chmod(at.path / name, 0o700)
    os.lchown(at.path / "l", 1, 1)
    os.setxattr(at.path / "d/y", "user.a", b"1")


@case("posix", TREE)
def one_device_for_all(at: Place) -> None:
    (at.path / "new").write_bytes(b"")
    os.mkdir(at.path / "d/new")
    assert len({os.lstat(path).st_dev for path in (at.path, *at.path.rglob("*"))}) == 1


@case("posix", TREE)
def inode_numbers_are_unique(at: Place) -> None:
    (at.path / "new").write_bytes(b"")
    os.mkdir(at.path / "d/new")
    found = inodes(at)
    assert found["a"] == found["twin"]
    assert len(set(found.values())) == len(found) - 1
    change(at)
    assert len(set(inodes(at).values())) == len(found) - 1


@case("posix", TREE)
def listings_have_the_inode_numbers_of_stat(at: Place) -> None:
    for _ in range(2):
        for directory in (at.path, at.path / "d", at.path / "d/sub"):
            listed = {name: number for number, name in entries(directory)}
            assert listed.pop(".") == os.stat(directory).st_ino
            if listed.pop("..") != os.stat(directory.parent).st_ino:
                assert directory == at.path, "the parent is not the case's own"
            assert listed == {name: os.lstat(directory / name).st_ino for name in listed}
        change(at)
        (at.path / "d/new").write_bytes(b"")


def entries(directory: Path) -> list[tuple[int, str]]:
    """Return what readdir(3) gives."""
    with Stream(directory) as stream:
        return list(iter(stream.read, None))


@case("posix", TREE)
def inode_numbers_survive_a_copy_up(at: Place) -> None:
    before = inodes(at)
    change(at)
    assert inodes(at) == before


@case("posix", TREE)
def inode_numbers_survive_a_remount(at: Place) -> None:
    before = inodes(at)
    at.remount()
    assert inodes(at) == before
    change(at)
    at.remount()
    assert inodes(at) == before


@case("posix", TREE)
def inode_numbers_survive_a_rename(at: Place) -> None:
    before = inodes(at)
    for old, new in (("b", "c"), ("d/x", "e/x"), ("l", "e/l"), ("p", "e/p")):
        os.rename(at.path / old, at.path / new)
        assert os.lstat(at.path / new).st_ino == before[old]
    os.rename(at.path / "d", at.path / "e/d")
    assert os.stat(at.path / "e/d").st_ino == before["d"]
    assert os.stat(at.path / "e/d/y").st_ino == before["d/y"]
    at.remount()
    assert os.stat(at.path / "e/d").st_ino == before["d"]
    assert os.stat(at.path / "e/x").st_ino == before["d/x"]
    assert os.stat(at.path / "e/d/sub/z").st_ino == before["d/sub/z"]


@case("posix", TREE)
def a_descriptor_keeps_its_inode_number(at: Place) -> None:
    with opened(at.path / "b", os.O_RDONLY) as b:
        before = os.fstat(b)
        append(at.path / "b", b"!")
        assert (os.fstat(b).st_ino, os.fstat(b).st_dev) == (before.st_ino, before.st_dev)
        assert os.path.sameopenfile(b, b)
        os.rename(at.path / "b", at.path / "c")
        assert os.fstat(b).st_ino == os.stat(at.path / "c").st_ino


@case("posix", TREE)
def a_new_file_is_another_one(at: Place) -> None:
    with opened(at.path / "b", os.O_RDONLY) as b:
        os.unlink(at.path / "b")
        (at.path / "b").write_bytes(b"new")
        assert os.stat(at.path / "b").st_ino != os.fstat(b).st_ino


@case(
    "posix", TREE, deviates={"overlayfs": "no file handles without nfs_export, which takes an index of every directory"}
)
def handles_open_their_file(at: Place) -> None:
    with opened(at.path, os.O_RDONLY) as root:
        handles = {name: handle_of(at.path / name) for name in ("a", "d", "d/sub/z", "d/x")}
        for name, handle in handles.items():
            with opened_by(root, handle) as found:
                assert os.fstat(found).st_ino == os.stat(at.path / name).st_ino
        change(at)
        os.rename(at.path / "d/sub", at.path / "moved")
        with opened_by(root, handles["d/sub/z"]) as found:
            assert os.fstat(found).st_ino == os.stat(at.path / "moved/z").st_ino
            assert os.read(found, 100) == b"0123456789"
        os.unlink(at.path / "d/x")
        refused(errno.ESTALE, lambda: os.close(open_handle(root, handles["d/x"], os.O_RDONLY)))


@contextmanager
def opened_by(root: int, handle: Handle) -> Iterator[int]:
    """Open by handle, close at the end."""
    descriptor = open_handle(root, handle, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
