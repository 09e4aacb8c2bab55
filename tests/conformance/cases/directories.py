"""Directories: making, listing, removing, and listing while they change. mkdir(2), rmdir(2), readdir(3)."""

from __future__ import annotations

import errno
import os
import shutil
import stat

from ..calls import Stream, inside, listing, opened, refused
from ..table import Place, case, libfuse2
from ..trees import file, folder, names_in, node, symlink

TREE = {
    "d": folder(), "d/a": file(), "d/b": file(b"b"), "d/sub": folder(0o700), "d/sub/x": file(), "d/sub/y": symlink("x"),
    "d/l": symlink("a"), "d/p": node(stat.S_IFIFO), "d/s": node(stat.S_IFSOCK), "e": folder(), "f": file(),
}  # fmt: skip
CROWD = {"d": folder(), **{f"d/{n:03}": file(b"") for n in range(300)}}


@case("basic")
def mkdir_and_rmdir(at: Place) -> None:
    os.mkdir(at.path / "d", 0o750)
    assert stat.S_ISDIR(os.stat(at.path / "d").st_mode)
    assert listing(at.path) == ["d"]
    os.mkdir(at.path / "d/e")
    refused(errno.ENOTEMPTY, os.rmdir, at.path / "d")
    os.rmdir(at.path / "d/e")
    os.rmdir(at.path / "d")
    assert listing(at.path) == []
    refused(errno.ENOENT, os.rmdir, at.path / "d")


@case("basic", TREE)
def listings_are_merged(at: Place) -> None:
    for directory in ("", "d", "d/sub", "e"):
        assert listing(at.path / directory) == names_in(TREE, directory)
    (at.path / "d/new").write_bytes(b"")
    os.unlink(at.path / "d/a")
    assert listing(at.path / "d") == sorted({*names_in(TREE, "d"), "new"} - {"a"})


@case("basic", TREE)
def listed_types_are_true(at: Place) -> None:
    with os.scandir(at.path / "d") as entries:
        for entry in entries:
            mode = os.lstat(entry.path).st_mode
            assert (entry.is_dir(follow_symlinks=False), entry.is_symlink()) == (stat.S_ISDIR(mode), stat.S_ISLNK(mode))
            assert entry.is_file(follow_symlinks=False) == stat.S_ISREG(mode)


@case("basic", TREE)
def a_listing_has_dot_and_dot_dot(at: Place) -> None:
    with Stream(at.path / "d") as stream:
        names = stream.rest()
    assert sorted(names) == sorted([".", "..", *names_in(TREE, "d")])


@case("basic", TREE)
def making_refuses_what_it_must(at: Place) -> None:
    for name in ("d", "d/a", "d/l", "d/p"):
        refused(errno.EEXIST, os.mkdir, at.path / name)
    refused(errno.ENOENT, os.mkdir, at.path / "missing/x")
    refused(errno.ENOTDIR, os.mkdir, at.path / "f/x")
    refused(errno.ENAMETOOLONG, os.mkdir, at.path / ("n" * 256))


@case("basic", TREE)
def removing_refuses_what_it_must(at: Place) -> None:
    refused(errno.ENOTEMPTY, os.rmdir, at.path / "d")
    refused(errno.ENOTDIR, os.rmdir, at.path / "f")
    refused(errno.ENOTDIR, os.rmdir, at.path / "d/l")
    refused(errno.EISDIR, os.unlink, at.path / "d")
    refused(errno.EINVAL, os.rmdir, f"{at.path}/e/.")
    refused(errno.ENOTEMPTY, os.rmdir, f"{at.path}/d/sub/..")
    refused(errno.ENOENT, os.unlink, at.path / "missing")
    refused(errno.ENOTDIR, os.unlink, at.path / "f/x")


@case("basic", TREE)
def remove_when_everything_in_it_is_gone(at: Place) -> None:
    for name in ("x", "y"):
        os.unlink(at.path / "d/sub" / name)
    assert listing(at.path / "d/sub") == []
    os.rmdir(at.path / "d/sub")
    assert "sub" not in listing(at.path / "d")
    refused(errno.ENOENT, os.stat, at.path / "d/sub/x")


@case("basic", TREE)
def a_new_directory_hides_what_was_there(at: Place) -> None:
    shutil.rmtree(at.path / "d")
    refused(errno.ENOENT, os.stat, at.path / "d/a")
    os.mkdir(at.path / "d", 0o711)
    assert listing(at.path / "d") == []
    assert os.stat(at.path / "d").st_mode & 0o777 == 0o711
    (at.path / "d/a").write_bytes(b"new")
    os.mkdir(at.path / "d/sub")
    assert listing(at.path / "d") == ["a", "sub"]
    assert listing(at.path / "d/sub") == []
    refused(errno.ENOENT, os.stat, at.path / "d/sub/x")
    at.remount()
    assert listing(at.path / "d") == ["a", "sub"]
    assert listing(at.path / "d/sub") == []


@case("basic", TREE)
def a_name_changes_its_type(at: Place) -> None:
    os.unlink(at.path / "f")
    os.mkdir(at.path / "f")
    (at.path / "f/in").write_bytes(b"in")
    os.rmdir(at.path / "e")
    (at.path / "e").write_bytes(b"file")
    os.unlink(at.path / "d/l")
    os.mkdir(at.path / "d/l")
    at.remount()
    assert listing(at.path / "f") == ["in"]
    assert (at.path / "e").read_bytes() == b"file"
    assert listing(at.path / "d/l") == []


@case("basic", TREE)
def removals_hold_after_a_remount(at: Place) -> None:
    for name in ("d/a", "d/l", "d/p", "d/s", "f"):
        os.unlink(at.path / name)
    os.rmdir(at.path / "e")
    for _ in range(2):
        assert listing(at.path) == ["d"]
        assert listing(at.path / "d") == ["b", "sub"]
        at.remount()


@case("basic", {"d": folder(0o640), "d/a": file()}, deviates=libfuse2("finds directories by path"))
def a_removed_directory_keeps_its_mode(at: Place) -> None:
    """Whatever its layer holds beside the names that show, and has to be removed with it."""
    os.unlink(at.path / "d/a")
    with opened(at.path / "d", os.O_RDONLY | os.O_DIRECTORY) as d:
        os.rmdir(at.path / "d")
        assert stat.S_IMODE(os.fstat(d).st_mode) == 0o640


@case("basic", TREE, deviates=libfuse2("finds directories by path"))
def a_removed_directory_that_is_open(at: Place) -> None:
    with opened(at.path / "e", os.O_RDONLY | os.O_DIRECTORY) as e:
        os.rmdir(at.path / "e")
        assert os.listdir(e) == []
        assert stat.S_ISDIR(os.fstat(e).st_mode)
        refused(errno.ENOENT, os.mkdir, "x", dir_fd=e)
        refused(errno.ENOENT, os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=e)


@case("basic", TREE)
def the_working_directory_is_removed(at: Place) -> None:
    with inside(at.path / "e"):
        os.rmdir("../e")
        refused(errno.ENOENT, os.mkdir, "x")
        refused(errno.ENOENT, os.getcwd)


@case("basic", CROWD)
def remove_each_name_while_listing(at: Place) -> None:
    seen = []
    with os.scandir(at.path / "d") as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    assert sorted(seen) == names_in(CROWD, "d")
    os.rmdir(at.path / "d")


@case("posix", CROWD)
def what_stands_all_along_is_listed_once(at: Place) -> None:
    with Stream(at.path / "d") as stream:
        seen = [name for _, name in (stream.read() or (0, "") for _ in range(5))]
        for n in range(0, 300, 3):
            os.unlink(at.path / f"d/{n:03}")
            (at.path / f"d/new{n}").write_bytes(b"")
        seen += stream.rest()
    stood = [f"{n:03}" for n in range(300) if n % 3]
    assert sorted(name for name in seen if name in set(stood)) == stood


@case("posix", CROWD)
def seekdir_returns_to_telldir(at: Place) -> None:
    with Stream(at.path / "d") as stream:
        places = []
        while entry := stream.read():
            places.append((entry[1], stream.tell()))
        for index in (250, 3, 100, len(places) - 2):
            stream.seek(places[index][1])
            assert stream.rest() == [name for name, _ in places[index + 1 :]]


@case("posix", CROWD)
def rewinddir_shows_what_is_there_now(at: Place) -> None:
    with Stream(at.path / "d") as stream:
        stream.read()
        os.unlink(at.path / "d/007")
        (at.path / "d/new").write_bytes(b"")
        stream.rewind()
        assert sorted(stream.rest()) == sorted([".", "..", "new", *(set(names_in(CROWD, "d")) - {"007"})])


@case("posix")
def a_directory_of_many_names(at: Place) -> None:
    names = [f"{n:05}" + "n" * 40 for n in range(1500)]
    for name in names:
        os.mknod(at.path / name)
    assert listing(at.path) == names
    for name in names[::2]:
        os.unlink(at.path / name)
    assert listing(at.path) == names[1::2]


@case("basic", TREE)
def a_tree_is_removed_and_comes_back(at: Place) -> None:
    for _ in range(2):
        shutil.rmtree(at.path / "d")
        assert listing(at.path) == ["e", "f"]
        os.makedirs(at.path / "d/sub")
        (at.path / "d/sub/x").write_bytes(b"again")
        assert listing(at.path / "d") == ["sub"]
        assert listing(at.path / "d/sub") == ["x"]
