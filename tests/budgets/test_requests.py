"""How many requests the kernel sends for an operation, exactly: the regression test for speed. Nothing here asserts a
time.

A row says what an operation costs after what came before it; a change that makes the kernel ask once more fails here,
and one that makes it ask less should lower the row. RELEASE and FORGET are not waited for by anybody and are left out.
"""

from __future__ import annotations

import json
import mmap
import os
import time
from contextlib import ExitStack
from fcntl import F_SETFL, fcntl
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import overlayfs_mount, prepare, union_mount
from tests.support.probes import requires
from unionfs.syscalls import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Step = Callable[[Path], object]
    Rows = list[tuple[str, Step, dict[str, int]]]

pytestmark = [requires("fuse", "root"), pytest.mark.timeout(60)]

_UNAWAITED = {"RELEASE", "FORGET", "BATCH_FORGET", "INTERRUPT"}


def _requests(mount: Path) -> dict[str, int]:
    """Return the requests so far; the one for this very answer is the only one that it costs."""
    told = json.loads(files.getxattr(os.fsencode(mount), b"user.unionfs.stats"))
    assert told["errors"] == 0
    counts: dict[str, int] = told["requests"]
    return {name: count for name, count in counts.items() if name not in _UNAWAITED}


def _read(path: str) -> Step:
    return lambda mount: (mount / path).read_bytes()


def _write_new(mount: Path) -> None:
    descriptor = os.open(mount / "new", os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(descriptor, b"x" * 100_000)
    os.close(descriptor)


def _write_pieces(mount: Path) -> None:
    descriptor = os.open(mount / "pieces", os.O_CREAT | os.O_WRONLY, 0o644)
    for _ in range(25):
        os.write(descriptor, b"x" * 4096)
    os.close(descriptor)


def _write_directly(mount: Path) -> None:
    """Write as dd(1) does with oflag=direct."""
    descriptor = os.open(mount / "direct", os.O_CREAT | os.O_WRONLY | os.O_DIRECT, 0o644)
    with mmap.mmap(-1, 1 << 20) as pages:
        os.write(descriptor, pages)
        os.write(descriptor, pages)
        fcntl(descriptor, F_SETFL, 0)
        os.write(descriptor, b"end")
    os.close(descriptor)


def _append(mount: Path) -> None:
    descriptor = os.open(mount / "dir/b", os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, b"more")
    os.close(descriptor)


def _list(path: str) -> Step:
    return lambda mount: sorted(os.listdir(mount / path))


def _scan(path: str) -> Step:
    def scan(mount: Path) -> list[int]:
        with os.scandir(mount / path) as entries:
            return [entry.stat(follow_symlinks=False).st_size for entry in entries]

    return scan


def _in_thread(path: str) -> Step:
    """Return what lists first and looks then, as one of several threads of a program does."""

    def look(mount: Path) -> None:
        for name in os.listdir(mount / path):
            os.lstat(mount / path / name)

    def start(mount: Path) -> None:
        thread = Thread(target=look, args=(mount,))
        thread.start()
        thread.join()

    return start


#: A GETATTR is for the directory, whose attributes the kernel drops when a name comes or goes, or for a file's time of
#: access after a READ; GETXATTR is for security.capability, once a file that is written; IOCTL is Python's isatty(3),
#: FLUSH the first and last one of a mount. In this order, on one mount: name, what is done, what it may ask.
BUDGET: Rows = [
    ("stat a name for the first time", lambda m: os.stat(m / "dir/a"), {"LOOKUP": 2}),
    ("stat the name again", lambda m: os.stat(m / "dir/a"), {}),
    ("ask for a name that is missing", lambda m: os.path.exists(m / "dir/none"), {"LOOKUP": 1}),
    ("ask for it again", lambda m: os.path.exists(m / "dir/none"), {}),
    ("read a small lower file for the first time", _read("dir/a"), {"OPEN": 1, "FLUSH": 1, "IOCTL": 1}),
    ("read the file again", _read("dir/a"), {"OPEN": 1, "IOCTL": 1}),
    ("read a large lower file for the first time", _read("large"), {"LOOKUP": 1, "OPEN": 1, "READ": 1, "IOCTL": 1}),
    ("read it again", _read("large"), {"GETATTR": 1, "OPEN": 1, "IOCTL": 1}),
    ("read it a third time", _read("large"), {"OPEN": 1, "IOCTL": 1}),
    ("read a lower link", lambda m: os.readlink(m / "link"), {"LOOKUP": 1, "READLINK": 1}),
    ("read the link again", lambda m: os.readlink(m / "link"), {}),
    ("list a directory", _list("dir"), {"OPENDIR": 1, "READDIRPLUS": 2}),
    ("list the directory again", _list("dir"), {"GETATTR": 1}),
    ("list and stat a new directory", _scan("many"), {"LOOKUP": 11, "READDIRPLUS": 2}),
    ("list and stat it again", _scan("many"), {"GETATTR": 1}),
    ("list and stat another one", _scan("more"), {"LOOKUP": 1, "READDIRPLUS": 2}),
    ("list a larger one, then stat it, in another thread", _in_thread("larger"), {"LOOKUP": 1, "READDIRPLUS": 3}),
    ("create and write a file", _write_new, {"LOOKUP": 1, "GETATTR": 1, "GETXATTR": 1, "CREATE": 1}),
    ("stat what was written", lambda m: os.stat(m / "new"), {"GETATTR": 1}),
    ("read what was written", _read("new"), {"OPEN": 1, "IOCTL": 1}),
    ("chmod a file of the top layer", lambda m: os.chmod(m / "new", 0o600), {"SETATTR": 1}),
    ("chmod a lower file", lambda m: os.chmod(m / "dir/a", 0o600), {"SETATTR": 1}),
    ("append to a lower file", _append, {"LOOKUP": 1, "OPEN": 1, "GETXATTR": 1}),
    ("rename", lambda m: os.rename(m / "new", m / "moved"), {"LOOKUP": 1, "GETATTR": 1, "RENAME": 1}),
    ("unlink", lambda m: os.unlink(m / "moved"), {"GETATTR": 1, "UNLINK": 1}),
    ("unlink a lower file", lambda m: os.unlink(m / "dir/a"), {"UNLINK": 1}),
    ("make a directory", lambda m: os.mkdir(m / "made"), {"LOOKUP": 1, "GETATTR": 1, "MKDIR": 1}),
    ("remove it", lambda m: os.rmdir(m / "made"), {"GETATTR": 1, "RMDIR": 1}),
    ("write a file in 25 pieces", _write_pieces, {"LOOKUP": 1, "GETATTR": 1, "GETXATTR": 1, "CREATE": 1}),
    ("write a file directly", _write_directly, {"LOOKUP": 1, "GETATTR": 1, "CREATE": 1, "WRITE": 3}),
]
#: What differs from passthrough in other modes; READ of what was written is for the last page, which was not whole.
WRITES = {
    "create and write a file": {"LOOKUP": 1, "GETATTR": 1, "GETXATTR": 1, "CREATE": 1, "WRITE": 1},
    "append to a lower file": {"LOOKUP": 1, "WRITE": 1, "GETXATTR": 1},
    "write a file directly": {"LOOKUP": 1, "GETATTR": 1, "GETXATTR": 1, "CREATE": 1, "WRITE": 3},
}
UNOPENED = {
    "read a small lower file for the first time": {"OPEN": 1, "READ": 1, "FLUSH": 1, "IOCTL": 1},
    "read the file again": {"GETATTR": 1, "IOCTL": 1},
    "read a large lower file for the first time": {"LOOKUP": 1, "READ": 1, "IOCTL": 1},
    "read it again": {"GETATTR": 1, "IOCTL": 1},
    "read it a third time": {"IOCTL": 1},
}
PIECES = {"LOOKUP": 1, "GETATTR": 1, "GETXATTR": 1, "CREATE": 1, "WRITE": 25}
MODES: dict[str, dict[str, dict[str, int]]] = {
    "auto": {},
    "opened": WRITES
    | {
        "read what was written": {"OPEN": 1, "READ": 1, "IOCTL": 1},
        "append to a lower file": {"LOOKUP": 1, "OPEN": 1, "WRITE": 1, "GETXATTR": 1},
        "write a file in 25 pieces": PIECES,
    },
    "write-through": WRITES
    | UNOPENED
    | {"read what was written": {"READ": 1, "IOCTL": 1}, "write a file in 25 pieces": PIECES},
    "write-back": WRITES
    | UNOPENED
    | {
        "read it a third time": {"GETATTR": 1, "IOCTL": 1},
        "read what was written": {"IOCTL": 1},
        "append to a lower file": {"LOOKUP": 1, "READ": 1, "WRITE": 1, "GETXATTR": 1},
        "write a file in 25 pieces": PIECES | {"WRITE": 1},
    },
}


#: Where nothing can be written, large files pass by the server, and reading changes no time of access that shows.
BUDGET_WITHOUT_UPPER: Rows = [
    ("read a large file for the first time", _read("large"), {"LOOKUP": 1, "OPEN": 1, "FLUSH": 1, "IOCTL": 1}),
    ("read it again", _read("large"), {"OPEN": 1, "IOCTL": 1}),
    ("read a small file for the first time", _read("dir/a"), {"LOOKUP": 2, "OPEN": 1, "IOCTL": 1}),
    ("read it once more", _read("dir/a"), {"OPEN": 1, "IOCTL": 1}),
]


@pytest.fixture(params=["auto"])
def mount(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A mount in the mode that the parameter names."""
    lowers, upper, work = _layers(tmp_path)
    with union_mount(tmp_path, lowers, upper, work, words=("--mode", request.param)) as merged:
        yield merged


@pytest.fixture
def mount_without_upper(tmp_path: Path) -> Iterator[Path]:
    lowers, _upper, _work = _layers(tmp_path)
    with union_mount(tmp_path, lowers) as merged:
        yield merged


def _layers(tmp_path: Path) -> tuple[list[Path], Path, Path]:
    lowers, upper, work = prepare(tmp_path, 2)
    (lowers[0] / "dir").mkdir()
    (lowers[1] / "dir").mkdir()
    for name in ("a", "b"):
        (lowers[1] / "dir" / name).write_text(name)
    for directory, names in {"many": 10, "more": 10, "larger": 300}.items():
        (lowers[1] / directory).mkdir()
        for number in range(names):
            (lowers[1] / directory / str(number)).write_text("x")
    (lowers[0] / "link").symlink_to("dir")
    (lowers[1] / "large").write_bytes(bytes(200_000))
    return lowers, upper, work


@pytest.mark.parametrize(("mount", "mode"), [(mode, mode) for mode in MODES], indirect=["mount"], ids=list(MODES))
def test_requests_per_operation(mount: Path, mode: str) -> None:
    _hold(mount, {name: common for name, _step, common in BUDGET} | MODES[mode], BUDGET, mode)


@requires("passthrough")
def test_requests_per_operation_without_upper(mount_without_upper: Path) -> None:
    _hold(mount_without_upper, {name: cost for name, _step, cost in BUDGET_WITHOUT_UPPER}, BUDGET_WITHOUT_UPPER)


def _hold(mount: Path, budget: dict[str, dict[str, int]], steps: Rows, mode: str = "auto") -> None:
    asked = {}
    for name, step, _budget in steps:
        before = _requests(mount)
        step(mount)
        time.sleep(0.01)  # for what is not waited for
        after = _requests(mount)
        before["GETXATTR"] = before.get("GETXATTR", 0) + 1
        asked[name] = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
    assert len(asked) == len(steps), "each row has a name of its own"
    ignored = {"SETATTR"} if mode == "write-back" else set()  # the kernel tells times that it keeps, once they differ
    assert _without(ignored, asked) == _without(ignored, budget)


def _without(names: set[str], table: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    return {row: {key: n for key, n in counts.items() if key not in names} for row, counts in table.items()}


@requires("overlayfs")
def test_data_passes_by_the_server_on_a_stacked_file_system_too(tmp_path: Path) -> None:
    """The writable layer may be on an overlay or in a mount of ours; on both at once it is too much for the kernel."""
    with ExitStack() as mounts:
        place = mounts.enter_context(overlayfs_mount(tmp_path, *prepare(tmp_path / "overlay")))
        for level, passes in enumerate((True, False)):
            lowers, _, _ = prepare(tmp_path / str(level))
            _, upper, work = prepare(place / "layers")
            place = mounts.enter_context(union_mount(tmp_path / str(level), lowers, upper, work))
            (place / "file").write_bytes(b"x" * 100_000)
            for _ in range(2):
                (place / "file").read_bytes()
            before = _requests(place)
            assert ("WRITE" not in before and "READ" not in before) is passes
            (place / "file").read_bytes()
            assert _requests(place).get("READ") == before.get("READ"), "it is in the kernel's cache"


def test_an_idle_server_uses_no_processor(mount: Path) -> None:
    (mount / "dir/b").read_bytes()
    config = json.loads(os.getxattr(mount, "user.unionfs.config"))
    before = _processor_ticks(config["pid"])
    time.sleep(1)
    assert _processor_ticks(config["pid"]) - before <= 1


def _processor_ticks(process: int) -> int:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()
    return int(fields[11]) + int(fields[12])


def test_no_descriptor_is_kept_for_a_known_file(mount: Path) -> None:
    process = json.loads(os.getxattr(mount, "user.unionfs.config"))["pid"]
    before = len(os.listdir(f"/proc/{process}/fd"))
    _scan("many")(mount)
    for number in range(10):
        (mount / f"many/{number}").read_bytes()
    time.sleep(0.1)
    assert len(os.listdir(f"/proc/{process}/fd")) <= before + 2  # the directories that were entered
