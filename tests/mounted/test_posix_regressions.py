"""What public suites for POSIX and for union file systems found wrong, a test each."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import sys
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING

import pytest

from tests.conformance.calls import child, mapped, opened, refused
from tests.support.mounts import prepare, union_mount
from tests.support.probes import requires
from unionfs.syscalls import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = requires("root", "fuse")

STRANGER = 65534
IMMUTABLE, APPEND_ONLY = 0x10, 0x20


@pytest.fixture(scope="module")
def point(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A union of one lower layer."""
    base = tmp_path_factory.mktemp("regressions")
    with union_mount(base, *prepare(base)) as mountpoint:
        yield mountpoint


@pytest.fixture
def mount(point: Path) -> Path:
    """A directory of its own for each test."""
    directory = point / f"d{len(os.listdir(point))}"
    directory.mkdir()
    return directory


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("mode", [0o4777, 0o2777, 0o6777])
@pytest.mark.parametrize("before", [True, False], ids=["set before the open", "set after it"])
def test_a_strangers_write_clears_set_id_bits(mount: Path, mode: int, before: bool) -> None:
    """Also if the kernel writes to the real file by itself; see write(2) and pjdfstest's chmod/12.t."""
    program = mount / "program"
    program.write_bytes(b"old")
    program.chmod(mode if before else 0o777)
    with opened(program, os.O_WRONLY) as descriptor:
        program.chmod(mode)
        child(lambda: os.write(descriptor, b"new"), user=STRANGER, group=STRANGER)
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o777
    assert program.read_bytes() == b"new"


def test_a_program_changed_by_a_stranger_runs_without_privilege(mount: Path) -> None:
    """Even if nobody has looked at its attributes since: execve(2) must not go by what the kernel's cache has."""
    program = mount / "program"
    shutil.copyfile("/bin/cat", program)
    program.chmod(0o4777)
    assert "Uid:\t65534\t0\t0\t0" in _status_of(program)
    program.chmod(0o777)
    with opened(program, os.O_WRONLY | os.O_APPEND) as descriptor:
        program.chmod(0o4777)
        child(lambda: os.write(descriptor, b"\0"), user=STRANGER, group=STRANGER)
    assert "Uid:\t65534\t65534\t65534\t65534" in _status_of(program)


def _status_of(program: Path) -> str:
    """Run ``program``, a copy of cat(1), for a stranger who may not walk to it; return its /proc/self/status."""
    reading, writing = os.pipe()
    executable = os.open(program, os.O_RDONLY)

    def execute() -> None:
        os.dup2(writing, 1)
        os.execve(executable, ["cat", "/proc/self/status"], {})

    child(execute, user=STRANGER, group=STRANGER)
    os.close(executable)
    os.close(writing)
    with open(reading) as stream:
        return stream.read()


@requires("passthrough")
def test_a_direct_writer_is_refused_what_the_file_system_refuses(mount: Path) -> None:
    """And takes set-id bits away; see write(2) and open(2), O_DIRECT."""
    path = mount / "direct"
    path.write_bytes(b"")
    path.chmod(0o777)
    with opened(path, os.O_WRONLY | os.O_DIRECT) as descriptor, mmap.mmap(-1, mmap.PAGESIZE) as page:
        path.chmod(0o6777)
        refused(errno.EINVAL, os.pwrite, descriptor, page[:100], 0)
        child(lambda: os.write(descriptor, page), user=STRANGER, group=STRANGER)
        assert stat.S_IMODE(os.fstat(descriptor).st_mode) == 0o777
    assert path.read_bytes() == bytes(mmap.PAGESIZE)


def test_roots_write_keeps_set_id_bits(mount: Path) -> None:
    """CAP_FSETID keeps them, on a file that had them when it was opened."""
    program = mount / "program"
    program.write_bytes(b"old")
    program.chmod(0o6755)
    with opened(program, os.O_WRONLY) as descriptor:
        os.write(descriptor, b"new")
    assert _mode(program) == 0o6755


def test_what_a_mapping_wrote_is_no_hole(mount: Path) -> None:
    """SEEK_DATA finds it before the page is written back, or cp(1) would copy zeros; found by random operations."""
    path = mount / "sparse"
    path.write_bytes(b"")
    path.chmod(0o4755)  # a set-id file is never passed through
    with opened(path, os.O_RDWR) as descriptor:
        os.ftruncate(descriptor, 1 << 20)
        with mapped(descriptor, 1 << 20) as mapping:
            mapping[500_000:500_004] = b"data"
            block = 500_000 // mmap.PAGESIZE * mmap.PAGESIZE
            assert os.lseek(descriptor, 0, os.SEEK_DATA) == block
            assert os.lseek(descriptor, block, os.SEEK_HOLE) == block + mmap.PAGESIZE
    with opened(path, os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 4, 500_000) == b"data"


@pytest.mark.parametrize(
    "words",
    [
        ("--mode", "opened"),
        ("--mode", "auto"),
        pytest.param(("--transport", "fusepy"), marks=requires("libfuse2")),
    ],
    ids="-".join,
)
def test_emptying_a_file_ends_what_mappings_wrote(tmp_path: Path, words: tuple[str, str]) -> None:
    """The kernel may write back pages after open(2) has emptied the file: these do not belong to it; found by fsx.

    More of them than it sends at once, and a reader from before the copy-up, for whose sake the file stays cached.
    """
    lowers, upper, work = prepare(tmp_path)
    pages = 2000
    (lowers[0] / "file").write_bytes(b"a" * pages * mmap.PAGESIZE)
    with (
        union_mount(tmp_path, lowers, upper, work, words=words) as mount,
        opened(mount / "file", os.O_RDONLY) as reader,
        opened(mount / "file", os.O_RDWR) as descriptor,
        mapped(descriptor, pages * mmap.PAGESIZE) as mapping,
    ):
        for page in range(0, pages, 2):
            mapping[page * mmap.PAGESIZE] = 0
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # begins to write back, mm/fadvise.c
        os.close(os.open(mount / "file", os.O_WRONLY | os.O_TRUNC))
        assert os.fstat(reader).st_size == 0
        os.ftruncate(descriptor, 10)
        assert os.pread(reader, 20, 0) == bytes(10)


@pytest.mark.parametrize("act", [os.rename, os.link], ids=["rename", "link"])
def test_reading_a_directory_ends_though_each_name_makes_another(mount: Path, act: Callable[[str, str], None]) -> None:
    """What comes during the reading must not for ever come after it; xfstests' generic/736."""
    count = 3000
    for number in range(count):
        (mount / f"{number:05}").touch()
    seen: list[str] = []
    with os.scandir(mount) as entries:
        for entry in entries:
            seen.append(entry.name)
            assert len(seen) <= 2 * count, "names without end"
            act(entry.path, f"{mount}/{entry.name[:5]}-{len(seen)}")
    assert {name[:5] for name in seen} == {f"{number:05}" for number in range(count)}


@pytest.mark.parametrize("mode", [0o644, 0o4755], ids=["passthrough", "cached"])
def test_writing_through_a_mapping_changes_the_times(mount: Path, mode: int) -> None:
    """At the latest once it is gone, though only the kernel knew of it; xfstests' generic/080 and generic/215."""
    path = mount / "mapped"
    path.write_bytes(bytes(4096))
    path.chmod(mode)
    os.utime(path, (0, 0))
    ctime = os.stat(path).st_ctime_ns
    _let_clock_advance()
    with opened(path, os.O_RDWR) as descriptor:
        assert os.fstat(descriptor).st_mtime == 0
        with mapped(descriptor, 4096) as mapping:
            mapping[0] = 1
    state = os.stat(path)
    assert state.st_mtime > 0
    assert state.st_ctime_ns > ctime


def _let_clock_advance() -> None:
    """Wait as long as the kernel's clock for files may stand still: one tick of 100 Hz."""
    time.sleep(0.011)


class Flags:
    """Sets inode flags and takes them away at the end, so that everything can be removed."""

    def __init__(self) -> None:
        self._set: list[Path] = []

    def set(self, path: Path, flags: int) -> None:
        """Set the flags of ``path``; skip the test where the file system has none."""
        try:
            _set_flags(path, flags)
        except OSError as error:
            pytest.skip(f"the file system of {path} has no inode flags: {error.strerror}")
        self._set.append(path)

    def clear(self) -> None:
        """Take all flags away."""
        for path in self._set:
            _set_flags(path, 0)


def _set_flags(path: Path, flags: int) -> None:
    """Set IMMUTABLE and APPEND_ONLY as in ``flags``, and leave the others as they are."""
    with opened(path, os.O_RDONLY) as descriptor:
        told = files.attribute_ioctl(descriptor, files.FS_IOC_GETFLAGS, b"")
        kept = int.from_bytes(told[:4], sys.byteorder) & ~(IMMUTABLE | APPEND_ONLY)
        files.attribute_ioctl(descriptor, files.FS_IOC_SETFLAGS, (kept | flags).to_bytes(4, sys.byteorder))


@pytest.fixture
def flags() -> Iterator[Flags]:
    """Inode flags for one test."""
    made = Flags()
    yield made
    made.clear()


@pytest.mark.parametrize("held", [False, True], ids=["closed", "open"])
def test_an_immutable_file_is_not_opened_for_writing(mount: Path, flags: Flags, held: bool) -> None:
    """Whether or not somebody has it open already; xfstests' generic/079."""
    path = mount / "fixed"
    path.write_bytes(b"content")
    with opened(path, os.O_RDONLY) if held else nullcontext():
        flags.set(path, IMMUTABLE)
        for way in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_WRONLY | os.O_TRUNC):
            refused(errno.EPERM, os.open, path, way)
        refused(errno.EPERM, os.truncate, path, 0)
        refused(errno.EPERM, os.unlink, path)
        flags.clear()
        path.write_bytes(b"other")


@pytest.mark.parametrize("held", [False, True], ids=["closed", "open"])
def test_an_append_only_file_is_only_appended_to(mount: Path, flags: Flags, held: bool) -> None:
    """Whether or not somebody has it open already; xfstests' generic/079."""
    path = mount / "log"
    path.write_bytes(b"one")
    with opened(path, os.O_RDONLY) if held else nullcontext():
        flags.set(path, APPEND_ONLY)
        for way in (os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND | os.O_TRUNC):
            refused(errno.EPERM, os.open, path, way)
        refused(errno.EPERM, os.truncate, path, 0)
        with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
            refused(errno.EPERM, os.ftruncate, descriptor, 0)
            os.write(descriptor, b"two")
    assert path.read_bytes() == b"onetwo"


def test_a_directory_of_fixed_content_refuses_before_it_looks(mount: Path, flags: Flags) -> None:
    """EPERM for a directory that is not empty either; xfstests' generic/079."""
    (mount / "fixed/full/sub").mkdir(parents=True)
    flags.set(mount / "fixed", IMMUTABLE)
    refused(errno.EPERM, os.rmdir, mount / "fixed/full")


def test_changed_flags_change_the_ctime(mount: Path, flags: Flags) -> None:
    """The kernel has to be told; xfstests' generic/277."""
    path = mount / "file"
    path.touch()
    before = os.stat(path).st_ctime_ns
    _let_clock_advance()
    flags.set(path, APPEND_ONLY)
    assert os.stat(path).st_ctime_ns > before


@pytest.fixture
def unopened(tmp_path: Path) -> Iterator[Path]:
    """A mount whose server hears of no open."""
    with union_mount(tmp_path, *prepare(tmp_path), words=("--mode", "write-through")) as mountpoint:
        (mountpoint / "first").write_bytes(b"")
        yield mountpoint


def test_a_fixed_file_stays_as_it_is_though_it_may_be_opened(unopened: Path, flags: Flags) -> None:
    """Where the kernel does not ask to open it, what would change it is refused."""
    path = unopened / "fixed"
    path.write_bytes(b"content")
    flags.set(path, IMMUTABLE)
    refused(errno.EPERM, os.open, path, os.O_WRONLY | os.O_TRUNC)
    with opened(path, os.O_WRONLY) as descriptor:
        refused(errno.EPERM, os.write, descriptor, b"x")
        refused(errno.EPERM, os.ftruncate, descriptor, 0)
        refused(errno.EPERM, os.posix_fallocate, descriptor, 0, 100)
    flags.clear()
    assert (unopened / "../upper/fixed").resolve().read_bytes() == b"content"


def test_a_log_that_may_be_opened_is_appended_to_alone(unopened: Path, flags: Flags) -> None:
    """Likewise."""
    path = unopened / "log"
    path.write_bytes(b"one")
    flags.set(path, APPEND_ONLY)
    with opened(path, os.O_WRONLY) as descriptor:
        refused(errno.EPERM, os.pwrite, descriptor, b"x", 0)
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        os.write(descriptor, b"two")
    flags.clear()
    assert (unopened / "../upper/log").resolve().read_bytes() == b"onetwo"


@pytest.mark.parametrize("change", ["fallocate", "copy_file_range"])
@pytest.mark.parametrize(
    ("mode", "groups", "left"), [(0o6777, (), 0o777), (0o6666, (), 0o666), (0o2666, (77,), 0o2666)]
)
def test_a_stranger_clears_set_id_bits_without_write(
    mount: Path, change: str, mode: int, groups: tuple[int, ...], left: int
) -> None:
    """By all that changes data; a bit that is no permission to execute stays for the group; xfstests' generic/683."""
    path = mount / "program"
    path.write_bytes(b"old")
    os.chown(path, 0, 77)
    path.chmod(mode)

    def act() -> None:
        if change == "fallocate":
            os.posix_fallocate(descriptor, 0, 100)
        else:
            os.copy_file_range(descriptor, descriptor, 1, 0, 2)

    with opened(path, os.O_RDWR) as descriptor:
        child(act, user=STRANGER, group=STRANGER, groups=groups)
    assert _mode(path) == left


@pytest.mark.parametrize(
    ("option", "changes"), [("relatime", [True, False]), ("noatime", [False, False]), ("strictatime", [True, True])]
)
def test_access_times_are_kept_as_the_mount_says(tmp_path: Path, option: str, changes: list[bool]) -> None:
    """FUSE leaves them to the server; xfstests' generic/003."""
    with union_mount(tmp_path, *prepare(tmp_path), options=option) as mount:
        path = mount / "file"
        path.write_bytes(b"data")
        assert [_reading_changes_atime(path), _reading_changes_atime(path)] == changes


def _reading_changes_atime(path: Path) -> bool:
    before = os.stat(path).st_atime_ns
    _let_clock_advance()
    path.read_bytes()
    return os.stat(path).st_atime_ns != before


def test_reading_changes_no_access_time_in_a_lower_layer(tmp_path: Path) -> None:
    lowers, upper, work = prepare(tmp_path)
    names = ["file", "link", "directory"]
    below = [lowers[0] / name for name in names]
    below[0].write_bytes(b"data")
    below[1].symlink_to("file")
    below[2].mkdir()
    for path in below:
        os.utime(path, (1, 1), follow_symlinks=False)
    with union_mount(tmp_path, lowers, upper, work) as mount:
        for name in ("file", "link"):
            assert (mount / name).read_bytes() == b"data"
        assert os.listdir(mount / "directory") == []
        assert [os.stat(path, follow_symlinks=False).st_atime for path in below] == [1, 1, 1]
