"""One file under random reads, writes, mappings, truncations and holes, compared byte by byte with a model in memory.

After the manner of fsx, with what a union can get wrong besides: descriptors and mappings from before the copy-up go on
being used after it, and each way for data to move is met, the page cache with our server behind it and passthrough.
"""

from __future__ import annotations

import mmap
import os
import random
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from tests.conformance.calls import opened
from tests.stateful.machine import fewest_steps
from tests.support.mounts import prepare, union_mount
from tests.support.probes import requires
from unionfs.syscalls import files

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    Op = tuple[str, int, int, int]

pytestmark = requires("root", "fuse")

RUNS = int(os.environ.get("UNIONFS_FSX_RUNS", "40"))
STEPS = 60
MOST_BYTES = 160 * 1024
FIRST = bytes(range(1, 251)) * 200
LOWER_FILES = 40
PAGE = mmap.PAGESIZE

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
SPACE = {"allocate": 0, "reserve": KEEP_SIZE, "punch": PUNCH_HOLE | KEEP_SIZE, "zero": ZERO_RANGE | KEEP_SIZE}
OPENS = (os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND, os.O_RDWR | os.O_DIRECT)

KINDS = (
    *("read", "write", "load", "store") * 2,
    *("direct", "truncate", "cut", "copy", "copy_in", "sync", "find_data", "rename", *SPACE),
    *("open", "close", "map"),
)


def operations(seed: int) -> list[Op]:
    """Return the operations of one run: what, through which descriptor or mapping, and two places or lengths."""
    chance = random.Random(seed)

    def place() -> int:
        place = chance.randrange(MOST_BYTES // 2)
        return place if chance.random() < 0.5 else max(place // PAGE * PAGE + chance.choice((-1, 0, 0, 0, 1)), 0)

    return [(chance.choice(KINDS), chance.randrange(8), place(), place()) for _ in range(STEPS)]


class Exerciser:
    """A file with all its descriptors and mappings, and ``model``, what it ought to hold.

    Nobody has read the file before: what is read first must come from the server, not from the kernel's cache.
    """

    def __init__(self, path: Path, content: bytes, other: Path) -> None:
        self.path = path
        self.model = bytearray(content)
        self.other = other.read_bytes()
        self._closing = ExitStack()
        self._other = os.open(other, os.O_RDONLY)
        self._closing.callback(os.close, self._other)
        self._handles: list[tuple[int, int]] = []
        self._maps: list[tuple[mmap.mmap, bool]] = []
        self._count = 0
        self.open(0)
        self.map(0)

    def run(self, op: Op) -> None:
        """Do one operation, whose numbers are fitted to the file as it is, and look at the size."""
        kind, which, first, second = op
        if kind in SPACE:
            self._space(SPACE[kind], first, second)
        else:
            getattr(self, kind)(which, first, second)
        for descriptor, _flags in self._handles:
            assert os.fstat(descriptor).st_size == len(self.model), "fstat"
        assert os.stat(self.path).st_size == len(self.model), "stat"

    def check(self) -> None:
        """Compare everything through every descriptor and mapping, and a new one."""
        self.open(0)
        for number in range(len(self._handles)):
            self.read(number, 0, MOST_BYTES)
        for number in range(len(self._maps)):
            self.load(number, 0, MOST_BYTES)

    def close_all(self) -> None:
        """Close whatever is open."""
        for mapping, _writable in self._maps:
            mapping.close()
        for descriptor, _flags in self._handles:
            os.close(descriptor)
        self._closing.close()

    # -- descriptors and mappings ------------------------------------------------------------------------------------

    def open(self, which: int, _first: int = 0, _second: int = 0) -> None:
        """Open the file once more, in one of several ways."""
        flags = OPENS[which % len(OPENS)]
        try:
            self._handles.append((os.open(self.path, flags), flags))
        except OSError:
            assert flags & os.O_DIRECT  # not every file system has it

    def close(self, which: int, _first: int, _second: int) -> None:
        """Close one descriptor, not the last one."""
        if len(self._handles) > 1:
            os.close(self._handles.pop(which % len(self._handles))[0])

    def map(self, which: int, _first: int = 0, _second: int = 0) -> None:
        """Map the whole file as it is now; an old mapping goes when there are many."""
        descriptor, flags = self._handles[which % len(self._handles)]
        writable = flags & os.O_ACCMODE == os.O_RDWR
        if self.model:
            protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
            self._maps.append((mmap.mmap(descriptor, 0, mmap.MAP_SHARED, protection), writable))
        if len(self._maps) > 4:
            self._maps.pop(1)[0].close()

    def rename(self, _which: int, _first: int, _second: int) -> None:
        """Give the file another name, which nothing that is open may notice."""
        self._count += 1
        target = self.path.with_name(f"{self.path.name.partition('~')[0]}~{self._count}")
        os.rename(self.path, target)
        self.path = target

    # -- data --------------------------------------------------------------------------------------------------------

    def read(self, which: int, offset: int, length: int) -> None:
        """Compare what pread(2) gives."""
        descriptor, flags = self._handles[which % len(self._handles)]
        if flags & os.O_DIRECT:
            return
        self._compare(os.pread(descriptor, length, offset), offset, length, "read")

    def direct(self, which: int, offset: int, length: int) -> None:
        """Read or write whole pages past all caches; see open(2), O_DIRECT."""
        chosen = [descriptor for descriptor, flags in self._handles if flags & os.O_DIRECT]
        offset, length = offset // PAGE * PAGE, max(length // PAGE, 1) * PAGE
        if not chosen:
            return
        with mmap.mmap(-1, length) as buffer:
            if which % 2:
                got = os.preadv(chosen[0], [buffer], offset)
                self._compare(buffer[:got], offset, length, "direct read")
            else:
                buffer[:] = data = self._pattern(length)
                assert os.pwritev(chosen[0], [buffer], offset) == length
                self._put(offset, data)

    def write(self, which: int, offset: int, length: int) -> None:
        """Write by pwrite(2), or at the end through a descriptor that appends."""
        chosen = [handle for handle in self._handles if handle[1] & os.O_RDWR and not handle[1] & os.O_DIRECT]
        data = self._pattern(length)
        if not chosen:
            self.open(1)
            return
        descriptor, flags = chosen[which % len(chosen)]
        if flags & os.O_APPEND:
            offset = len(self.model)
            data = data[: max(MOST_BYTES - offset, 0)]
        assert os.pwrite(descriptor, data, offset) == len(data)
        self._put(offset, data)

    def load(self, which: int, offset: int, length: int) -> None:
        """Compare what a mapping shows, as far as both reach."""
        if self._maps:
            mapping = self._maps[which % len(self._maps)][0]
            end = min(offset + length, len(mapping), len(self.model))
            assert mapping[offset:end] == self.model[offset:end], "mapping"

    def store(self, which: int, offset: int, length: int) -> None:
        """Write through a mapping, never beyond the end."""
        chosen = [mapping for mapping, writable in self._maps if writable]
        if not chosen:
            self.open(1)
            self.map(-1)
            return
        mapping = chosen[which % len(chosen)]
        data = self._pattern(max(min(length, len(mapping) - offset, len(self.model) - offset), 0))
        mapping[offset : offset + len(data)] = data
        self._put(offset, data)

    def truncate(self, which: int, size: int, _second: int) -> None:
        """Change the size through a descriptor or by name."""
        chosen = [descriptor for descriptor, flags in self._handles if flags & os.O_RDWR]
        os.truncate(chosen[which % len(chosen)] if chosen and which % 2 else self.path, size)
        self._resize(size)

    def cut(self, _which: int, _first: int, _second: int) -> None:
        """Open with O_TRUNC."""
        os.close(os.open(self.path, os.O_WRONLY | os.O_TRUNC))
        self._resize(0)

    def copy(self, _which: int, source: int, target: int) -> None:
        """Copy within the file, where the two ranges do not meet; see copy_file_range(2)."""
        length = min(abs(source - target), len(self.model) - source)
        if length > 0:
            with opened(self.path, os.O_RDWR) as descriptor:
                done = os.copy_file_range(descriptor, descriptor, length, source, target)
            self._put(target, self.model[source : source + done])

    def copy_in(self, _which: int, source: int, target: int) -> None:
        """Copy from a file in a lower layer."""
        with opened(self.path, os.O_RDWR) as descriptor:
            done = os.copy_file_range(self._other, descriptor, MOST_BYTES // 8, source, target)
        self._put(target, self.other[source : source + done])

    def sync(self, which: int, _first: int, _second: int) -> None:
        """Have everything on disk, and let the kernel drop the pages."""
        descriptor = self._handles[which % len(self._handles)][0]
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def find_data(self, _which: int, offset: int, _second: int) -> None:
        """What lseek(2) calls a hole must read as zeros."""
        with opened(self.path, os.O_RDWR) as descriptor:
            if offset < len(self.model):
                hole = os.lseek(descriptor, offset, os.SEEK_HOLE)
                assert offset <= hole <= len(self.model)
                try:
                    data = os.lseek(descriptor, hole, os.SEEK_DATA)
                except OSError:
                    data = len(self.model)
                assert not any(self.model[hole:data]), "data in a hole"

    # -- parts -------------------------------------------------------------------------------------------------------

    def _space(self, mode: int, offset: int, length: int) -> None:
        with opened(self.path, os.O_RDWR) as descriptor:
            try:
                files.fallocate(descriptor, mode, offset, length + 1)
            except OSError:
                return  # not in this file system, or not at all: then nothing has changed
        end = offset + length + 1
        if mode & (PUNCH_HOLE | ZERO_RANGE):
            end = min(end, len(self.model))
            self.model[offset:end] = bytes(max(end - offset, 0))
        elif not mode & KEEP_SIZE:
            self._resize(max(len(self.model), end))

    def _pattern(self, length: int) -> bytes:
        self._count += 1
        return bytes((self._count + position // 512) & 0xFF | 1 for position in range(length))

    def _put(self, offset: int, data: bytes | bytearray) -> None:
        if data:
            self._resize(max(len(self.model), offset + len(data)))
            self.model[offset : offset + len(data)] = data

    def _resize(self, size: int) -> None:
        self.model[size:] = bytes(max(size - len(self.model), 0))

    def _compare(self, got: bytes, offset: int, length: int, what: str) -> None:
        wanted = self.model[offset : offset + length]
        if got != wanted:
            different = [at for at, pair in enumerate(zip(got, wanted, strict=False)) if pair[0] != pair[1]]
            where = offset + different[0] if different else "nowhere"
            raise AssertionError(f"{what}: {len(got)} bytes for {len(wanted)}, {len(different)} differ, from {where}")


class Files:
    """A mount, and files in it that no example has used yet; when they run out, the same lower files in a new one."""

    def __init__(self, base: Path, way: str, mode: str) -> None:
        self._way = way
        self._words = ("--mode", mode)
        self._base = base
        self._mounted = ExitStack()
        self._left: list[int] = []
        self._rounds = 0
        self.lowers, _, _ = prepare(base)
        for number in range(LOWER_FILES):
            (self.lowers[0] / f"f{number}").write_bytes(FIRST)
        (self.lowers[0] / "other").write_bytes(os.urandom(MOST_BYTES))

    def take(self) -> tuple[Path, bytes, Path]:
        """Return a fresh file as this way wants it, its content, and another file to copy from."""
        if not self._left:
            self._remount()
        path = self._point / f"f{self._left.pop()}"
        content = FIRST
        if self._way == "made here":
            path, content = path.with_name(path.name + "made"), b"made"
            path.write_bytes(content)
        elif self._way != "lower":
            path.chmod(0o4755 if self._way == "set-id" else 0o600)
        return path, content, self._point / "other"

    def unmount(self) -> None:
        """Unmount."""
        self._mounted.close()

    def _remount(self) -> None:
        self.unmount()
        self._rounds += 1
        self._left = list(range(LOWER_FILES))
        _, upper, work = prepare(self._base / f"round{self._rounds}")
        self._point = self._mounted.enter_context(union_mount(self._base, self.lowers, upper, work, words=self._words))


#: Where the file comes from: read before its copy-up it stays cached, a set-id file is always so, others pass through.
WAYS = [
    *(("auto", way) for way in ("lower", "copied", "made here", "set-id")),
    *((mode, way) for mode in ("opened", "write-through", "write-back") for way in ("lower", "made here")),
]


@pytest.fixture(scope="module", params=WAYS, ids=" ".join)
def stock(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    """Files of one kind."""
    mode, way = request.param
    made = Files(tmp_path_factory.mktemp("fsx"), way, mode)
    yield made
    made.unmount()


def failure(stock: Files, ops: list[Op]) -> str | None:
    """Do one run on a fresh file; return what was wrong in it."""
    exerciser = Exerciser(*stock.take())
    try:
        for op in ops:
            exerciser.run(op)
        exerciser.check()
    except (AssertionError, OSError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        exerciser.close_all()
    return None


def test_random_operations(stock: Files) -> None:
    """The file is what the model is, at each step and through everything that is open."""
    for seed in range(RUNS):
        ops = operations(seed)
        reason = failure(stock, ops)
        if reason is not None:
            pytest.fail(f"seed {seed}: {reason}\n" + "\n".join(map(str, fewest(stock, ops))))


def fewest(stock: Files, ops: list[Op]) -> list[Op]:
    """Return a part of failing operations that fails as well, and needs each of them."""
    steps = fewest_steps(lambda some: failure(stock, [ops[step] for step in some]) is not None, list(range(len(ops))))
    return [ops[step] for step in steps]
