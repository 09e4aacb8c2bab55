"""Which mode a mount gets, and what those do in which the kernel never says that a file is open."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

from unionfs.fuse import modes, unopened
from unionfs.fuse.dispatch import Dispatcher
from unionfs.fuse.memory import Kernel
from unionfs.fuse.memory_connection import ALL_FLAGS
from unionfs.fuse.wire import abi
from unionfs.syscalls import process
from unionfs.union.stack import Config, open_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from unionfs.fuse.modes import Mode
    from unionfs.fuse.unopened import UnopenedFiles

LONG_AGO_NS = 10**18


class Mount(NamedTuple):
    """A kernel that has a stack of one lower layer mounted, and the directory that has its layers."""

    kernel: Kernel
    base: Path

    def cost(self, act: Callable[[], object]) -> dict[str, int]:
        """Return which requests ``act`` took."""
        before = dict(self.kernel.counts)
        act()
        return {name: n - before.get(name, 0) for name, n in self.kernel.counts.items() if n != before.get(name)}


@pytest.fixture(params=[modes.WRITE_THROUGH, modes.WRITE_BACK], ids=lambda mode: mode.name)
def mount(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Mount]:
    """A mount in which a file has been opened once: from then on the kernel does not ask any longer."""
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    for name in ("a", "b", "c"):
        (tmp_path / "lower" / name).write_text(f"in {name}")
    config = Config([os.fsencode(tmp_path / "lower")], os.fsencode(tmp_path / "upper"), os.fsencode(tmp_path / "work"))
    stack = open_stack(config, own_process=False)
    kernel = Kernel(Dispatcher(stack, [request.param]))
    kernel.uid, kernel.gid = os.geteuid(), os.getegid()
    kernel.close(kernel.open("c"))
    yield Mount(kernel, tmp_path)
    kernel.unmount()
    files = kernel.dispatcher.files
    assert isinstance(files, unopened.UnopenedFiles)
    assert files.kept == 0, "all that was known is forgotten"
    stack.close()


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ((modes.PASSTHROUGH, modes.WRITE_THROUGH, modes.OPENED), ALL_FLAGS, "passthrough"),
        ((modes.PASSTHROUGH, modes.WRITE_THROUGH, modes.OPENED), ALL_FLAGS ^ abi.INIT_PASSTHROUGH, "write-through"),
        ((modes.WRITE_BACK, modes.OPENED), ALL_FLAGS, "write-back"),
        ((modes.WRITE_BACK, modes.OPENED), ALL_FLAGS ^ abi.INIT_WRITEBACK_CACHE, "opened"),
        ((modes.PASSTHROUGH, modes.WRITE_THROUGH, modes.OPENED), 0, "opened"),
    ],
)
def test_the_first_mode_that_the_kernel_offers(wanted: tuple[Mode, ...], offered: int, chosen: str) -> None:
    """The last one needs nothing of it that must be there."""
    assert modes.choose(wanted, offered).name == chosen


@pytest.mark.parametrize(
    ("superuser", "capabilities", "names"),
    [
        (True, {process.CAP_SYS_ADMIN, process.CAP_DAC_OVERRIDE}, ["passthrough", "write-through", "opened"]),
        (False, {process.CAP_SYS_ADMIN, process.CAP_DAC_OVERRIDE}, ["write-through", "opened"]),
        (True, {process.CAP_DAC_OVERRIDE}, ["write-through", "opened"]),
        (False, set(), ["opened"]),
    ],
    ids=["root", "root of a namespace", "root in a container", "a user"],
)
def test_what_auto_wants(
    monkeypatch: pytest.MonkeyPatch, superuser: bool, capabilities: set[int], names: list[str]
) -> None:
    """It depends on what this process may do."""
    monkeypatch.setattr(process, "is_superuser", lambda: superuser)
    monkeypatch.setattr(process, "has_capability", lambda capability: capability in capabilities)
    assert [mode.name for mode in modes.wanted(modes.AUTO)] == names


def test_opening_and_closing_cost_nothing(mount: Mount) -> None:
    """Nor does a second look; a new file is made by CREATE and has no RELEASE."""
    kernel = mount.kernel
    assert mount.cost(lambda: kernel.close(kernel.open("a"))) == {"LOOKUP": 1}
    assert mount.cost(lambda: kernel.close(kernel.open("a", os.O_RDWR))) == {}
    assert mount.cost(lambda: kernel.close(kernel.open("new", os.O_CREAT | os.O_WRONLY))) == {"LOOKUP": 1, "CREATE": 1}
    assert not os.path.exists(mount.base / "upper/a"), "opened to be written to, and never written to"


def test_a_truncating_open_is_a_setattr(mount: Mount) -> None:
    """Since it is the only thing that the server hears of."""
    kernel = mount.kernel
    kernel.stat("a")
    assert mount.cost(lambda: kernel.close(kernel.open("a", os.O_WRONLY | os.O_TRUNC))) == {"SETATTR": 1}
    assert (mount.base / "upper/a").read_bytes() == b""


def test_a_reader_sees_what_is_written_after_a_copy_up(mount: Mount) -> None:
    """Requests name the node, whose data has moved."""
    kernel = mount.kernel
    reader, writer = kernel.open("a"), kernel.open("a", os.O_RDWR)
    assert kernel.read(reader) == b"in a"
    kernel.write(writer, b"IN")
    assert kernel.read(reader) == b"IN a"
    kernel.fsync(writer)
    kernel.close(reader)
    kernel.close(writer)


def test_an_unlinked_file_stays_until_it_is_forgotten(mount: Mount) -> None:
    """And no longer: its space would not be free."""
    kernel = mount.kernel
    handle = kernel.open("doomed", os.O_CREAT | os.O_RDWR)
    kernel.write(handle, b"data")
    kernel.unlink("doomed")
    assert kernel.read(handle) == b"data"
    kernel.write(handle, b"more", 4)
    kernel.ftruncate(handle, 6)
    assert kernel.read(handle) == b"datamo"
    kernel.close(handle)
    assert _open_files("doomed")
    kernel.drop_caches()
    assert not _open_files("doomed")


def _open_files(*names: str) -> list[str]:
    """Return which files called one of ``names`` this process has open; a layer's own mount shows no more of a path."""
    links = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
    found = [os.readlink(link).removesuffix(" (deleted)") for link in links if os.path.lexists(link)]
    return [path for path in found if os.path.basename(path) in names]


def test_a_bounded_number_is_kept_open(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the last files that were used."""
    monkeypatch.setattr(unopened, "MOST_KEPT", 2)
    kernel = mount.kernel
    handles = {name: kernel.open(name, os.O_RDWR) for name in ("a", "b", "c")}
    for _ in range(2):
        for name, handle in handles.items():
            assert kernel.read(handle) == f"in {name}".encode()
            kernel.write(handle, f"in {name}".encode())
    assert _files(mount).kept == 2
    assert len(_open_files(*handles)) == 2
    for handle in handles.values():
        kernel.close(handle)


def _files(mount: Mount) -> UnopenedFiles:
    files = mount.kernel.dispatcher.files
    assert isinstance(files, unopened.UnopenedFiles)
    return files


def test_times_are_the_kernels_where_it_gathers_writes(mount: Mount) -> None:
    """What it wrote back late is not what dates the file; a write that it passed on at once is."""
    kernel = mount.kernel
    handle = kernel.open("new", os.O_CREAT | os.O_RDWR)
    kernel.utime("new", LONG_AGO_NS, LONG_AGO_NS)
    gathered = (handle.fh, 0, 4, abi.WRITE_CACHE, 0, handle.flags)
    kernel.send(abi.WRITE, handle.nodeid, gathered, data=b"data")
    late = kernel.dispatcher.mode is modes.WRITE_BACK
    assert (os.stat(mount.base / "upper/new").st_mtime_ns == LONG_AGO_NS) is late
    kernel.write(handle, b"data", 4)
    assert os.stat(mount.base / "upper/new").st_mtime_ns > LONG_AGO_NS
    assert (mount.base / "upper/new").read_bytes() == b"datadata"
    kernel.close(handle)
