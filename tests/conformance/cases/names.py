"""Names and paths of any bytes and any length. path_resolution(7), limits in limits.h."""

from __future__ import annotations

import errno
import os

from ..calls import listing, opened, refused
from ..table import Place, case
from ..trees import file, folder

ODD = [
    b"\xff\xfe", b"\xc3\x28", b"caf\xc3\xa9", b"cafe\xcc\x81", b"new\nline", b" ", b" a ", b"-rf", b"*", b"\\",
    b"\\x41", b"'\"", b"%s", b"a:b", b"a,b", b"...", b".a", b"~", b"\x01\x7f", b"\xf0\x9f\x90\x8d", b"A",
    b"x" * 255, b"\xff" * 255,
]  # fmt: skip
TREE = {os.fsdecode(name): file(name) for name in ODD} | {"dir": folder(), "dir/" + "d" * 255: folder()}


DEEP_TREE = {"/".join(["d" * 100] * n): folder() for n in range(1, 31)} | {"d" * 100 + "/f": file()}


@case("basic", TREE)
def names_of_any_bytes_are_kept(at: Place) -> None:
    top = os.fsencode(at.path)
    assert sorted(set(os.listdir(top)) - {b"dir"}) == sorted(ODD)
    for name in ODD:
        path = os.path.join(top, name)
        with opened(path, os.O_RDWR) as found:
            assert os.read(found, 300) == name
        os.rename(path, os.path.join(top, b"dir", name))
        os.mkdir(path)
    assert sorted(set(os.listdir(top + b"/dir")) - {b"d" * 255}) == sorted(ODD)
    for name in ODD:
        os.unlink(os.path.join(top, b"dir", name))
        os.rmdir(os.path.join(top, name))
    assert os.listdir(top) == [b"dir"]


@case("basic")
def every_byte_makes_a_name(at: Place) -> None:
    top = os.fsencode(at.path)
    names = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    for name in names:
        os.close(os.open(os.path.join(top, name), os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    assert sorted(os.listdir(top)) == sorted(names)
    for name in names:
        os.unlink(os.path.join(top, name))


@case("basic", {"d": folder(), "f": file()})
def names_of_255_bytes_and_no_more(at: Place) -> None:
    long, longer = "n" * 255, "n" * 256
    (at.path / "d" / long).write_bytes(b"x")
    os.rename(at.path / "f", at.path / long)
    assert listing(at.path) == ["d", long]
    assert listing(at.path / "d") == [long]
    for call in (os.mkdir, os.stat, os.unlink, os.mknod, os.rmdir, os.readlink, os.listdir):
        refused(errno.ENAMETOOLONG, call, at.path / longer)
    refused(errno.ENAMETOOLONG, os.rename, at.path / long, at.path / longer)
    refused(errno.ENAMETOOLONG, os.link, at.path / long, at.path / longer)
    refused(errno.ENAMETOOLONG, os.symlink, "x", at.path / longer)
    os.unlink(at.path / "d" / long)
    os.unlink(at.path / long)


@case("basic", {"d": folder(), "d/e": folder(), "d/e/f": file()})
def dots_lead_where_they_should(at: Place) -> None:
    for path in ("d/./e/f", "d/e/../e/f", "d//e///f", "./d/e/f", "d/e/../../d/e/f"):
        assert os.path.samefile(f"{at.path}/{path}", at.path / "d/e/f")
    refused(errno.EEXIST, os.mkdir, f"{at.path}/d/.")
    refused(errno.EEXIST, os.mkdir, f"{at.path}/d/e/..")


def descend(top: int, depth: int) -> int:
    """Make ``depth`` directories below each other, return a descriptor of the last."""
    for _ in range(depth):
        os.mkdir("d" * 100, dir_fd=top)
        below = os.open("d" * 100, os.O_RDONLY | os.O_DIRECTORY, dir_fd=top)
        os.close(top)
        top = below
    return top


@case("basic")
def paths_deeper_than_path_max(at: Place) -> None:
    bottom = descend(os.open(at.path, os.O_RDONLY), 60)
    try:
        with opened("f", os.O_CREAT | os.O_RDWR, dir_fd=bottom) as f:
            os.write(f, b"deep")
            os.rename("f", "g", src_dir_fd=bottom, dst_dir_fd=bottom)
            os.mkdir("sub", dir_fd=bottom)
            os.symlink("g", "l", dir_fd=bottom)
            assert os.pread(f, 10, 0) == b"deep"
        assert sorted(os.listdir(bottom)) == ["g", "l", "sub"]
        assert os.stat("l", dir_fd=bottom).st_size == 4
        os.rename(at.path / ("d" * 100), at.path / "renamed")
        os.unlink("l", dir_fd=bottom)
        assert sorted(os.listdir(bottom)) == ["g", "sub"]
    finally:
        os.close(bottom)


@case("basic", DEEP_TREE)
def deep_directories_of_a_layer(at: Place) -> None:
    at_30 = os.open("/".join(["d" * 100] * 30), os.O_RDONLY, dir_fd=_close_later(os.open(at.path, os.O_PATH)))
    bottom = descend(at_30, 20)
    try:
        os.mkdir("made", dir_fd=bottom)
        os.rename(at.path / ("d" * 100), at.path / "top")
        os.mkdir("again", dir_fd=bottom)
        assert sorted(os.listdir(bottom)) == ["again", "made"]
        assert (at.path / "top/f").read_bytes() == b"0123456789"
    finally:
        os.close(bottom)
        os.close(_later.pop())


_later: list[int] = []


def _close_later(descriptor: int) -> int:
    _later.append(descriptor)
    return descriptor
