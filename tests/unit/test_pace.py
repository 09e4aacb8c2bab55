"""Who waits for a disk: the loop for one that has shown itself quick, a worker thread for any other."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from unionfs.fuse.openfiles import OpenFiles, Pace
from unionfs.union.stack import Config, open_stack

if TYPE_CHECKING:
    from pathlib import Path

DISK = os.makedev(8, 1)
NOT_A_DISK = os.makedev(0, 40)  # what network file systems and FUSE have


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long each read from now on takes, in nanoseconds; as long as the last one when there is no other."""
    times = [0]
    clock = [0]

    def now() -> int:
        clock[0] += times[0] if len(times) == 1 else times.pop(0)
        return clock[0]

    monkeypatch.setattr("unionfs.fuse.openfiles.time.perf_counter_ns", now)
    return times


def read(made: Pace, path: Path, times: int = 1) -> None:
    window = bytearray(4)
    descriptor = os.open(path, os.O_RDONLY)
    for _ in range(times):
        assert made.read(descriptor, window, 1) == 3
    os.close(descriptor)
    assert window[:3] == b"ata"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"data")
    return tmp_path / "file"


def test_a_disk_is_quick_once_it_was_so_often_enough(waiting: list[int], file: Path) -> None:
    waiting[:] = [50_000]
    made = Pace(DISK)
    read(made, file)
    assert not made.quick
    read(made, file, 30)
    assert made.quick


def test_a_slow_disk_is_never_quick(waiting: list[int], file: Path) -> None:
    waiting[:] = [300_000]
    made = Pace(DISK)
    read(made, file, 100)
    assert not made.quick


def test_a_disk_that_keeps_us_waiting_is_quick_no_longer(waiting: list[int], file: Path) -> None:
    waiting[:] = [50_000]
    made = Pace(DISK)
    read(made, file, 30)
    waiting[:] = [10_000_000]
    read(made, file)
    assert not made.quick


def test_what_is_no_disk_is_never_quick(waiting: list[int], file: Path) -> None:
    made = Pace(NOT_A_DISK)
    read(made, file, 100)
    assert not made.quick


def test_each_file_system_has_a_pace_of_its_own(tmp_path: Path) -> None:
    stack = open_stack(Config([os.fsencode(tmp_path)]), own_process=False)
    files = OpenFiles(stack)
    assert files.pace(DISK) is files.pace(DISK)
    assert files.pace(DISK) is not files.pace(NOT_A_DISK)
    stack.close()
