"""Symbolic links, hard links and nodes that are not files. symlink(2), link(2), mknod(2)."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading

from ..calls import inside, listing, opened, refused, write_at
from ..table import Place, case
from ..trees import file, folder, hard, node, symlink

TWINS = {"a": file(b"shared"), "b": hard("a"), "d": folder(), "d/c": hard("a"), "other": file(b"other")}
LINKS = {"f": file(), "l": symlink("f"), "dangling": symlink("nowhere"), "d": folder(), "d/up": symlink("../f")}
NODES = {
    "p": node(stat.S_IFIFO, 0o620),
    "s": node(stat.S_IFSOCK, 0o700),
    "c": node(stat.S_IFCHR, 0o600, os.makedev(1, 3)),
}


@case("basic", LINKS)
def symlinks_are_read_and_followed(at: Place) -> None:
    assert os.readlink(at.path / "l") == "f"
    assert os.lstat(at.path / "l").st_size == 1
    assert (at.path / "d/up").read_bytes() == b"0123456789"
    write_at(at.path / "l", b"#")
    assert (at.path / "f").read_bytes() == b"#123456789"
    assert os.path.islink(at.path / "l")
    refused(errno.EINVAL, os.readlink, at.path / "f")
    refused(errno.ENOENT, os.stat, at.path / "dangling")


@case("basic", LINKS)
def symlinks_are_made_and_removed(at: Place) -> None:
    for name in ("f", "l", "dangling", "d"):
        refused(errno.EEXIST, os.symlink, "x", at.path / name)
    os.unlink(at.path / "l")
    assert (at.path / "f").exists()
    os.symlink("d", at.path / "l")
    assert os.readlink(at.path / "l") == "d"
    os.symlink("made", at.path / "through")
    (at.path / "through").write_bytes(b"x")
    assert (at.path / "made").read_bytes() == b"x"


@case("basic")
def symlink_targets_of_any_length(at: Place) -> None:
    for size in (1, 255, 4000, 4095):
        os.symlink("t" * size, at.path / f"l{size}")
        assert os.readlink(at.path / f"l{size}") == "t" * size
        assert os.lstat(at.path / f"l{size}").st_size == size
    refused(errno.ENAMETOOLONG, os.symlink, "t" * 4096, at.path / "long")
    refused(errno.ENOENT, os.symlink, "", at.path / "empty")
    os.symlink(b"\xff\xfe/\x01", os.fsencode(at.path / "bytes"))
    assert os.readlink(os.fsencode(at.path / "bytes")) == b"\xff\xfe/\x01"


@case("basic", LINKS)
def symlinks_keep_owner_and_times_of_their_own(at: Place) -> None:
    os.chown(at.path / "l", 12, 34, follow_symlinks=False)
    os.utime(at.path / "l", ns=(5, 1_234_567_890_123_456_789), follow_symlinks=False)
    link, target = os.lstat(at.path / "l"), os.stat(at.path / "l")
    assert (link.st_uid, link.st_gid, link.st_mtime_ns) == (12, 34, 1_234_567_890_123_456_789)
    assert (target.st_uid, target.st_gid) == (0, 0)
    assert os.readlink(at.path / "l") == "f"


@case("basic", {"f": file()})
def a_link_is_the_same_file(at: Place) -> None:
    os.link(at.path / "f", at.path / "g")
    one, two = os.stat(at.path / "f"), os.stat(at.path / "g")
    assert (one.st_ino, one.st_nlink) == (two.st_ino, two.st_nlink)
    assert one.st_nlink == 2
    write_at(at.path / "g", b"new")
    assert (at.path / "f").read_bytes() == b"new3456789"
    os.chmod(at.path / "f", 0o600)
    assert os.stat(at.path / "g").st_mode & 0o777 == 0o600
    os.unlink(at.path / "f")
    assert (at.path / "g").read_bytes() == b"new3456789"
    assert os.stat(at.path / "g").st_nlink == 1


@case("basic", {"f": file(), "d": folder(), "l": symlink("f"), "p": node(stat.S_IFIFO)})
def link_refuses_what_it_must(at: Place) -> None:
    refused(errno.EEXIST, os.link, at.path / "f", at.path / "d")
    refused(errno.EEXIST, os.link, at.path / "f", at.path / "l")
    refused(errno.EPERM, os.link, at.path / "d", at.path / "x")
    refused(errno.ENOENT, os.link, at.path / "missing", at.path / "x")
    refused(errno.ENOENT, os.link, at.path / "f", at.path / "missing/x")
    refused(errno.ENOTDIR, os.link, at.path / "f", at.path / "f/x")
    assert os.stat(at.path / "f").st_nlink == 1


@case("basic", {"f": file(), "l": symlink("f"), "p": node(stat.S_IFIFO)})
def links_to_what_is_no_file(at: Place) -> None:
    os.link(at.path / "l", at.path / "l2", follow_symlinks=False)
    assert os.readlink(at.path / "l2") == "f"
    assert os.lstat(at.path / "l2").st_nlink == 2
    os.link(at.path / "p", at.path / "p2")
    assert os.stat(at.path / "p2").st_ino == os.stat(at.path / "p").st_ino


@case("basic", TWINS)
def links_of_a_layer_stay_one_file(at: Place) -> None:
    names = ("a", "b", "d/c")

    def agree(content: bytes) -> None:
        stats = [os.stat(at.path / name) for name in names]
        assert len({(found.st_ino, found.st_mode, found.st_size) for found in stats}) == 1
        assert [found.st_nlink for found in stats] == [3, 3, 3]
        assert [(at.path / name).read_bytes() for name in names] == [content] * 3

    agree(b"shared")
    write_at(at.path / "b", b"S")
    agree(b"Shared")
    os.chmod(at.path / "d/c", 0o751)
    agree(b"Shared")
    at.remount()
    agree(b"Shared")
    assert os.stat(at.path / "other").st_ino != os.stat(at.path / "a").st_ino


@case("basic", TWINS)
def one_of_several_links_goes(at: Place) -> None:
    write_at(at.path / "a", b"S")
    os.unlink(at.path / "a")
    assert os.stat(at.path / "b").st_nlink == 2
    assert (at.path / "d/c").read_bytes() == b"Shared"
    os.unlink(at.path / "b")
    assert os.stat(at.path / "d/c").st_nlink == 1
    at.remount()
    assert os.stat(at.path / "d/c").st_nlink == 1
    assert (at.path / "d/c").read_bytes() == b"Shared"


@case("basic", TWINS)
def links_go_before_any_copy(at: Place) -> None:
    os.unlink(at.path / "b")
    assert os.stat(at.path / "a").st_nlink == 2
    write_at(at.path / "d/c", b"S")
    assert (at.path / "a").read_bytes() == b"Shared"
    assert os.stat(at.path / "a").st_ino == os.stat(at.path / "d/c").st_ino


@case("basic", TWINS)
def a_link_more_to_a_file_of_several_names(at: Place) -> None:
    os.link(at.path / "b", at.path / "e")
    assert {os.stat(at.path / name).st_nlink for name in ("a", "b", "d/c", "e")} == {4}
    assert len({os.stat(at.path / name).st_ino for name in ("a", "b", "d/c", "e")}) == 1
    write_at(at.path / "e", b"S")
    assert (at.path / "a").read_bytes() == b"Shared"


@case("posix", TWINS)
def a_link_is_renamed(at: Place) -> None:
    os.rename(at.path / "b", at.path / "d/moved")
    assert os.stat(at.path / "a").st_nlink == 3
    write_at(at.path / "d/moved", b"S")
    assert (at.path / "a").read_bytes() == b"Shared"
    os.rename(at.path / "a", at.path / "d/c")
    assert os.path.exists(at.path / "a"), "rename(2) of two names of one file does nothing"
    os.rename(at.path / "other", at.path / "a")
    assert os.stat(at.path / "d/c").st_nlink == 2


@case("posix", TWINS)
def an_open_link_counts_its_names(at: Place) -> None:
    with opened(at.path / "a", os.O_RDONLY) as a:
        for name, left in (("b", 2), ("d/c", 1), ("a", 0)):
            os.unlink(at.path / name)
            assert os.fstat(a).st_nlink == left
        assert os.pread(a, 10, 0) == b"shared"


@case("basic")
def mknod_makes_every_type(at: Place) -> None:
    for name, kind, device in (
        ("p", stat.S_IFIFO, 0), ("s", stat.S_IFSOCK, 0), ("f", stat.S_IFREG, 0),
        ("c", stat.S_IFCHR, os.makedev(1, 3)), ("b", stat.S_IFBLK, os.makedev(259, 1048575)),
    ):  # fmt: skip
        os.mknod(at.path / name, kind | 0o640, device)
        made = os.lstat(at.path / name)
        assert (stat.S_IFMT(made.st_mode), made.st_mode & 0o7777, made.st_rdev) == (kind, 0o640, device)
        refused(errno.EEXIST, os.mknod, at.path / name, kind | 0o600, device)
    at.remount()
    assert os.lstat(at.path / "b").st_rdev == os.makedev(259, 1048575)


@case("basic", deviates={"overlayfs": "refuses the device 0:0, so that no overlay can have its upper in it"})
def the_device_of_whiteouts_is_a_file(at: Place) -> None:
    os.mknod(at.path / "w", stat.S_IFCHR | 0o600, 0)
    refused(errno.EEXIST, os.mknod, at.path / "w", stat.S_IFREG | 0o600)
    os.rename(at.path / "w", at.path / "moved")
    at.remount()
    made = os.lstat(at.path / "moved")
    assert (listing(at.path), stat.S_IFMT(made.st_mode), made.st_rdev) == (["moved"], stat.S_IFCHR, 0)


@case("basic", NODES)
def nodes_are_copied_up_as_what_they_are(at: Place) -> None:
    for name, entry in NODES.items():
        os.chmod(at.path / name, 0o604)
        os.rename(at.path / name, at.path / f"new-{name}")
        found = os.lstat(at.path / f"new-{name}")
        assert (stat.S_IFMT(found.st_mode), found.st_mode & 0o7777, found.st_rdev) == (entry.kind, 0o604, entry.rdev)
    assert listing(at.path) == ["new-c", "new-p", "new-s"]


@case("basic", NODES)
def a_fifo_carries_data(at: Place) -> None:
    def write() -> None:
        with opened(at.path / "p", os.O_WRONLY) as out:
            os.write(out, b"through the fifo")

    writer = threading.Thread(target=write)
    writer.start()
    with opened(at.path / "p", os.O_RDONLY) as source:
        assert os.read(source, 100) == b"through the fifo"
    writer.join()


@case("basic", NODES)
def a_device_node_opens_its_device(at: Place) -> None:
    with opened(at.path / "c", os.O_RDWR) as null:
        assert os.read(null, 10) == b""
        assert os.write(null, b"x") == 1


@case("basic")
def a_socket_is_bound_and_answers(at: Place) -> None:
    with inside(at.path), socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind("s")
        server.listen()
        client.connect("s")
        assert stat.S_ISSOCK(os.lstat("s").st_mode)
        refused(errno.ENXIO, os.open, "s", os.O_RDONLY)
