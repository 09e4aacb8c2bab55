"""What a start costs, exactly: the modules that are loaded, the processes that are made. Nothing here asserts a time.

Python names each module on standard error as it loads it (``-X importtime``). What a server loads is read from one in
the foreground, which keeps that stream.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import LIMIT_S, ROOT, await_mount, end, layer_options, prepare, run
from tests.support.probes import requires

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

pytestmark = [requires("fuse", "root"), pytest.mark.timeout(60)]

#: What may be loaded besides this package, and what those load themselves: nearly all of it is written in C.
LIBRARY = (
    "__future__",
    "_collections",
    "_queue",
    "_signal",
    "_thread",
    "ctypes",
    "errno",
    "fcntl",
    "gc",
    "mmap",
    "os",
    "resource",
    "select",
    "syslog",
)
MODULES_TO_MOUNT = 52
MODULES_TO_RUN = 64


def _python(*words: str) -> list[str]:
    """Return the command of an interpreter that says what it loads, without what an installation adds (``site``)."""
    return [sys.executable, "-S", "-X", "importtime", *words]


def _unionmount(*words: str) -> list[str]:
    return _python(str(ROOT / "bin/unionmount"), *words)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _said(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=_environment())
    assert done.returncode == 0, done.stderr
    return done.stderr


def _loaded(said: str) -> set[str]:
    """Return the modules that an interpreter says it has loaded."""
    lines = [line for line in said.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


def _foreign(modules: set[str]) -> set[str]:
    """Return what is neither ours nor part of LIBRARY."""
    library = _loaded(_said(_python("-c", f"import {', '.join(LIBRARY)}")))
    return {name for name in modules - library if name.partition(".")[0] != "unionfs"}


def _own(modules: set[str]) -> list[str]:
    return sorted(name for name in modules if name.partition(".")[0] == "unionfs")


@contextmanager
def _serving(base: Path) -> Iterator[tuple[Path, Path]]:
    """Mount in the foreground; give the mount point and the file that says what the server loads."""
    lowers, upper, work = prepare(base)
    (lowers[0] / "file").write_text("below")
    point, log = base / "mount", base / "log"
    point.mkdir()
    with log.open("wb") as output:
        command = _unionmount("-f", "-o", layer_options(lowers, upper, work), str(point))
        server = subprocess.Popen(command, stdout=output, stderr=output, env=_environment())
    try:
        await_mount(point, server, log)
        yield point, log
        run("umount", str(point))
        assert server.wait(LIMIT_S) == 0
    finally:
        end(server)


def test_what_a_mount_loads(tmp_path: Path) -> None:
    """No module of the library that brings others with it, and no more of our own than there were."""
    with _serving(tmp_path) as (point, log):
        assert (point / "file").stat().st_size == 5
        loaded = _loaded(log.read_text())
    assert _foreign(loaded) == set()
    assert len(_own(loaded)) <= MODULES_TO_MOUNT, _own(loaded)


def test_a_server_loads_nothing_once_it_has_mounted(tmp_path: Path) -> None:
    """Python's library may lie below the mount, and a server that reads from its own mount waits for itself."""
    with _serving(tmp_path) as (point, log):
        assert (point / "file").stat().st_size == 5
        before = _loaded(log.read_text())
        _use(point)
        after = _loaded(log.read_text())
    assert after == before


def _use(point: Path) -> None:
    """Ask for what needs threads, what needs figures, and every kind of change."""
    (point / "directory").mkdir()
    with (point / "directory/new").open("wb") as file:
        file.write(b"x")
        os.fsync(file.fileno())
    (point / "file").chmod(0o600)
    (point / "file").rename(point / "moved")
    (point / "link").hardlink_to(point / "moved")
    os.setxattr(point / "link", "user.name", b"value")
    assert sorted(os.listdir(point)) == ["directory", "link", "moved"]
    (point / "moved").unlink()
    for name in ("config", "stats"):
        assert json.loads(os.getxattr(point, f"user.unionfs.{name}"))


def test_what_a_run_loads() -> None:
    """The same, and what stands around a process: its server, in the background, loads nothing more."""
    loaded = _loaded(_said(_unionmount("run", "--lower", "/", "--", "/bin/true")))
    assert _foreign(loaded) == set()
    assert len(_own(loaded)) <= MODULES_TO_RUN, _own(loaded)


@requires("strace")
def test_a_run_makes_four_processes_and_never_sleeps(tmp_path: Path) -> None:
    """The supervisor, the server, process 1 and the command; whoever waits is woken by what it waits for."""
    trace, calls = tmp_path / "trace", ("clone", "clone3", "fork", "vfork", "nanosleep", "clock_nanosleep")
    wrapped = ["strace", "-f", "-qq", "-o", str(trace), "-e", f"trace={','.join(calls)}"]
    _said([*wrapped, *_unionmount("run", "--lower", "/", "--", "/bin/true")])
    # A thread of the server, for a read that waits for the disk, is none; a call that is cut in two has "resumed".
    lines = [line for line in trace.read_text().splitlines() if "CLONE_THREAD" not in line]
    made = [name for line in lines if (name := line.split()[1].partition("(")[0]) in calls]
    assert made == ["clone"] * 4
