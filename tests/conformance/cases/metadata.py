"""Modes, owners and times, and what changes them by the way. chmod(2), chown(2), utimensat(2), inode(7)."""

from __future__ import annotations

import errno
import os
import stat
import time
from pathlib import Path

from unionfs.syscalls import files as raw

from ..calls import append, child, inside, listing, opened, refused, umask, write_at
from ..table import Place, case, libfuse2
from ..trees import LONG_AGO_NS, file, folder, node, symlink

ALL = {"f": file(), "d": folder(), "d/x": file(), "l": symlink("f"), "p": node(stat.S_IFIFO)}
MOMENTS_NS = (0, 1, -1, 1_234_567_890_123_456_789, -2_000_000_000_000_000_001, (1 << 32) * 10**9 + 999_999_999)


def mode_of(path: Path) -> int:
    """Return the permission bits."""
    return os.lstat(path).st_mode & 0o7777


@case("basic", ALL)
def chmod_sets_every_bit(at: Place) -> None:
    for name in ("f", "d", "p"):
        for mode in (0o000, 0o777, 0o1755, 0o2755, 0o4755, 0o7654):
            os.chmod(at.path / name, mode)
            assert mode_of(at.path / name) == mode
    at.remount()
    assert {mode_of(at.path / name) for name in ("f", "d", "p")} == {0o7654}


@case("basic", ALL)
def chmod_follows_links_and_knows_what_is_missing(at: Place) -> None:
    os.chmod(at.path / "l", 0o604)
    assert mode_of(at.path / "f") == 0o604
    refused(errno.ENOENT, os.chmod, at.path / "missing", 0o600)
    refused(errno.ENOTDIR, os.chmod, at.path / "f/x", 0o600)
    refused(errno.EOPNOTSUPP, raw.fchmodat, raw.AT_FDCWD, os.fsencode(at.path / "l"), 0o600)


@case("basic", ALL)
def chown_sets_owner_and_group(at: Place) -> None:
    for name in ("f", "d", "p", "l"):
        os.lchown(at.path / name, 1234, 56)
        os.lchown(at.path / name, -1, 78)
        os.lchown(at.path / name, 9, -1)
    at.remount()
    for name in ("f", "d", "p", "l"):
        found = os.lstat(at.path / name)
        assert (found.st_uid, found.st_gid) == (9, 78)
    assert os.stat(at.path / "d/x").st_uid == 0


@case("basic", ALL)
def times_are_kept_to_the_nanosecond(at: Place) -> None:
    for name in ("f", "d", "p", "l"):
        for moment in MOMENTS_NS:
            os.utime(at.path / name, ns=(moment + 5, moment), follow_symlinks=False)
            found = os.lstat(at.path / name)
            assert (found.st_atime_ns, found.st_mtime_ns) == (moment + 5, moment)
    at.remount()
    assert {os.lstat(at.path / name).st_mtime_ns for name in ("f", "d", "p", "l")} == {MOMENTS_NS[-1]}


@case("basic", ALL)
def one_time_is_left_or_taken_from_the_clock(at: Place) -> None:
    now, omit = (0, raw.UTIME_NOW), (0, raw.UTIME_OMIT)
    path = os.fsencode(at.path / "f")
    raw.utimensat(raw.AT_FDCWD, path, (7, 8), omit)
    found = os.stat(path)
    assert (found.st_atime_ns, found.st_mtime_ns) == (7 * 10**9 + 8, LONG_AGO_NS)
    raw.utimensat(raw.AT_FDCWD, path, omit, now)
    found = os.stat(path)
    assert found.st_atime_ns == 7 * 10**9 + 8
    assert found.st_mtime_ns > LONG_AGO_NS
    refused(errno.EINVAL, raw.utimensat, raw.AT_FDCWD, path, (0, 10**9), omit)


def later(path: Path, *, mtime: bool, ctime: bool) -> None:
    """Assert which of the times are no longer those of ``age``."""
    found = os.lstat(path)
    assert (found.st_mtime_ns != LONG_AGO_NS) is mtime, f"mtime of {path}"
    assert (found.st_ctime_ns > _aged[path]) is ctime, f"ctime of {path}"


_aged: dict[Path, int] = {}


def age(*paths: Path) -> None:
    """Give each path an old mtime, remember when, and let the clock of the file system move on.

    Not its ctime: with ``write-back`` this is of the kernel's clock, and of the server's once the kernel has forgotten
    the file, which it may at any time. Neither is later than the end of the call that sets it.
    """
    for path in paths:
        os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS), follow_symlinks=False)
        _aged[path] = time.time_ns()
    time.sleep(0.012)  # the clock of inode times ticks at most every 10 ms


@case("posix", ALL)
def making_and_removing_dates_the_directory(at: Place) -> None:
    d = at.path / "d"
    for change in (
        lambda: (d / "new").write_bytes(b""),
        lambda: os.mkdir(d / "dir"),
        lambda: os.symlink("x", d / "link"),
        lambda: os.mkfifo(d / "fifo"),
        lambda: os.link(d / "new", d / "hard"),
        lambda: os.unlink(d / "x"),
        lambda: os.rmdir(d / "dir"),
        lambda: os.rename(d / "new", d / "renamed"),
        lambda: os.rename(d / "renamed", at.path / "out"),
    ):
        age(d)
        change()
        later(d, mtime=True, ctime=True)


@case("posix", ALL | {"e": folder()})
def a_rename_dates_both_directories(at: Place) -> None:
    for old, new in (("d/x", "e/x"), ("e/x", "d/x"), ("d/x", "e/y")):
        age(at.path / "d", at.path / "e")
        os.rename(at.path / old, at.path / new)
        later(at.path / "d", mtime=True, ctime=True)
        later(at.path / "e", mtime=True, ctime=True)


@case("posix", ALL, deviates={"write-back": "the kernel does not date a truncation to the size that there is"})
def writing_dates_the_file_and_reading_does_not(at: Place) -> None:
    f = at.path / "f"
    age(f)
    f.read_bytes()
    later(f, mtime=False, ctime=False)
    write_at(f, b"x")
    later(f, mtime=True, ctime=True)
    age(f)
    os.truncate(f, 3)
    later(f, mtime=True, ctime=True)
    age(f)
    with opened(f, os.O_WRONLY | os.O_TRUNC):
        pass
    later(f, mtime=True, ctime=True)
    age(f)
    os.truncate(f, 0)
    later(f, mtime=True, ctime=True)


@case("posix", ALL)
def changing_metadata_dates_the_inode_alone(at: Place) -> None:
    f, d = at.path / "f", at.path / "d"
    for change in (
        lambda: os.chmod(f, 0o600),
        lambda: os.chown(f, 1, 2),
        lambda: os.setxattr(f, "user.a", b"1"),
        lambda: os.removexattr(f, "user.a"),
        lambda: os.link(f, d / "g"),
        lambda: os.unlink(d / "g"),
    ):
        age(f)
        change()  # type: ignore[no-untyped-call]
        later(f, mtime=False, ctime=True)


@case("posix", ALL)
def nothing_done_dates_nothing(at: Place) -> None:
    f, d = at.path / "f", at.path / "d"
    age(f, d)
    refused(errno.EEXIST, os.mkdir, d / "x")
    refused(errno.ENOENT, os.unlink, d / "missing")
    refused(errno.EEXIST, os.link, f, d / "x")
    refused(errno.ENOTEMPTY, os.rmdir, d)
    os.listdir(d)
    with opened(f, os.O_RDWR):
        pass
    later(f, mtime=False, ctime=False)
    later(d, mtime=False, ctime=False)


SUID = {"f": file(b"0123456789", 0o6777, owner=(1000, 1000)), "s": file(b"0", 0o2767, owner=(1000, 1000))}


@case("posix", SUID)
def a_write_by_others_takes_the_set_id_bits(at: Place) -> None:
    def write() -> None:
        write_at(Path("f"), b"x")

    with inside(at.path):
        child(write, user=2000, group=2000)
    assert mode_of(at.path / "f") == 0o777
    append(at.path / "s", b"root may")
    assert mode_of(at.path / "s") == 0o2767


@case("posix", SUID)
def a_truncation_by_others_takes_the_set_id_bits(at: Place) -> None:
    with inside(at.path):
        child(lambda: os.truncate("f", 1), user=2000, group=2000)
        child(lambda: os.close(os.open("s", os.O_WRONLY | os.O_TRUNC)), user=2000, group=2000)
        os.chmod("s", 0o2767)
        child(lambda: os.close(os.open("s", os.O_WRONLY | os.O_TRUNC)), user=2000, group=2000)
    assert mode_of(at.path / "f") == 0o777
    assert mode_of(at.path / "s") == 0o767


@case("posix", SUID | {"d": folder(0o6755)})
def a_chown_takes_the_set_id_bits(at: Place) -> None:
    os.chown(at.path / "f", 5, 6)
    assert mode_of(at.path / "f") == 0o777
    os.chown(at.path / "s", 5, 6)
    assert mode_of(at.path / "s") == 0o2767
    os.chown(at.path / "d", 5, 6)
    assert mode_of(at.path / "d") == 0o6755, "directories keep theirs"


@case("posix", {"d": folder(0o2775, owner=(0, 500)), "e": folder(0o775, owner=(0, 500))})
def a_set_group_id_directory_hands_its_group_on(at: Place) -> None:
    (at.path / "d/f").write_bytes(b"")
    os.mkdir(at.path / "d/sub")
    os.mkfifo(at.path / "d/p")
    os.symlink("f", at.path / "d/l")
    assert {os.lstat(at.path / "d" / name).st_gid for name in ("f", "sub", "p", "l")} == {500}
    assert stat.S_ISGID & os.stat(at.path / "d/sub").st_mode
    assert not stat.S_ISGID & os.stat(at.path / "d/f").st_mode
    (at.path / "e/f").write_bytes(b"")
    assert os.stat(at.path / "e/f").st_gid == 0


@case("posix", {"d": folder(0o2777, owner=(0, 500))})
def a_stranger_gets_no_set_group_id_file(at: Place) -> None:
    with inside(at.path / "d"), umask(0):
        child(lambda: os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o2775)), user=1000, group=1000)
    assert mode_of(at.path / "d/f") == 0o775
    assert os.stat(at.path / "d/f").st_gid == 500


@case("basic", {"d": folder()})
def the_umask_is_taken_off(at: Place) -> None:
    with umask(0o027):
        os.close(os.open(at.path / "d/f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(at.path / "d/sub", 0o777)
        os.mknod(at.path / "d/p", stat.S_IFIFO | 0o666)
    assert [mode_of(at.path / "d" / name) for name in ("f", "sub", "p")] == [0o640, 0o750, 0o640]
    assert listing(at.path / "d") == ["f", "p", "sub"]


@case("basic", {"d": folder(0o777)})
def new_files_belong_to_who_makes_them(at: Place) -> None:
    def make() -> None:
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY))
        os.mkdir("sub")
        os.symlink("f", "l")
        os.mkfifo("p")
        os.close(os.open("sub/deep", os.O_CREAT | os.O_WRONLY))

    with inside(at.path / "d"):
        child(make, user=1000, group=1001)
    for name in ("f", "sub", "l", "p", "sub/deep"):
        found = os.lstat(at.path / "d" / name)
        assert (found.st_uid, found.st_gid) == (1000, 1001)


@case("posix", {"f": file()}, deviates=libfuse2("knows no statx"))
def the_birth_time_stays(at: Place) -> None:
    path = os.fsencode(at.path / "f")
    born = raw.statx(raw.AT_FDCWD, path)
    assert born.mask & 0x800, "STATX_BTIME"
    os.utime(path, ns=(1, 1))
    append(at.path / "f", b"!")
    (at.path / "new").write_bytes(b"")
    new = raw.statx(raw.AT_FDCWD, os.fsencode(at.path / "new"))
    assert new.btime >= born.btime
    assert new.btime[0] > LONG_AGO_NS // 10**9


@case("basic", ALL)
def statx_says_the_same_as_stat(at: Place) -> None:
    for name in ("f", "d", "l", "p", "d/x"):
        one, two = os.lstat(at.path / name), raw.statx(raw.AT_FDCWD, os.fsencode(at.path / name))
        assert (two.mode, two.uid, two.gid, two.nlink) == (one.st_mode, one.st_uid, one.st_gid, one.st_nlink)
        assert (two.ino, two.size_bytes, two.blocks) == (one.st_ino, one.st_size, one.st_blocks)
        assert two.mtime == divmod(one.st_mtime_ns, 10**9)
