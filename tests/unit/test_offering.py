"""The data of small lower files, handed out before it is asked for: when that is done, and when it would be wrong."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from unionfs.fuse.dispatch import Dispatcher
from unionfs.fuse.memory import Kernel
from unionfs.fuse.verbs.base import Later
from unionfs.fuse.wire import abi
from unionfs.union.stack import Config, open_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SMALL = 1 << 17
_HEAD = abi.OUT_HEADER.size + abi.NOTIFY_STORE_OUT.size


class Mount:
    """A stack with an empty writable layer, a kernel that has it mounted, and what that was told unasked."""

    def __init__(self, base: Path) -> None:
        self.lower = base / "lower"
        for name in ("lower", "upper", "work"):
            (base / name).mkdir(parents=True)
        self._config = Config([os.fsencode(self.lower)], os.fsencode(base / "upper"), os.fsencode(base / "work"))
        self.told: list[bytes] = []

    def start(self) -> Kernel:
        self.stack = open_stack(self._config, own_process=False)
        self.dispatcher = Dispatcher(self.stack)
        self.dispatcher.notify = lambda message: self.told.append(
            message if isinstance(message, bytes) else b"".join(message)
        )
        self.kernel = Kernel(self.dispatcher)
        self.kernel.uid, self.kernel.gid = os.geteuid(), os.getegid()
        return self.kernel

    def stored(self) -> list[tuple[int, bytes]]:
        """Return node and content of each message, which must be whole files from their beginning."""
        found = []
        for message in self.told:
            length, code, unique = abi.OUT_HEADER.unpack_from(message)
            assert (length, code, unique) == (len(message), abi.NOTIFY_STORE, 0)
            nodeid, offset, size = abi.NOTIFY_STORE_OUT.unpack_from(message, abi.OUT_HEADER.size)
            assert (offset, size) == (0, len(message) - _HEAD)
            found.append((nodeid, message[_HEAD:]))
        return found


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    made = Mount(tmp_path / "mount")
    (made.lower / "small").write_bytes(b"s" * SMALL)
    (made.lower / "other").write_bytes(b"o")
    (made.lower / "large").write_bytes(b"l" * (SMALL + 1))
    (made.lower / "empty").touch()
    made.start()
    yield made
    made.kernel.drop_caches()
    made.stack.close()


def test_a_small_file_is_handed_out_at_its_first_open_and_never_again(mount: Mount) -> None:
    handles = [mount.kernel.open("small") for _ in range(2)]
    assert mount.stored() == [(mount.kernel.walk("small"), b"s" * SMALL)]
    assert mount.kernel.read(handles[0]) == b"s" * SMALL, "should memory get short, it is there to be read"
    for handle in handles:
        mount.kernel.close(handle)
    mount.kernel.close(mount.kernel.open("small"))
    assert len(mount.told) == 1


def test_a_file_that_was_forgotten_is_new(mount: Mount) -> None:
    for _ in range(2):
        mount.kernel.close(mount.kernel.open("other"))
        mount.kernel.drop_caches()
    assert [content for _node, content in mount.stored()] == [b"o", b"o"]


@pytest.mark.parametrize("name", ["large", "empty"])
def test_other_sizes_are_not(mount: Mount, name: str) -> None:
    mount.kernel.close(mount.kernel.open(name))
    assert not mount.told


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
def test_a_writer_gets_nothing_and_neither_does_who_comes_after_it(mount: Mount, flags: int) -> None:
    for then in (flags, os.O_RDONLY):
        mount.kernel.close(mount.kernel.open("small", then))
    assert not mount.told


def test_what_the_top_layer_has_is_not(mount: Mount) -> None:
    mount.kernel.close(mount.kernel.open("new", os.O_CREAT | os.O_WRONLY))
    mount.kernel.close(mount.kernel.open("new"))
    assert not mount.told


def test_an_error_is_left_to_who_reads(mount: Mount) -> None:
    mount.kernel.walk("other")
    (mount.lower / "other").unlink()
    handle = mount.kernel.open("other")
    with pytest.raises(FileNotFoundError):
        mount.kernel.read(handle)
    mount.kernel.close(handle)


# -- what is not in memory -------------------------------------------------------------------------------------------


@pytest.fixture
def not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is to be had without waiting."""
    really = os.preadv

    def preadv(descriptor: int, buffers: list[memoryview], offset: int, flags: int = 0) -> int:
        if flags:
            raise BlockingIOError(errno.EAGAIN, "")
        return really(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)


def open_late(mount: Mount, meanwhile: Callable[[], object]) -> None:
    """Open a file of a disk that is known to be quick; do something else while its data is waited for."""
    nodeid = mount.kernel.walk("small")
    mount.dispatcher.files.pace(mount.lower.stat().st_dev, mount.dispatcher.view.lowers[0].root.fd).average_ns = 0
    message = bytearray(mount.kernel.encode(abi.OPEN, nodeid, (os.O_RDONLY, 0)))
    later = mount.dispatcher.handle(mount.dispatcher.decode(message, len(message)))
    assert isinstance(later, Later)
    assert later.short
    assert not mount.told
    meanwhile()
    answer = later.run()
    assert isinstance(answer, bytes)
    mount.kernel.send(abi.RELEASE, nodeid, (0, os.O_RDONLY, 0, 0))


@pytest.fixture
def on_disk(mount: Mount) -> None:
    if not os.major(mount.lower.stat().st_dev):
        pytest.skip("the temporary directory is on no block device")


@pytest.mark.usefixtures("not_in_memory")
def test_open_waits_for_no_file_system_that_is_not_known_to_be_quick(mount: Mount) -> None:
    handle = mount.kernel.open("small")
    assert not mount.told
    assert mount.kernel.read(handle) == b"s" * SMALL
    mount.kernel.close(handle)


@pytest.mark.usefixtures("not_in_memory", "on_disk")
def test_data_that_was_waited_for_is_handed_out(mount: Mount) -> None:
    open_late(mount, lambda: None)
    assert mount.stored() == [(mount.kernel.walk("small"), b"s" * SMALL)]


@pytest.mark.usefixtures("not_in_memory", "on_disk")
def test_not_once_somebody_else_has_the_file_open(mount: Mount) -> None:
    """A READ of theirs may hold the pages."""
    opened = []
    open_late(mount, lambda: opened.append(mount.kernel.open("small")))
    assert not mount.told
    mount.kernel.close(opened[0])


@pytest.mark.usefixtures("not_in_memory", "on_disk")
def test_not_once_the_file_was_changed(mount: Mount) -> None:
    open_late(mount, lambda: mount.kernel.truncate("small", 10))
    assert not mount.told
