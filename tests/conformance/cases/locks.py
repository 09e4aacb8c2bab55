"""Locks between processes, shared mappings, and programs that run. flock(2), fcntl(2), mmap(2), execve(2)."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import subprocess

from ..calls import child, mapped, opened, outcome, refused, write_at
from ..table import Place, case
from ..trees import file, folder

ONE = {"f": file(b"0123456789")}
PAGES = {"f": file(b"a" * 4096 + b"b" * 4096 + b"tail")}
with open("/bin/sleep", "rb") as _sleep:
    PROGRAM = {"sleep": file(_sleep.read(), 0o755)}
FREE, HELD = 0, errno.EAGAIN


def _flock(at: Place) -> int:
    with opened(at.path / "f", os.O_RDONLY) as f:
        return outcome(fcntl.flock, f, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _lockf(at: Place, start: int) -> int:
    with opened(at.path / "f", os.O_RDWR) as f:
        return outcome(fcntl.lockf, f, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)


def elsewhere(function: object, *arguments: object, finds: int) -> None:
    """Assert what another process finds."""

    def look() -> None:
        assert function(*arguments) == finds  # type: ignore[operator]

    child(look)


@case("basic", ONE)
def flock_holds_between_processes(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        elsewhere(_flock, at, finds=HELD)
        fcntl.flock(f, fcntl.LOCK_UN)
        elsewhere(_flock, at, finds=FREE)
        fcntl.flock(f, fcntl.LOCK_SH)
        elsewhere(_flock, at, finds=HELD)
    elsewhere(_flock, at, finds=FREE)


@case("basic", ONE)
def posix_locks_hold_between_processes(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        fcntl.lockf(f, fcntl.LOCK_EX, 5, 0)
        elsewhere(_lockf, at, 4, finds=HELD)
        elsewhere(_lockf, at, 5, finds=FREE)
        fcntl.lockf(f, fcntl.LOCK_UN, 2, 3)
        elsewhere(_lockf, at, 4, finds=FREE)
    elsewhere(_lockf, at, 0, finds=FREE)


@case("posix", ONE)
def locks_hold_through_a_copy_up(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as early, opened(at.path / "f", os.O_RDONLY) as f:
        fcntl.flock(early, fcntl.LOCK_EX)
        fcntl.lockf(f, fcntl.LOCK_SH, 1, 0)
        write_at_without_closing = os.open(at.path / "f", os.O_WRONLY)
        os.pwrite(write_at_without_closing, b"x", 0)
        elsewhere(_flock, at, finds=HELD)
        elsewhere(_lockf, at, 0, finds=HELD)
        os.close(write_at_without_closing)


@case("basic", PAGES)
def shared_mappings_and_files_agree(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f, mapped(f, 8196) as one, mapped(f, 8196) as two:
        one[4090:4100] = b"0123456789"
        assert two[4090:4100] == b"0123456789"
        assert os.pread(f, 10, 4090) == b"0123456789"
        os.pwrite(f, b"written", 0)
        assert one[:7] == b"written"
        one[8190:8196] = b"at end"
        one.flush()
    assert (at.path / "f").read_bytes()[-6:] == b"at end"
    at.remount()
    assert (at.path / "f").read_bytes()[4090:4100] == b"0123456789"


@case("basic", PAGES)
def private_mappings_change_nothing(at: Place) -> None:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    with opened(at.path / "f", os.O_RDONLY) as f, mmap.mmap(f, 0, mmap.MAP_PRIVATE, protection) as mapping:
        mapping[:3] = b"new"
        assert mapping[:4] == b"newa"
    assert (at.path / "f").read_bytes()[:4] == b"aaaa"


@case("basic", PAGES)
def a_mapping_is_written_after_the_file_is_closed(at: Place) -> None:
    f = os.open(at.path / "f", os.O_RDWR)
    with mapped(f, 8192) as mapping:
        os.close(f)
        mapping[:4] = b"late"
        mapping.flush()
        assert (at.path / "f").read_bytes()[:5] == b"latea"
    assert os.stat(at.path / "f").st_size == 8196


@case("posix", PAGES)
def a_mapping_written_by_another_process(at: Place) -> None:
    def write() -> None:
        with opened(at.path / "f", os.O_RDWR) as f, mapped(f, 4096) as theirs:
            theirs[:5] = b"child"

    with opened(at.path / "f", os.O_RDWR) as f, mapped(f, 4096) as ours:
        assert ours[:1] == b"a"
        child(write)
        assert ours[:5] == b"child"


@case("basic", PROGRAM)
def programs_run(at: Place) -> None:
    subprocess.run([at.path / "sleep", "0"], check=True, timeout=10)
    os.rename(at.path / "sleep", at.path / "moved")
    subprocess.run([at.path / "moved", "0"], check=True, timeout=10)
    shutil.copy(at.path / "moved", at.path / "copied")
    subprocess.run([at.path / "copied", "0"], check=True, timeout=10)
    os.chmod(at.path / "moved", 0o644)
    refused(errno.EACCES, subprocess.run, [at.path / "moved", "0"], check=False, timeout=10)


@case("basic", {"script": file(b"#!/bin/sh\necho from $1\n", 0o755), "d": folder()})
def scripts_run(at: Place) -> None:
    done = subprocess.run([at.path / "script", "here"], capture_output=True, check=True, timeout=10)
    assert done.stdout == b"from here\n"


@case("posix", PROGRAM)
def a_program_that_runs_is_not_written(at: Place) -> None:
    with subprocess.Popen([at.path / "sleep", "100"]) as running:
        try:
            refused(errno.ETXTBSY, os.open, at.path / "sleep", os.O_WRONLY)
            refused(errno.ETXTBSY, os.truncate, at.path / "sleep", 0)
        finally:
            running.kill()
    write_at(at.path / "sleep", b"#")


@case("posix", PROGRAM)
def a_file_open_for_writing_is_not_run(at: Place) -> None:
    with opened(at.path / "sleep", os.O_WRONLY):
        refused(errno.ETXTBSY, subprocess.run, [at.path / "sleep", "0"], check=False, timeout=10)
