"""The transport through libfuse: what its path interface makes hard. What every mount must do is in ``conformance``."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance.calls import opened, refused
from tests.support import leftovers
from tests.support.mounts import LIMIT_S, ROOT, is_mounted, layer_options, overlayfs_mount, prepare, run, union_mount
from tests.support.probes import need, requires
from tests.support.trees import assert_same_tree, digest_of_layer, snapshot
from unionfs.syscalls import files

from .command import servers, unionmount

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = requires("root", "fuse", "libfuse2")

WORDS = ("--transport", "fusepy")
NOBODY = 65534


@contextmanager
def mounted(base: Path, options: str = "", *, writable: bool = True) -> Iterator[Path]:
    """Mount the stack that ``prepare`` made below ``base``; its server must end well and have nothing to say."""
    lowers, upper, work = prepare(base, 2)
    rest = (upper, work) if writable else (None, None)
    with union_mount(base, lowers, rest[0], rest[1], options, words=WORDS) as point:
        yield point


def fill(base: Path) -> None:
    """Put a small tree into the two lower layers."""
    lower, lowest = prepare(base, 2)[0]
    (lower / "dir").mkdir()
    (lowest / "dir").mkdir()
    for directory in (lower / "dir", lowest / "dir", lower, lowest):
        for name in ("both", f"only-{directory.relative_to(base)}".replace("/", "-")):
            (directory / name).write_text(f"{name} of {directory.name}")
    os.link(lower / "both", lower / "twin")


def server(point: Path) -> int:
    """Return the process id of the server."""
    (found,) = servers(point)
    return found.pid


def change(point: Path) -> None:
    """Leave every kind of mark in the writable layer."""
    (point / "dir/both").write_text("changed")
    (point / "new").mkdir()
    (point / "new/file").write_text("new")
    os.symlink("both", point / "new/link")
    os.mknod(point / "new/null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.unlink(point / "only-lower1")
    os.unlink(point / "twin")
    os.chmod(point / "both", 0o604)
    os.rename(point / "new", point / "moved")
    for name in os.listdir(point / "dir"):
        os.unlink(point / "dir" / name)
    os.rmdir(point / "dir")
    (point / "dir").mkdir()
    for path in sorted(point.rglob("*")):
        os.utime(path, ns=(1, 1), follow_symlinks=False)
    os.utime(point, ns=(1, 1))


# -- the same as the others ------------------------------------------------------------------------------------------


def test_overlayfs_shows_what_was_left(tmp_path: Path) -> None:
    """The kernel's overlayfs makes the same tree of the same changes, and shows the same tree from our layers."""
    need("overlayfs")
    for name in ("ours", "theirs"):
        fill(tmp_path / name)
    lowers, upper, work = prepare(tmp_path / "ours", 2)
    digest = [digest_of_layer(layer) for layer in lowers]
    with mounted(tmp_path / "ours") as point:
        change(point)
        ours = snapshot(point)
    with overlayfs_mount(tmp_path / "theirs", *prepare(tmp_path / "theirs", 2), "index=on") as point:
        change(point)
        assert_same_tree(ours, point)
    with overlayfs_mount(tmp_path / "ours", lowers, upper, work, "index=on") as point:
        assert_same_tree(ours, point)
    with mounted(tmp_path / "ours") as point:
        assert_same_tree(ours, point)
    assert [digest_of_layer(layer) for layer in lowers] == digest


def test_the_mount_is_called_what_it_is(tmp_path: Path) -> None:
    """Mount tables show the usual type and source, and no more rights than were asked for."""
    with mounted(tmp_path, "nosuid,noexec,fsname=a name\\,b"):
        (mount,) = [found for found in leftovers.mounts() if found.point == os.fsencode(tmp_path / "unionfs")]
        assert mount.kind == "fuse.unionmount"
        line = next(line for line in Path("/proc/mounts").read_text().splitlines() if str(tmp_path) in line)
        source, words = line.split()[0], line.split()[3].split(",")
        assert source == "a\\040name,b"
        assert {"rw", "nosuid", "noexec", "default_permissions", "allow_other"} <= set(words)
        assert "nodev" not in words


def test_without_an_upper_nothing_can_change(tmp_path: Path) -> None:
    """The kernel itself refuses, and reading works."""
    fill(tmp_path)
    with mounted(tmp_path, writable=False) as point:
        assert (point / "dir/both").read_text() == "both of dir"
        refused(errno.EROFS, os.unlink, point / "both")
        refused(errno.EROFS, os.open, point / "both", os.O_WRONLY)
        assert os.statvfs(point).f_flag & os.ST_RDONLY


# -- files that lost their names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["lower", "upper"])
@pytest.mark.parametrize("how", ["unlinked", "replaced"])
def test_an_open_file_that_lost_its_name_is_whole(tmp_path: Path, where: str, how: str) -> None:
    """All calls on its descriptor work, it has no links, shows nowhere, and keeps its directory from nothing."""
    fill(tmp_path)
    with mounted(tmp_path) as point:
        path = point / "dir/both"
        if where == "upper":
            path.write_text("both of dir")
        with opened(path, os.O_RDWR) as descriptor:
            if how == "unlinked":
                os.unlink(path)
            else:
                (point / "other").write_text("replacement")
                os.rename(point / "other", path)
                assert path.read_text() == "replacement"
                os.unlink(path)
            _is_whole(descriptor)
            assert not [name for name in os.listdir(point / "dir") if "hidden" in name]
            for name in os.listdir(point / "dir"):
                os.unlink(point / "dir" / name)
            os.rmdir(point / "dir")
            assert os.pread(descriptor, 4, 0) == b"both"
        assert not (tmp_path / "upper/dir").is_dir()


def _is_whole(descriptor: int) -> None:
    assert os.fstat(descriptor).st_nlink == 0
    assert os.pread(descriptor, 100, 0) == b"both of dir"
    os.fchmod(descriptor, 0o640)
    os.fchown(descriptor, 1, 2)
    os.utime(descriptor, ns=(5, 7))
    os.setxattr(descriptor, "user.key", b"value")
    os.ftruncate(descriptor, 4)
    os.pwrite(descriptor, b"!", 6)
    os.fsync(descriptor)
    found = os.fstat(descriptor)
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_size) == (0o640, 1, 2, 7)
    assert os.pread(descriptor, 100, 0) == b"both\0\0!"
    assert os.getxattr(descriptor, "user.key") == b"value"


def test_a_hidden_name_of_one_name_among_several(tmp_path: Path) -> None:
    """The other names of an open file stay, and count right, by every way of asking."""
    fill(tmp_path)
    with mounted(tmp_path) as point, opened(point / "both", os.O_RDONLY) as descriptor:
        os.link(point / "both", point / "third")
        assert os.fstat(descriptor).st_nlink == 3
        os.unlink(point / "both")
        assert os.fstat(descriptor).st_nlink == os.stat(point / "third").st_nlink == 2
        assert os.fstat(descriptor).st_ino == os.stat(point / "third").st_ino


def test_a_layer_may_hold_a_hidden_name(tmp_path: Path) -> None:
    """What another file system of libfuse left behind is a file like any other, as long as it is not open."""
    name = ".fuse_hidden0000000500000001"
    (prepare(tmp_path, 2)[0][0] / name).write_text("left")
    with mounted(tmp_path) as point:
        assert os.listdir(point) == [name]
        assert (point / name).read_text() == "left"
        os.rename(point / name, point / "found")
        os.rename(point / "found", point / name)
        assert os.listdir(point) == [name]


def test_removed_files_cost_no_descriptor(tmp_path: Path) -> None:
    """A file that nobody has open is gone when it is removed, although its path was remembered."""
    with mounted(tmp_path) as point:
        for number in range(50):
            (point / str(number)).write_text("x")
        before = len(os.listdir(f"/proc/{server(point)}/fd"))
        for number in range(50):
            os.stat(point / str(number))
            os.unlink(point / str(number))
        assert len(os.listdir(f"/proc/{server(point)}/fd")) <= before


# -- several names ---------------------------------------------------------------------------------------------------


def test_changes_by_one_name_show_by_the_other_at_once(tmp_path: Path) -> None:
    """The kernel takes the two for different files, so nothing of their attributes may be cached."""
    fill(tmp_path)
    with mounted(tmp_path) as point:
        both, twin = point / "both", point / "twin"
        assert os.stat(both).st_ino == os.stat(twin).st_ino
        assert twin.read_text() == "both of lower0"
        os.chmod(both, 0)
        assert os.stat(twin).st_mode & 0o777 == 0
        both.write_text("by the one")
        assert twin.read_text() == "by the one"
        os.truncate(twin, 2)
        assert both.read_text() == "by"


def test_appending_by_two_names_loses_nothing(tmp_path: Path) -> None:
    """Each kernel inode has an idea of its own of where the file ends."""
    with mounted(tmp_path) as point:
        (point / "a").touch()
        os.link(point / "a", point / "b")
        with opened(point / "a", os.O_WRONLY | os.O_APPEND) as a, opened(point / "b", os.O_WRONLY | os.O_APPEND) as b:
            for number in range(20):
                os.write((a, b)[number % 2], b"%02d" % number)
        expected = b"".join(b"%02d" % number for number in range(20))
        assert (point / "a").read_bytes() == (point / "b").read_bytes() == expected


# -- names and directories -------------------------------------------------------------------------------------------


def test_names_of_any_bytes(tmp_path: Path) -> None:
    """fusepy decodes names; all bytes but two survive that, in names, targets and attributes."""
    name = bytes(set(range(1, 256)) - {ord("/")})
    with mounted(tmp_path) as point:
        path = os.fsencode(point) + b"/" + name
        os.mkdir(path)
        os.symlink(name, path + b"/" + name)
        os.rename(path + b"/" + name, path + b"/\xff")
        assert os.listdir(os.fsencode(point)) == [name]
        assert os.listdir(path) == [b"\xff"]
        assert os.readlink(path + b"/\xff") == name
        os.setxattr(path, b"user.\xe9", b"\xff\0")
        assert os.getxattr(path, b"user.\xe9") == b"\xff\0"
        assert [os.fsencode(key) for key in os.listxattr(path)] == [b"user.\xe9"]
        refused(errno.ENAMETOOLONG, os.mkdir, path + b"x" * 5)
    assert os.listdir(os.fsencode(tmp_path / "upper")) == [name]


def test_a_large_directory_is_listed_once(tmp_path: Path) -> None:
    """Many answers make one listing, whose inode numbers are those of stat, and which holds while names go."""
    lower = prepare(tmp_path, 2)[0][0]
    names = {f"{number:04}" for number in range(3000)}
    for name in names:
        (lower / name).touch()
    with mounted(tmp_path) as point:
        (point / "0007").write_text("copied up")
        (point / "new").touch()
        inos = {entry.name: entry.inode() for entry in os.scandir(point)}
        assert inos.keys() == names | {"new"}
        assert all(os.stat(point / name).st_ino == ino for name, ino in sorted(inos.items())[::100])
        assert os.stat(point / "0007").st_ino == inos["0007"]
        seen = []
        with os.scandir(point) as entries:
            for entry in entries:
                seen.append(entry.name)
                os.unlink(entry.path)
        assert sorted(seen) == sorted(names | {"new"})
        assert os.listdir(point) == []


def test_positions_in_a_directory_hold(tmp_path: Path) -> None:
    """What telldir(3) told is good after the end was reached, and after names before it have gone."""
    lower = prepare(tmp_path, 2)[0][0]
    for number in range(2000):
        (lower / f"{number:04}").touch()
    with mounted(tmp_path) as point, opened(point, os.O_RDONLY | os.O_DIRECTORY) as directory:
        entries = []
        while chunk := _entries(directory):
            entries += chunk
        assert len({name for name, _ in entries}) == 2002
        os.unlink(point / os.fsdecode(entries[3][0]))
        for number in (1999, 700):
            os.lseek(directory, entries[number][1], os.SEEK_SET)
            assert _entries(directory)[0] == entries[number + 1]


def _entries(directory: int) -> list[tuple[bytes, int]]:
    """Read one buffer of a directory; return names and the positions after them, see getdents(2)."""
    data, found = files.getdents(directory), []
    while data:
        position = int.from_bytes(data[8:16], sys.byteorder)
        length = int.from_bytes(data[16:18], sys.byteorder)
        found.append((data[19:length].split(b"\0")[0], position))
        data = data[length:]
    return found


# -- on behalf of callers --------------------------------------------------------------------------------------------


def _as_nobody(point: Path, *command: str, umask: int = 0o022) -> None:
    """Run a command in the mount's root, to which an ordinary user need not have a way."""
    subprocess.run(
        command, cwd=point, umask=umask, check=True, timeout=LIMIT_S, user=NOBODY, group=NOBODY, extra_groups=[]
    )


def test_files_belong_to_who_makes_them(tmp_path: Path) -> None:
    """Owner, group and umask are those of the caller; a default ACL takes the place of the umask."""
    need("setfacl")
    with mounted(tmp_path) as point:
        os.chmod(point, 0o777)
        _as_nobody(point, "mkdir", "made", umask=0o077)
        _as_nobody(point, "touch", "made/file", umask=0o027)
        made = [os.stat(point / name) for name in ("made", "made/file")]
        assert [(found.st_uid, found.st_gid, found.st_mode & 0o777) for found in made] == [
            (NOBODY, NOBODY, 0o700),
            (NOBODY, NOBODY, 0o640),
        ]
        _as_nobody(point, "setfacl", "-d", "-m", "g::rwx,o::rx", "made")
        _as_nobody(point, "mkdir", "made/inherits", umask=0o077)
        assert os.stat(point / "made/inherits").st_mode & 0o777 == 0o775


def test_truncating_takes_set_id_bits_away(tmp_path: Path) -> None:
    """From an unprivileged writer, by each of the ways to make a file shorter."""
    with mounted(tmp_path) as point:
        for number, command in enumerate((": > {}", "truncate -s 1 {}", "echo x >> {}")):
            path = point / f"program{number}"
            path.write_text("code")
            os.chmod(path, 0o6777)
            _as_nobody(point, "sh", "-c", command.format(path.name))
            assert os.stat(path).st_mode & 0o7777 == 0o777, command


def test_times_to_the_nanosecond(tmp_path: Path) -> None:
    """One of the two alone, before 1970, after 2038, and such that look like UTIME_OMIT when they are added up."""
    with mounted(tmp_path) as point:
        path = point / "f"
        path.touch()
        name = os.fsencode(path)
        for time in ((-1, 999999999), (2**32 + 5, 1), (1, files.UTIME_OMIT - 10**9), (1, files.UTIME_NOW - 10**9)):
            files.utimensat(files.AT_FDCWD, name, time, (3, 4))
            assert os.stat(path).st_atime_ns == time[0] * 10**9 + time[1]
        before = os.stat(path)
        files.utimensat(files.AT_FDCWD, name, (0, files.UTIME_OMIT), (7, 8))
        after = os.stat(path)
        assert (after.st_atime_ns, after.st_mtime_ns) == (before.st_atime_ns, 7 * 10**9 + 8)
        files.utimensat(files.AT_FDCWD, name, (0, files.UTIME_NOW), (0, files.UTIME_OMIT))
        assert os.stat(path).st_atime_ns > 10**18
        assert os.stat(path).st_mtime_ns == after.st_mtime_ns


def test_inode_flags(tmp_path: Path) -> None:
    """What chattr(1) asks for reaches the real file."""
    need("mkfs.ext4")  # its package has chattr(1) as well
    with mounted(tmp_path) as point:
        (point / "f").touch()
        (point / "d").mkdir()
        for path in (point / "f", point / "d"):
            run("chattr", "+d", path)
            assert "d" in run("lsattr", "-d", path).stdout.split()[0]
            assert "d" in run("lsattr", "-d", tmp_path / "upper" / path.name).stdout.split()[0]
        with opened(point / "f", os.O_RDONLY) as descriptor:
            refused(errno.ENOTTY, fcntl.ioctl, descriptor, 0x5401, bytes(64))


# -- its process -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_unmounts(tmp_path: Path, number: signal.Signals) -> None:
    """The mount goes with its server, and the writable layer can be used again."""
    fill(tmp_path)
    lowers, upper, work = prepare(tmp_path, 2)
    point = tmp_path / "m"
    point.mkdir()
    command = [
        sys.executable,
        "-m",
        "unionfs.cli.main",
        "-f",
        *WORDS,
        "-o",
        layer_options(lowers, upper, work),
        str(point),
    ]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    try:
        while not is_mounted(point):
            assert process.poll() is None, process.communicate()
        assert (point / "both").read_text() == "both of lower0"
        process.send_signal(number)
        assert (process.communicate(timeout=LIMIT_S)[1], process.returncode) == (b"", 0)
        assert not is_mounted(point)
    finally:
        process.kill()
        process.wait()
    with mounted(tmp_path) as again:
        assert (again / "both").read_text() == "both of lower0"


def test_in_the_background(tmp_path: Path) -> None:
    """The command returns once the mount answers, and ``umount`` once the server has ended."""
    fill(tmp_path)
    lowers, upper, work = prepare(tmp_path, 2)
    point = tmp_path / "m"
    point.mkdir()
    done = unionmount(*WORDS, "-o", layer_options(lowers, upper, work), point)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (point / "both").read_text() == "both of lower0"
    done = unionmount("umount", point)
    assert (done.returncode, done.stderr) == (0, "")
    assert servers(point) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [("blksize=3", "mount failed: Invalid argument"), ("nosymfollow", "nosymfollow"), ("blkdev", "blkdev")],
)
def test_what_libfuse_says_is_passed_on(tmp_path: Path, options: str, reason: str) -> None:
    """A mount that fails is one line, and no server is left."""
    lowers, upper, work = prepare(tmp_path, 2)
    point = tmp_path / "m"
    point.mkdir()
    done = unionmount(*WORDS, "-o", layer_options(lowers, upper, work, options), point)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert str(point) in done.stderr
    assert reason in done.stderr
    assert not is_mounted(point)
    assert servers(point) == []


@pytest.mark.parametrize(
    ("library", "package", "says"),
    [("/missing.so", None, "libfuse 2"), ("", "raise ModuleNotFoundError", "pip install fusepy")],
)
def test_what_is_missing_is_named(tmp_path: Path, library: str, package: str | None, says: str) -> None:
    """Without libfuse, or without a package that speaks to it, the line says what to install."""
    for name in ("fuse", "mfusepy") if package else ():
        (tmp_path / f"{name}.py").write_text(package or "")
    prepare(tmp_path)
    (tmp_path / "m").mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "FUSE_LIBRARY_PATH": library}
    words = [*WORDS, "-o", f"lowerdir={tmp_path}/lower0", str(tmp_path / "m")]
    command = [sys.executable, "-m", "unionfs.cli.main", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert says in done.stderr


def test_commands_learn_what_is_mounted(tmp_path: Path) -> None:
    """``diff`` of a mountpoint asks the server for its layers."""
    fill(tmp_path)
    with mounted(tmp_path) as point:
        (point / "added").touch()
        os.unlink(point / "both")
        done = unionmount("diff", point)
        assert (done.returncode, done.stdout.splitlines()) == (0, ["A /added", "D /both"])
