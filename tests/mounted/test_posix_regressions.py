"""What public suites for POSIX and for union file systems found wrong, a test each."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

import pytest

from tests.conformance.calls import child, mapped, opened
from tests.support.mounts import prepare, union_mount
from tests.support.probes import requires

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = requires("root", "fuse")

STRANGER = 65534


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
            assert os.lseek(descriptor, 0, os.SEEK_DATA) <= 500_000
    with opened(path, os.O_RDONLY) as descriptor:
        assert os.pread(descriptor, 4, 500_000) == b"data"


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
