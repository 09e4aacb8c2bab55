"""Rename, with its flags, of files and of directories from every layer. rename(2), renameat2(2)."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from ..calls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, listing, opened, refused, rename, write_at
from ..table import Place, case, libfuse2
from ..trees import file, folder, node, symlink

NO_FLAGS = libfuse2("knows no flags of rename")
FILES = {"a": file(b"a"), "b": file(b"b"), "d": folder(), "d/x": file(b"x"), "l": symlink("a"), "p": node(stat.S_IFIFO)}
DIRS = {
    "d": folder(0o751), "d/a": file(b"a"), "d/sub": folder(), "d/sub/x": file(b"x"), "d/sub/y": file(b"y"),
    "d/l": symlink("a"), "e": folder(), "e/b": file(b"b"), "empty": folder(), "f": file(b"f"),
}  # fmt: skip


def shows(at: Place, expected: dict[str, str]) -> None:
    """Assert that these are all files, now and after a remount: content by path, "/" for empty directories."""
    for _ in range(2):
        assert dict(_contents(at.path)) == expected
        at.remount()


def _contents(top: Path) -> Iterator[tuple[str, str]]:
    for root, directories, names in os.walk(top):
        for path in (Path(root, name) for name in names):
            yield str(path.relative_to(top)), os.readlink(path) if path.is_symlink() else path.read_text()
        if not directories + names:
            yield os.path.relpath(root, top), "/"


@case("basic", FILES)
def rename_to_a_free_name(at: Place) -> None:
    os.rename(at.path / "a", at.path / "new")
    assert (at.path / "new").read_bytes() == b"a"
    assert listing(at.path) == ["b", "d", "l", "new", "p"]
    os.rename(at.path / "l", at.path / "d/l")
    assert os.readlink(at.path / "d/l") == "a"
    os.rename(at.path / "p", at.path / "d/p")
    assert stat.S_ISFIFO(os.stat(at.path / "d/p").st_mode)
    at.remount()
    assert listing(at.path) == ["b", "d", "new"]
    assert listing(at.path / "d") == ["l", "p", "x"]


@case("basic", FILES)
def rename_replaces(at: Place) -> None:
    os.rename(at.path / "a", at.path / "b")
    assert (at.path / "b").read_bytes() == b"a"
    os.rename(at.path / "b", at.path / "d/x")
    assert (at.path / "d/x").read_bytes() == b"a"
    assert listing(at.path) == ["d", "l", "p"]
    os.rename(at.path / "l", at.path / "d/x")
    assert os.readlink(at.path / "d/x") == "a"
    at.remount()
    assert listing(at.path) == ["d", "p"]
    assert listing(at.path / "d") == ["x"]


@case("basic", FILES)
def rename_there_and_back(at: Place) -> None:
    os.rename(at.path / "a", at.path / "c")
    refused(errno.ENOENT, os.stat, at.path / "a")
    os.rename(at.path / "c", at.path / "a")
    assert (at.path / "a").read_bytes() == b"a"
    os.unlink(at.path / "a")
    os.rename(at.path / "b", at.path / "a")
    assert (at.path / "a").read_bytes() == b"b"
    assert listing(at.path) == ["a", "d", "l", "p"]


@case("basic", FILES)
def rename_to_itself_does_nothing(at: Place) -> None:
    os.rename(at.path / "a", at.path / "a")
    os.link(at.path / "a", at.path / "a2")
    os.rename(at.path / "a", at.path / "a2")
    assert {"a", "a2"} <= set(listing(at.path))
    os.rename(at.path / "d", at.path / "d")
    assert listing(at.path / "d") == ["x"]


@case("basic", DIRS)
def rename_refuses_what_it_must(at: Place) -> None:
    p = at.path
    refused(errno.ENOENT, os.rename, p / "missing", p / "x")
    refused(errno.ENOENT, os.rename, p / "f", p / "missing/x")
    refused(errno.ENOTDIR, os.rename, p / "f", p / "d/a/x")
    refused(errno.EISDIR, os.rename, p / "f", p / "empty")
    refused(errno.ENOTDIR, os.rename, p / "empty", p / "f")
    refused(errno.ENOTEMPTY, os.rename, p / "e", p / "d")
    refused(errno.ENOTEMPTY, os.rename, p / "empty", p / "d/sub")
    refused(errno.EINVAL, os.rename, p / "d", p / "d/sub/new")
    refused(errno.EINVAL, os.rename, p / "d", p / "d/new")
    refused(errno.ENOTEMPTY, os.rename, p / "d/sub", p / "d")
    refused(errno.EBUSY, os.rename, f"{p}/d/.", p / "x")
    refused(errno.ENAMETOOLONG, os.rename, p / "f", p / ("n" * 256))
    assert listing(p) == ["d", "e", "empty", "f"]


@case("basic", DIRS)
def rename_a_directory(at: Place) -> None:
    os.rename(at.path / "d", at.path / "new")
    assert os.stat(at.path / "new").st_mode & 0o777 == 0o751
    refused(errno.ENOENT, os.stat, at.path / "d/a")
    shows(at, {"new/a": "a", "new/l": "a", "new/sub/x": "x", "new/sub/y": "y", "e/b": "b", "empty": "/", "f": "f"})


@case("basic", DIRS)
def rename_a_directory_into_another(at: Place) -> None:
    os.rename(at.path / "d", at.path / "e/d")
    os.rename(at.path / "e/d/sub", at.path / "sub")
    shows(at, {"sub/x": "x", "sub/y": "y", "e/b": "b", "e/d/a": "a", "e/d/l": "a", "empty": "/", "f": "f"})


@case("basic", DIRS)
def rename_a_directory_again_and_again(at: Place) -> None:
    for old, new in (("d", "1"), ("1/sub", "1/s"), ("1", "e/2"), ("e/2/s", "empty/s"), ("e", "3"), ("3/2", "d")):
        os.rename(at.path / old, at.path / new)
    write_at(at.path / "empty/s/x", b"X")
    shows(at, {"empty/s/x": "X", "empty/s/y": "y", "3/b": "b", "d/a": "a", "d/l": "a", "f": "f"})


@case("basic", DIRS)
def a_new_directory_at_the_old_place(at: Place) -> None:
    os.rename(at.path / "d", at.path / "moved")
    os.mkdir(at.path / "d")
    assert listing(at.path / "d") == []
    (at.path / "d/a").write_bytes(b"new")
    os.mkdir(at.path / "d/sub")
    expected = {
        "moved/a": "a",
        "moved/l": "a",
        "moved/sub/x": "x",
        "moved/sub/y": "y",
        "e/b": "b",
        "empty": "/",
        "f": "f",
    }
    shows(at, expected | {"d/a": "new", "d/sub": "/"})
    shutil.rmtree(at.path / "d")
    shows(at, expected)


@case("basic", DIRS)
def a_renamed_directory_is_changed_and_removed(at: Place) -> None:
    os.rename(at.path / "d", at.path / "new")
    os.unlink(at.path / "new/sub/x")
    (at.path / "new/sub/z").write_bytes(b"z")
    write_at(at.path / "new/a", b"A")
    shows(at, {"new/a": "A", "new/l": "a", "new/sub/y": "y", "new/sub/z": "z", "e/b": "b", "empty": "/", "f": "f"})
    shutil.rmtree(at.path / "new")
    shows(at, {"e/b": "b", "empty": "/", "f": "f"})


@case("basic", DIRS)
def rename_over_an_empty_directory(at: Place) -> None:
    os.rename(at.path / "d", at.path / "empty")
    shows(at, {"empty/a": "a", "empty/l": "a", "empty/sub/x": "x", "empty/sub/y": "y", "e/b": "b", "f": "f"})


@case("basic", DIRS)
def rename_over_a_directory_that_holds_only_deletions(at: Place) -> None:
    os.unlink(at.path / "e/b")
    os.rename(at.path / "d/sub", at.path / "e")
    shows(at, {"d/a": "a", "d/l": "a", "e/x": "x", "e/y": "y", "empty": "/", "f": "f"})


@case("basic", DIRS)
def rename_to_a_deleted_name(at: Place) -> None:
    os.unlink(at.path / "f")
    os.rename(at.path / "e", at.path / "f")
    shutil.rmtree(at.path / "d")
    os.rename(at.path / "f/b", at.path / "d")
    shows(at, {"d": "b", "f": "/", "empty": "/"})


@case("basic", FILES)
def rename_over_an_open_file(at: Place) -> None:
    with opened(at.path / "b", os.O_RDWR) as b, opened(at.path / "a", os.O_RDONLY) as a:
        os.rename(at.path / "a", at.path / "b")
        assert os.pread(b, 10, 0) == b"b"
        assert os.fstat(b).st_nlink == 0
        os.pwrite(b, b"gone", 0)
        assert os.pread(b, 10, 0) == b"gone"
        assert os.pread(a, 10, 0) == b"a"
        assert os.fstat(a).st_ino == os.stat(at.path / "b").st_ino
    assert (at.path / "b").read_bytes() == b"a"


@case("basic", DIRS)
def descriptors_follow_a_renamed_directory(at: Place) -> None:
    with opened(at.path / "d", os.O_RDONLY) as d, opened(at.path / "d/sub/x", os.O_RDWR) as x:
        os.rename(at.path / "d", at.path / "e/moved")
        os.pwrite(x, b"X", 0)
        os.mkdir("made", dir_fd=d)
        os.unlink("a", dir_fd=d)
        assert sorted(os.listdir(d)) == ["l", "made", "sub"]
    assert (at.path / "e/moved/sub/x").read_bytes() == b"X"
    assert listing(at.path / "e/moved") == ["l", "made", "sub"]


@case("basic", FILES, deviates=NO_FLAGS)
def noreplace_keeps_what_is_there(at: Place) -> None:
    for name in ("b", "d", "l", "p"):
        refused(errno.EEXIST, rename, at.path / "a", at.path / name, RENAME_NOREPLACE)
    rename(at.path / "a", at.path / "new", RENAME_NOREPLACE)
    os.unlink(at.path / "b")
    rename(at.path / "new", at.path / "b", RENAME_NOREPLACE)
    assert (at.path / "b").read_bytes() == b"a"
    assert listing(at.path) == ["b", "d", "l", "p"]


@case("basic", FILES | {"e": folder(), "e/y": file(b"y"), "e/sub": folder(), "e/sub/z": file(b"z")}, deviates=NO_FLAGS)
def exchange_swaps_any_two(at: Place) -> None:
    rename(at.path / "a", at.path / "b", RENAME_EXCHANGE)
    assert [(at.path / name).read_bytes() for name in "ab"] == [b"b", b"a"]
    rename(at.path / "d", at.path / "e", RENAME_EXCHANGE)
    assert [listing(at.path / name) for name in "de"] == [["sub", "y"], ["x"]]
    rename(at.path / "a", at.path / "d", RENAME_EXCHANGE)
    assert (at.path / "d").read_bytes() == b"b"
    assert listing(at.path / "a") == ["sub", "y"]
    assert (at.path / "a/sub/z").read_bytes() == b"z"
    refused(errno.ENOENT, rename, at.path / "a", at.path / "missing", RENAME_EXCHANGE)
    refused(errno.EINVAL, rename, at.path / "a", at.path / "a/sub", RENAME_EXCHANGE)
    refused(errno.EINVAL, rename, at.path / "a/sub", at.path / "a", RENAME_EXCHANGE)
    at.remount()
    assert listing(at.path / "a") == ["sub", "y"]
    assert (at.path / "b").read_bytes() == b"a"


@case("basic", FILES)
def flags_that_contradict_are_refused(at: Place) -> None:
    refused(errno.EINVAL, rename, at.path / "a", at.path / "b", RENAME_EXCHANGE | RENAME_NOREPLACE)
    refused(errno.EINVAL, rename, at.path / "a", at.path / "b", RENAME_EXCHANGE | RENAME_WHITEOUT)
    refused(errno.EINVAL, rename, at.path / "a", at.path / "b", 1 << 10)


@case(
    "posix",
    FILES,
    deviates={"overlayfs": "refuses RENAME_WHITEOUT with EINVAL, so cannot itself be an upper layer", **NO_FLAGS},
)
def rename_may_leave_a_whiteout(at: Place) -> None:
    rename(at.path / "a", at.path / "new", RENAME_WHITEOUT)
    assert (at.path / "new").read_bytes() == b"a"
    if os.path.lexists(at.path / "a"):
        left = os.lstat(at.path / "a")
        assert (stat.S_IFMT(left.st_mode), left.st_rdev) == (stat.S_IFCHR, 0)
