"""Who waits for fsync(2): the loop if that disturbs nobody and takes next to no time, a worker thread otherwise."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

from unionfs.fuse.dispatch import Dispatcher
from unionfs.fuse.memory import Kernel
from unionfs.fuse.verbs.base import Later
from unionfs.fuse.wire import abi
from unionfs.layers.layer import Pace
from unionfs.syscalls import files
from unionfs.union.stack import Config, open_stack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LITTLE = 1 << 20
SLOW_NS = 1 << 40


class Mount(NamedTuple):
    """A kernel that has a stack mounted, a file that is open in it, and the pace of its writable layer."""

    kernel: Kernel
    node: int
    pace: Pace

    def sync(self, opcode: int = abi.FSYNC, node: int = 0) -> bool:
        """Ask for a sync; do it, and tell whether it was for the loop."""
        message = bytearray(self.kernel.encode(opcode, node or self.node, (0, 0)))
        dispatcher = self.kernel.dispatcher
        later = dispatcher.handle(dispatcher.decode(message, len(message)))
        assert isinstance(later, Later)
        later.run()
        return later.short


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    upper, work = os.fsencode(tmp_path / "upper"), os.fsencode(tmp_path / "work")
    stack = open_stack(Config([os.fsencode(tmp_path / "lower")], upper, work), own_process=False)
    kernel = Kernel(Dispatcher(stack))
    kernel.uid, kernel.gid = os.geteuid(), os.getegid()
    handle = kernel.open("file", os.O_CREAT | os.O_RDWR)
    assert stack.upper is not None
    stack.upper.pace.limit_ns = SLOW_NS  # a test that is kept waiting has found out nothing
    yield Mount(kernel, handle.nodeid, stack.upper.pace)
    kernel.close(handle)
    kernel.drop_caches()
    stack.close()


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How much the kernel says has not been written."""
    told: list[int | None] = [0]
    monkeypatch.setattr(files, "unwritten_bytes", lambda _descriptor: told[0])
    return told


@pytest.mark.parametrize("opcode", [abi.FSYNC, abi.FSYNCDIR])
def test_who_asks_alone_is_answered_by_the_loop(mount: Mount, unwritten: list[int | None], opcode: int) -> None:
    unwritten[:] = [LITTLE]
    assert mount.sync(opcode, 1 if opcode == abi.FSYNCDIR else 0)


def test_others_who_ask_are_not_kept_waiting(mount: Mount, unwritten: list[int | None]) -> None:
    mount.kernel.pid = 2
    assert not mount.sync(), "the request before it was another's"
    mount.kernel.pid = 0
    mount.kernel.send(abi.GETATTR, 1, (0, 0))
    mount.kernel.pid = 2
    assert mount.sync(), "the kernel's own requests are nobody's"


@pytest.mark.parametrize("much", [LITTLE + 1, None])
def test_what_may_take_long_is_for_a_worker(mount: Mount, unwritten: list[int | None], much: int | None) -> None:
    unwritten[:] = [much]
    before = mount.pace.average_ns
    assert not mount.sync()
    assert mount.pace.average_ns == before, "and says nothing of how long little takes"


def test_a_slow_disk_is_for_a_worker_until_it_is_quick_again(mount: Mount, unwritten: list[int | None]) -> None:
    mount.pace.average_ns = SLOW_NS
    assert not mount.sync()
    assert mount.sync(), "workers watch the clock as well"


def test_the_kernel_tells_what_is_not_written(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_CREAT | os.O_WRONLY)
    os.write(descriptor, bytes(100_000))
    before = files.unwritten_bytes(descriptor)
    os.fsync(descriptor)
    after = files.unwritten_bytes(descriptor)
    os.close(descriptor)
    if before is None:
        pytest.skip("no cachestat(2), which Linux has since 6.5")
    if not os.major(os.stat(tmp_path).st_dev):
        pytest.skip("the temporary directory is on no block device")
    assert (before >= 100_000, after) == (True, 0)
