"""Mounts for tests, as context managers: the kernel's overlayfs (the oracle), fuse-overlayfs, and ours.

Each yields the mountpoint and takes the mount away at the end, by force when it must; then the test fails. All waiting
has a limit. The layers are given topmost first.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import leftovers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LIMIT_S = 30
ROOT = Path(__file__).parents[2]
UNIONMOUNT = (sys.executable, "-m", "unionfs.cli.main")


def layer_options(lowers: Sequence[Path], upper: Path | None, work: Path | None, options: str = "") -> str:
    """Return the ``-o`` words that all implementations share; colons, commas and backslashes in paths are escaped."""
    words = ["lowerdir=" + ":".join(escape(lower) for lower in lowers)]
    words += [f"upperdir={escape(upper)}"] if upper else []
    words += [f"workdir={escape(work)}"] if work else []
    return ",".join(words + ([options] if options else []))


def escape(path: Path) -> str:
    """Return a path as it is written within mount options."""
    return "".join("\\" + char if char in ":,\\" else char for char in str(path))


def prepare(base: Path, count: int = 1) -> tuple[list[Path], Path, Path]:
    """Make the empty directories of a stack below ``base``; return its lowers, its upper and its workdir."""
    lowers = [base / f"lower{index}" for index in range(count)]
    for directory in (*lowers, base / "upper", base / "work"):
        directory.mkdir(parents=True, exist_ok=True)
    return lowers, base / "upper", base / "work"


def run(*command: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command with a time limit, its output captured; with ``check``, fail with what it said when it fails."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=env)
    if check:
        assert done.returncode == 0, f"{list(map(str, command))} exited with {done.returncode}: {done.stderr}"
    return done


@contextmanager
def disk_mount(place: Path, size_bytes: int, *maker: str) -> Iterator[Path]:
    """Mount an empty file system of its own, which ``maker`` makes on an image beside ``place``."""
    image = place.with_name("image")
    place.mkdir()
    image.touch()
    os.truncate(image, size_bytes)
    run(*maker, image)
    run("mount", "-o", "loop", image, place)
    try:
        yield place
    finally:
        run("umount", place)


@contextmanager
def overlayfs_mount(
    base: Path, lowers: Sequence[Path], upper: Path | None = None, work: Path | None = None, options: str = ""
) -> Iterator[Path]:
    """Mount the kernel's overlayfs at ``base``/overlayfs."""
    point = _mountpoint(base, "overlayfs")
    run("mount", "-t", "overlay", "-o", layer_options(lowers, upper, work, options), "overlay", point)
    with _unmounting(point):
        yield point


@contextmanager
def fuse_overlayfs_mount(
    base: Path, lowers: Sequence[Path], upper: Path | None = None, work: Path | None = None, options: str = ""
) -> Iterator[Path]:
    """Mount fuse-overlayfs at ``base``/fuse-overlayfs."""
    point = _mountpoint(base, "fuse-overlayfs")
    run("fuse-overlayfs", "-o", layer_options(lowers, upper, work, options), point)
    with _unmounting(point):
        yield point


@contextmanager
def union_mount(
    base: Path,
    lowers: Sequence[Path],
    upper: Path | None = None,
    work: Path | None = None,
    options: str = "",
    *,
    words: Sequence[str] = (),
) -> Iterator[Path]:
    """Mount ours at ``base``/unionfs; ``words`` are further words of the command line.

    The server stays in the foreground, and what it logs fails the test: a sound server has nothing to say.
    """
    point = _mountpoint(base, "unionfs")
    log = base / "unionfs.log"
    command = [*UNIONMOUNT, "-f", *words, "-o", layer_options(lowers, upper, work, options), str(point)]
    with log.open("wb") as output:
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env)
    try:
        await_mount(point, server, log)
        with _unmounting(point):
            yield point
        server.wait(LIMIT_S)
    finally:
        end(server)
    said = log.read_text(errors="replace")
    assert (server.returncode, said) == (0, ""), f"the server exited with {server.returncode} and said:\n{said}"


def _mountpoint(base: Path, name: str) -> Path:
    point = base / name
    point.mkdir(exist_ok=True)
    return point


def is_mounted(point: Path) -> bool:
    """Tell whether something is mounted on ``point``, without asking its server."""
    return any(mount.point == os.fsencode(point) for mount in leftovers.mounts())


def await_mount(point: Path, server: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a server has mounted; fail with what it said when it ends or takes too long."""
    deadline = time.monotonic() + LIMIT_S
    while not is_mounted(point):
        said = log.read_text(errors="replace")
        assert server.poll() is None, f"the server exited with {server.returncode} and said:\n{said}"
        assert time.monotonic() < deadline, f"no mount after {LIMIT_S} s; the server said:\n{said}"
        time.sleep(0.01)


@contextmanager
def _unmounting(point: Path) -> Iterator[None]:
    """Unmount at the end; what cannot be unmounted in time is cut off, and the test fails unless it did already."""
    try:
        yield
    except BaseException:
        _force(point)
        raise
    try:
        run("umount", point)
    finally:
        _force(point)


def _force(point: Path) -> None:
    for mount in leftovers.mounts_below(point):
        if mount.kind.startswith("fuse"):
            leftovers.abort(mount)
        leftovers.detach(mount.point)


def end(server: subprocess.Popen[bytes]) -> None:
    """Make sure that a process has ended: politely, then not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if server.poll() is not None:
            return
        server.send_signal(number)
        try:
            server.wait(LIMIT_S / 3)
        except subprocess.TimeoutExpired:
            continue
