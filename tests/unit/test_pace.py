"""Who waits for a disk: the loop if it has shown itself quick, a worker thread otherwise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from unionfs.fuse.openfiles import OpenFiles
from unionfs.layers.layer import Pace, pace_of_reads, pace_of_writing_out
from unionfs.syscalls.files import BTRFS_MAGIC, EXT4_MAGIC, FUSE_MAGIC, OVERLAYFS_MAGIC
from unionfs.union.stack import Config, open_stack

if TYPE_CHECKING:
    from pathlib import Path

DISK = os.makedev(8, 1)
NOT_A_DISK = os.makedev(0, 40)  # what network file systems have


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How long each wait from now on takes, in nanoseconds; as long as the last one when there is no other."""
    times = [0]
    clock = [0]

    def now() -> int:
        clock[0] += times[0] if len(times) == 1 else times.pop(0)
        return clock[0]

    monkeypatch.setattr("unionfs.layers.layer.time.perf_counter_ns", now)
    return times


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> int:
    """A file on no file system in particular."""
    monkeypatch.setattr("unionfs.layers.layer.files.filesystem_type", lambda _descriptor: EXT4_MAGIC)
    return -1


def wait(made: Pace, times: int = 1) -> None:
    for _ in range(times):
        assert made.wait(divmod, 7, 2) == (3, 1)


def test_a_disk_is_quick_to_read_from_once_it_was_so_often_enough(waiting: list[int], file: int) -> None:
    waiting[:] = [50_000]
    made = pace_of_reads(DISK, file)
    wait(made)
    assert not made.quick
    wait(made, 30)
    assert made.quick


def test_a_slow_disk_is_never_quick(waiting: list[int], file: int) -> None:
    waiting[:] = [300_000]
    made = pace_of_reads(DISK, file)
    wait(made, 100)
    assert not made.quick


def test_a_disk_that_keeps_us_waiting_is_quick_no_longer(waiting: list[int], file: int) -> None:
    waiting[:] = [50_000]
    made = pace_of_reads(DISK, file)
    wait(made, 30)
    waiting[:] = [10_000_000]
    wait(made)
    assert not made.quick


def test_what_is_no_disk_is_never_quick_to_read_from(waiting: list[int], file: int) -> None:
    made = pace_of_reads(NOT_A_DISK, file)
    wait(made, 100)
    assert not made.quick


def test_nor_is_another_server_whatever_it_serves(waiting: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As with ``-o blkdev``, or one that reads a disk."""
    monkeypatch.setattr("unionfs.layers.layer.files.filesystem_type", lambda _descriptor: FUSE_MAGIC)
    waiting[:] = [50_000]
    made = pace_of_reads(DISK, -1)
    wait(made, 100)
    assert not made.quick


@pytest.mark.parametrize("kind", [BTRFS_MAGIC, OVERLAYFS_MAGIC])
def test_what_is_on_disks_may_show_itself_quick(waiting: list[int], monkeypatch: pytest.MonkeyPatch, kind: int) -> None:
    monkeypatch.setattr("unionfs.layers.layer.files.filesystem_type", lambda _descriptor: kind)
    waiting[:] = [50_000]
    made = pace_of_reads(NOT_A_DISK, -1)
    assert not made.quick
    wait(made, 30)
    assert made.quick


def test_memory_is_quick_to_read_from_until_it_is_fetched_from_swap(waiting: list[int]) -> None:
    descriptor = os.memfd_create("memory")  # on a tmpfs of the kernel's own: see memfd_create(2)
    made = pace_of_reads(os.fstat(descriptor).st_dev, descriptor)
    os.close(descriptor)
    assert made.quick
    waiting[:] = [10_000_000]
    wait(made)
    assert not made.quick


def test_writing_out_is_quick_until_it_takes_long(waiting: list[int]) -> None:
    made = pace_of_writing_out()
    assert made.quick
    waiting[:] = [30_000_000]
    wait(made)
    assert not made.quick


def test_what_fails_took_its_time_too(waiting: list[int]) -> None:
    waiting[:] = [30_000_000]
    made = pace_of_writing_out()
    with pytest.raises(ZeroDivisionError):
        made.wait(divmod, 1, 0)
    assert not made.quick


def test_each_file_system_has_a_pace_of_its_own(tmp_path: Path, file: int) -> None:
    stack = open_stack(Config([os.fsencode(tmp_path)]), own_process=False)
    files = OpenFiles(stack)
    assert files.pace(DISK, file) is files.pace(DISK, file)
    assert files.pace(DISK, file) is not files.pace(NOT_A_DISK, file)
    stack.close()
