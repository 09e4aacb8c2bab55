"""Large replies to READ: moved through a pipe where that can be done, otherwise copied; the same bytes by either."""

from __future__ import annotations

import errno
import os
from fcntl import fcntl
from typing import TYPE_CHECKING

import pytest

from unionfs.fuse import pipes
from unionfs.fuse.dispatch import Dispatcher
from unionfs.fuse.memory import Kernel
from unionfs.union.stack import Config, open_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from unionfs.fuse.memory_connection import Handle

    Splice = Callable[..., int]

LARGE = (1 << 17) + 1  # the smallest READ that is not copied
MIB = 1 << 20
CONTENT = bytes(range(1, 252)) * 10_000  # 2.5 MB, no two pages alike


class Mount:
    """A lower file that is open below an empty writable layer; what was spliced, and how many descriptors there are."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lower, upper, work = (base / name for name in ("lower", "upper", "work"))
        for directory in (lower, upper, work):
            directory.mkdir()
        self.file = lower / "file"
        self.file.write_bytes(CONTENT)
        stack = open_stack(Config([os.fsencode(lower)], os.fsencode(upper), os.fsencode(work)), own_process=False)
        self.kernel = Kernel(Dispatcher(stack))
        self.handle: Handle = self.kernel.open("file")
        self.spliced: list[int] = []
        self._splice: Splice = os.splice
        monkeypatch.setattr(os, "splice", self.splice)

    def splice(self, *args: int) -> int:
        """Splice, and take note of how much."""
        self.spliced.append(self._splice(*args))
        return self.spliced[-1]

    def read(self, size: int, offset: int = 0) -> bytes:
        return self.kernel.read(self.handle, size, offset)


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    made = Mount(tmp_path, monkeypatch)
    yield made
    made.kernel.close(made.handle)
    made.kernel.unmount()


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("offset", [0, 4096, 1000, len(CONTENT) - LARGE - 1, len(CONTENT) - 5])
@pytest.mark.parametrize("size", [LARGE, pipes.MOST_BYTES - 4096])
def test_what_is_large_is_moved(mount: Mount, size: int, offset: int) -> None:
    """From any place, also across the end of the file."""
    assert mount.read(size, offset) == CONTENT[offset : offset + size]
    assert mount.spliced == [len(CONTENT[offset : offset + size])]


def test_as_much_as_a_pipe_holds_is_moved(mount: Mount) -> None:
    assert mount.read(pipes.MOST_BYTES) == CONTENT[: pipes.MOST_BYTES]
    assert mount.spliced == [pipes.MOST_BYTES]


@pytest.mark.parametrize("size", [1, 4096, LARGE - 1])
def test_what_is_small_is_copied(mount: Mount, size: int) -> None:
    assert mount.read(size, 4096) == CONTENT[4096 : 4096 + size]
    assert mount.spliced == []


def test_what_may_be_truncated_is_copied(mount: Mount) -> None:
    """That would make zeros of pages which wait in a pipe."""
    mount.kernel.write(mount.kernel.open("file", os.O_RDWR), b"new")
    assert mount.read(LARGE) == b"new" + CONTENT[3:LARGE]
    assert mount.spliced == []


def test_there_is_nothing_behind_the_end(mount: Mount) -> None:
    assert mount.read(LARGE, len(CONTENT)) == mount.read(LARGE, len(CONTENT) + MIB) == b""
    assert mount.spliced == []


def test_a_page_too_many_is_copied(mount: Mount) -> None:
    """As much as fits, but from the middle of a page: that is one page more."""
    assert mount.read(pipes.MOST_BYTES, 7) == CONTENT[7 : 7 + pipes.MOST_BYTES]


def test_a_hole_reads_as_zeros(mount: Mount) -> None:
    os.truncate(mount.file, 0)
    os.truncate(mount.file, MIB)
    with mount.file.open("r+b") as file:
        file.seek(MIB // 2)
        file.write(b"data")
    size = pipes.MOST_BYTES
    assert mount.read(size) == (bytes(MIB // 2) + b"data" + bytes(MIB))[:size]
    assert mount.spliced == [size]


def test_one_pipe_serves_one_reply_after_the_other(mount: Mount) -> None:
    mount.read(LARGE)
    before = descriptors()
    for page in range(100):
        assert mount.read(LARGE, page * 4096) == CONTENT[page * 4096 : page * 4096 + LARGE]
    assert descriptors() == before


def _refuse(*_args: int) -> int:
    raise OSError(errno.EINVAL, "no splice on this file system")


def test_a_file_system_without_splice_is_copied(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr(os, "splice", _refuse)
    assert mount.read(MIB, 5) == CONTENT[5 : 5 + MIB]
    assert mount.read(LARGE, len(CONTENT) - 5) == CONTENT[-5:]
    assert descriptors() == before


def test_a_file_that_shrinks_in_between_is_read_once_more(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header with the longer length is in the pipe by then, and must never be sent."""
    splice = os.splice

    def shrunk(*args: int) -> int:
        os.truncate(mount.file, 10_000)
        return splice(*args)

    monkeypatch.setattr(os, "splice", shrunk)
    assert mount.read(LARGE) == CONTENT[:10_000]
    assert mount.spliced == [10_000]
    monkeypatch.setattr(os, "splice", splice)
    mount.file.write_bytes(CONTENT)
    assert mount.read(LARGE, 3) == CONTENT[3 : 3 + LARGE]


@pytest.mark.parametrize("most", [0, 1 << 16, MIB])
def test_pipes_that_may_not_grow(mount: Mount, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Whoever may have small ones only (pipe-user-pages-soft in proc(5)) has what is larger copied."""

    def limited(descriptor: int, command: int, size: int) -> int:
        if size > most:
            raise PermissionError
        return fcntl(descriptor, command, size)

    monkeypatch.setattr(pipes, "fcntl", limited)
    for size in (LARGE, pipes.MOST_BYTES, MIB):
        assert mount.read(size, 4096) == CONTENT[4096 : 4096 + size]
    assert mount.spliced == ([LARGE, pipes.MOST_BYTES] if most == MIB else [])


def test_a_reply_that_nobody_takes_is_thrown_away(tmp_path: Path) -> None:
    """With its pipe, in which the next one would come behind it."""
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    before = descriptors()
    descriptor = os.open(file, os.O_RDONLY)
    made = pipes.Pipes()
    piped = made.reply(2, descriptor, 0, LARGE)
    assert piped is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        piped.send(descriptor)
    again = made.reply(4, descriptor, 0, LARGE)
    assert again is not None
    assert again.take()[16:] == CONTENT[:LARGE]
    again.discard()
    os.close(descriptor)
    assert descriptors() == before
