"""What readers see of lower files, whose data may be handed to the kernel before it asks: the right bytes, always."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.support.mounts import LIMIT_S, prepare, union_mount
from tests.support.probes import requires

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

pytestmark = [requires("fuse", "root"), pytest.mark.timeout(120)]

#: Around a page, around what is handed out at OPEN, around what one READ holds.
SIZES = [0, 1, 4095, 4096, 4097, 100_000, (1 << 17) - 1, 1 << 17, (1 << 17) + 1, (1 << 20) + 5, (3 << 20) + 5]
OLD, NEW = b"old", b"NEW"


def content_of(size: int) -> bytes:
    return (b"%d-" % size * size)[:size]


@pytest.fixture
def lower(tmp_path: Path) -> Path:
    (lower,), _upper, _work = prepare(tmp_path)
    return lower


@pytest.fixture
def mount(tmp_path: Path, lower: Path) -> Iterator[Path]:
    _fill(lower)
    with union_mount(tmp_path, [lower], tmp_path / "upper", tmp_path / "work") as merged:
        yield merged


@pytest.fixture(params=["with an upper", "without"])
def any_mount(request: pytest.FixtureRequest, tmp_path: Path, lower: Path) -> Iterator[Path]:
    """Where nothing can be written, large files are read past the server."""
    _fill(lower)
    writable = (tmp_path / "upper", tmp_path / "work") if request.param != "without" else (None, None)
    with union_mount(tmp_path, [lower], *writable) as merged:
        yield merged


def _fill(lower: Path) -> None:
    for size in SIZES:
        (lower / str(size)).write_bytes(content_of(size))
    (lower / "file").write_bytes(OLD * 1000)
    os.sync()


def evict(path: Path) -> None:
    """Take a file's data out of the page cache."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def by_reading(path: Path) -> bytes:
    return path.read_bytes()


def by_mapping(path: Path) -> bytes:
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return b""
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            return mapping[:]


def by_the_page_from_the_end(path: Path) -> bytes:
    size = path.stat().st_size
    with path.open("rb", buffering=0) as file:
        pages = [os.pread(file.fileno(), 4096, at) for at in reversed(range(0, size, 4096))]
        return b"".join(reversed(pages))


WAYS = [by_reading, by_mapping, by_the_page_from_the_end]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cold", [False, True], ids=["in memory", "on disk"])
def test_the_bytes_are_right(any_mount: Path, lower: Path, way: Callable[[Path], bytes], *, cold: bool) -> None:
    """The first time, and again when the kernel has lost what it was given."""
    for round_ in range(2):
        for size in SIZES:
            if cold:
                evict(lower / str(size))
            assert way(any_mount / str(size)) == content_of(size), (size, round_)
            assert (any_mount / str(size)).stat().st_size == size
            evict(any_mount / str(size))


@pytest.mark.parametrize("cold", [False, True], ids=["in memory", "on disk"])
def test_holes_are_zeros(any_mount: Path, lower: Path, *, cold: bool) -> None:
    """What is moved from a hole's pages, and from those between data."""
    size, islands = 5 << 20, (0, 1_500_000, (4 << 20) - 2, (5 << 20) - 3)
    content = bytearray(size)
    with (lower / "sparse").open("wb") as file:
        file.truncate(size)
        for at in islands:
            file.seek(at)
            content[at : at + 3] = OLD
            file.write(OLD)
    os.sync()
    for way in WAYS:
        if cold:
            evict(lower / "sparse")
        assert way(any_mount / "sparse") == content
        evict(any_mount / "sparse")


@pytest.mark.parametrize("step", [512, 4096, 1 << 17, (1 << 20) - 4096, 1 << 20, 2 << 20])
def test_direct_reads(any_mount: Path, lower: Path, step: int) -> None:
    """Past the kernel's cache: requests of any length and place, one of them over the end of the file."""
    size = SIZES[-1]
    evict(lower / str(size))
    descriptor = os.open(any_mount / str(size), os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, step)  # direct reads need an aligned one
    for offset in (0, 512, 4096, 1 << 20, size // 4096 * 4096 - 8192):
        got = os.preadv(descriptor, [buffer], offset)
        assert buffer[:got] == content_of(size)[offset : offset + step], (offset, got)
    os.close(descriptor)


def test_large_files_that_grow_while_they_are_read(mount: Path, lower: Path) -> None:
    """They are copied up meanwhile. What readers get is the file's bytes from its beginning, and no other."""
    path, whole = mount / "growing", content_of(6 << 20)
    (lower / "growing").write_bytes(whole[: 3 << 20])
    wrong: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            evict(path)
            content = path.read_bytes()
            if not whole.startswith(content):
                wrong.append(len(content))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for _ in range(30):
        with path.open("ab") as file:
            file.write(whole[file.tell() : file.tell() + 50_000])
    done.set()
    for reader in readers:
        reader.join(LIMIT_S)
        assert not reader.is_alive()
    assert not wrong
    assert path.read_bytes() == whole[: (3 << 20) + 30 * 50_000]


def test_data_that_is_elsewhere(tmp_path: Path) -> None:
    """Of a file copied by its attributes alone, and of one that names a file of a layer of data."""
    lowers, upper, work = prepare(tmp_path, 2)
    size = SIZES[-1]
    (lowers[1] / "data").write_bytes(content_of(size))
    (lowers[0] / "copied").write_bytes(content_of(size))
    (lowers[0] / "named").touch()
    os.truncate(lowers[0] / "named", size)
    os.setxattr(lowers[0] / "named", "trusted.overlay.metacopy", b"")
    os.setxattr(lowers[0] / "named", "trusted.overlay.redirect", b"/data")
    with union_mount(tmp_path, lowers, upper, work, "metacopy=on") as merged:
        (merged / "copied").chmod(0o600)
        assert "trusted.overlay.metacopy" in os.listxattr(upper / "copied")
        for way in WAYS:
            for name in ("copied", "named"):
                evict(merged / name)
                assert way(merged / name) == content_of(size), name


def _six_times_at_once(read: Callable[[], T]) -> list[T]:
    """Return what ``read`` gives in each of six threads that has come to its end."""
    found: list[T] = []
    readers = [threading.Thread(target=lambda: found.append(read())) for _ in range(6)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(LIMIT_S)
    return found


def test_many_readers_of_one_large_file_at_once(mount: Path, lower: Path) -> None:
    """Each from its beginning, cold: several READs are answered at once, by several threads."""
    size = 20 << 20
    (lower / "huge").write_bytes(content_of(size))
    os.sync()
    evict(lower / "huge")
    assert _six_times_at_once(lambda: (mount / "huge").read_bytes() == content_of(size)) == [True] * 6
    assert json.loads(os.getxattr(mount, "user.unionfs.stats"))["errors"] == 0


def test_a_reader_from_before_a_copy_up_sees_what_comes_after(mount: Path) -> None:
    """By its descriptor and by its mapping, though their data was handed out at once."""
    with (mount / "file").open("rb", buffering=0) as reader:
        mapping = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
        assert mapping[:3] == os.pread(reader.fileno(), 3, 0) == OLD
        with (mount / "file").open("r+b", buffering=0) as writer:
            writer.write(NEW)
        assert mapping[:6] == os.pread(reader.fileno(), 6, 0) == NEW + OLD
        os.truncate(mount / "file", 2)
        assert os.pread(reader.fileno(), 10, 0) == NEW[:2]
        mapping.close()
    assert (mount / "file").read_bytes() == NEW[:2]


@pytest.mark.parametrize("change", ["write", "truncate", "replace"])
def test_readers_and_writers_at_once(mount: Path, lower: Path, change: str) -> None:
    """Many open one file for the first time while it is copied up: nobody sees old data once the writer is done."""
    for number in range(20):
        name = f"{change}{number}"
        (lower / name).write_bytes(OLD * 10_000)
        if number % 2:
            evict(lower / name)
        done = threading.Event()
        wrong: list[bytes] = []
        readers = [threading.Thread(target=_watch, args=(mount / name, done, wrong)) for _ in range(3)]
        for reader in readers:
            reader.start()
        _change(mount / name, change)
        done.set()
        for reader in readers:
            reader.join(LIMIT_S)
            assert not reader.is_alive()
        assert not wrong
        assert (mount / name).read_bytes()[:3] == NEW


def _change(path: Path, change: str) -> None:
    if change == "replace":
        path.with_name("fresh").write_bytes(NEW)
        path.with_name("fresh").rename(path)
        return
    flags = os.O_WRONLY | (os.O_TRUNC if change == "truncate" else 0)
    descriptor = os.open(path, flags)
    os.write(descriptor, NEW)
    os.close(descriptor)


def _watch(path: Path, done: threading.Event, wrong: list[bytes]) -> None:
    finished = False
    while not finished:
        finished = done.is_set()
        head = path.read_bytes()[:3]
        if head not in ((NEW,) if finished else (OLD, NEW, b"")):
            wrong.append(head)


def test_many_readers_of_cold_files_at_once(mount: Path, lower: Path) -> None:
    """Each file is opened by all of them together, its data not yet in memory."""
    names = [f"cold{number}" for number in range(100)]
    for name in names:
        (lower / name).write_bytes(name.encode() * 5000)
    os.sync()
    for name in names:
        evict(lower / name)
    expected = hashlib.sha256(b"".join(name.encode() * 5000 for name in names)).digest()

    def read() -> bytes:
        digest = hashlib.sha256()
        for name in names:
            digest.update((mount / name).read_bytes())
        return digest.digest()

    assert _six_times_at_once(read) == [expected] * 6
    assert json.loads(os.getxattr(mount, "user.unionfs.stats"))["errors"] == 0
