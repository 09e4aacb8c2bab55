"""Who may do what. path_resolution(7), access(2), sticky directories in unlink(2)."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from ..calls import child, inside, listing, refused
from ..table import Place, case
from ..trees import file, folder

if TYPE_CHECKING:
    from collections.abc import Callable

USER = 1000
TREE = {
    "open": folder(0o777), "open/none": file(b"0", 0o000), "open/read": file(b"1", 0o444),
    "open/all": file(b"2", 0o666), "open/mine": file(b"3", 0o600, owner=(USER, USER)),
    "open/group": file(b"4", 0o060, owner=(0, 2000)), "see": folder(), "see/f": file(b"6", 0o666),
    "see/d": folder(0o777), "shut": folder(0o700), "shut/f": file(b"5", 0o666), "through": folder(0o711),
    "through/f": file(b"7", 0o666), "sticky": folder(0o1777), "sticky/root": file(b"8", 0o666),
    "sticky/mine": file(b"9", owner=(USER, USER)), "sticky/dir": folder(0o777),
}  # fmt: skip


def as_user(at: Place, *calls: Callable[[], object], groups: tuple[int, ...] = ()) -> None:
    """Let user 1000 do all this in the case's directory."""
    with inside(at.path):
        child(lambda: [call() for call in calls], user=USER, group=USER, groups=groups)


def denied(call: Callable[..., object], *arguments: object) -> Callable[[], None]:
    """Return a call that must be refused with EACCES."""
    return lambda: refused(errno.EACCES, call, *arguments)


def forbidden(call: Callable[..., object], *arguments: object) -> Callable[[], None]:
    """Return a call that must be refused with EPERM."""
    return lambda: refused(errno.EPERM, call, *arguments)


@case("basic", TREE)
def modes_are_obeyed(at: Place) -> None:
    as_user(
        at,
        denied(os.open, "open/none", os.O_RDONLY),
        denied(os.open, "open/read", os.O_WRONLY),
        denied(os.open, "open/group", os.O_RDONLY),
        denied(os.truncate, "open/read", 0),
        lambda: os.close(os.open("open/read", os.O_RDONLY)),
        lambda: os.close(os.open("open/all", os.O_RDWR)),
        lambda: os.close(os.open("open/mine", os.O_RDWR)),
    )
    as_user(at, lambda: os.close(os.open("open/group", os.O_RDWR)), groups=(2000,))


@case("basic", TREE)
def directories_are_searched_and_changed_by_right(at: Place) -> None:
    as_user(
        at,
        denied(os.stat, "shut/f"),
        denied(os.listdir, "shut"),
        denied(os.listdir, "through"),
        lambda: os.close(os.open("through/f", os.O_RDWR)),
        denied(os.mkdir, "see/new"),
        denied(os.unlink, "see/f"),
        denied(os.rmdir, "see/d"),
        denied(os.rename, "see/f", "open/f"),
        denied(os.rename, "open/all", "see/f"),
        denied(os.link, "open/mine", "see/x"),
        denied(os.symlink, "x", "see/l"),
        lambda: os.unlink("open/read"),
        lambda: os.rename("open/none", "open/moved"),
    )
    assert listing(at.path / "see") == ["d", "f"]
    assert listing(at.path / "open") == ["all", "group", "mine", "moved"]


@case("basic", TREE)
def access_tells_the_truth(at: Place) -> None:
    def ask() -> None:
        for name, right in (("none", 0), ("read", os.R_OK), ("all", os.R_OK | os.W_OK), ("mine", os.R_OK | os.W_OK)):
            for asked in (os.R_OK, os.W_OK, os.X_OK):
                assert os.access(f"open/{name}", asked) == bool(right & asked)
        assert not os.access("shut/f", os.F_OK)

    as_user(at, ask)
    assert os.access(at.path / "open/none", os.R_OK | os.W_OK)
    assert not os.access(at.path / "open/all", os.X_OK), "not even root executes what nobody may"


@case("basic", TREE)
def only_owners_change_modes_and_times(at: Place) -> None:
    as_user(
        at,
        forbidden(os.chmod, "open/all", 0o600),
        forbidden(os.chown, "open/mine", 0, -1),
        forbidden(os.chown, "open/mine", -1, 0),
        forbidden(os.utime, "open/all", (1, 1)),
        denied(os.utime, "open/read"),
        lambda: os.utime("open/all"),
        lambda: os.utime("open/mine", (1, 1)),
        lambda: os.chmod("open/mine", 0o640),
        lambda: os.chown("open/mine", USER, 2000),
        groups=(2000,),
    )
    found = os.stat(at.path / "open/mine")
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime) == (0o640, USER, 2000, 1)


@case("posix", TREE)
def sticky_directories_protect_what_is_in_them(at: Place) -> None:
    as_user(
        at,
        forbidden(os.unlink, "sticky/root"),
        forbidden(os.rmdir, "sticky/dir"),
        forbidden(os.rename, "sticky/root", "open/stolen"),
        forbidden(os.rename, "open/mine", "sticky/root"),
        lambda: os.rename("sticky/mine", "sticky/renamed"),
        lambda: os.unlink("sticky/renamed"),
        lambda: os.mkdir("sticky/own"),
        lambda: os.rmdir("sticky/own"),
    )
    assert listing(at.path / "sticky") == ["dir", "root"]


@case("posix", TREE)
def only_root_makes_devices(at: Place) -> None:
    as_user(
        at,
        forbidden(os.mknod, "open/c", 0o020666, os.makedev(1, 3)),
        forbidden(os.mknod, "open/b", 0o060666, os.makedev(7, 0)),
        lambda: os.mknod("open/p", 0o010666),
        lambda: os.mknod("open/s", 0o140666),
    )
    assert {"p", "s"} <= set(listing(at.path / "open"))


@case("posix", TREE)
def a_directory_that_changes_its_parent_must_be_writable(at: Place) -> None:
    as_user(
        at,
        lambda: os.mkdir("open/own", 0o500),
        lambda: os.rename("open/own", "open/renamed"),
        lambda: os.mkdir("open/target"),
        denied(os.rename, "open/renamed", "open/target/moved"),
    )
    assert os.path.isdir(at.path / "open/renamed")


@case("posix", TREE)
def rights_are_checked_when_a_file_is_opened(at: Place) -> None:
    def work() -> None:
        held = os.open("open/mine", os.O_RDWR)
        os.chmod("open/mine", 0o000)
        os.pwrite(held, b"still", 0)
        assert os.pread(held, 10, 0) == b"still"
        refused(errno.EACCES, os.open, "open/mine", os.O_RDONLY)
        new = os.open("open/new", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o000)
        os.write(new, b"written although the mode forbids it")

    as_user(at, work)
    assert (at.path / "open/mine").read_bytes() == b"still"
    assert os.stat(at.path / "open/new").st_size == 36
