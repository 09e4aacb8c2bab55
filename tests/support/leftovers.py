"""What a test session may leave nowhere: mounts, processes and temporary files; how they are found and removed.

Everything of a session stands below one directory, named for its process, so that a later session can tidy up after
one that was killed. Nothing outside of such a directory is ever unmounted, and no process is ever killed but those that
carry the mark of a session of tests. Runs in the process of pytest; it must never stat a path below a mount, which
could hang.
"""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "unionfs-tests-"
#: Every process that a test starts inherits this variable; its value is the session's directory.
MARK = "UNIONFS_TEST_SESSION"
GRACE_S = 5.0
REMOVE_LIMIT_S = 120

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo, proc(5): ``connection`` names that of a FUSE mount."""

    connection: int
    point: bytes
    kind: str


class Process(NamedTuple):
    """A process that was started by the session, directly or not."""

    pid: int
    command: str


def mounts() -> list[Mount]:
    """Return all mounts of this process's namespace, in the order in which they were made."""
    lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    return [parse_mount(line.split(b" ")) for line in lines]


def parse_mount(fields: list[bytes]) -> Mount:
    """Return what the fields of one line of mountinfo say; spaces and backslashes stand there in octal."""
    point = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), fields[4])
    major, minor = map(int, fields[2].split(b":"))
    return Mount(major << 20 | minor, point, fields[fields.index(b"-") + 1].decode())


def mounts_below(base: Path) -> list[Mount]:
    """Return the mounts at or below ``base``, the latest first, which is the order to unmount in."""
    inside = os.fsencode(base) + b"/"
    return [mount for mount in reversed(mounts()) if (mount.point + b"/").startswith(inside)]


def detach(point: bytes | Path) -> None:
    """Take a mount away even while it is used: umount2(2), which asks its server nothing. Raises OSError."""
    if _libc.umount2(os.fsencode(point), MNT_DETACH | UMOUNT_NOFOLLOW):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), point)


def abort(mount: Mount) -> None:
    """Cut a FUSE mount off: whatever waits for it, even uninterruptibly, gets an error now."""
    with suppress(OSError):
        Path(f"/sys/fs/fuse/connections/{mount.connection}/abort").write_text("1")


def abort_below(base: Path) -> None:
    """Cut off every FUSE mount below ``base``."""
    for mount in mounts_below(base):
        if mount.kind.startswith("fuse"):
            abort(mount)


def processes(base: Path) -> list[Process]:
    """Return the living processes that carry the session's mark, without this one and multiprocessing's tracker."""
    return [process for process in _marked(base) if "multiprocessing.resource_tracker" not in process.command]


def _marked(base: Path) -> Iterator[Process]:
    mark = f"{MARK}={base}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):  # it ended, or is another user's
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                yield Process(int(entry.name), command.strip())


def settle(base: Path) -> list[Process]:
    """Give processes that are about to end a moment; return those that did not."""
    deadline = time.monotonic() + GRACE_S
    while (left := processes(base)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def new_base() -> Path:
    """Make the directory of this session, open to other users, in the system's temporary directory."""
    base = Path(tempfile.gettempdir(), f"{PREFIX}{os.getpid()}")
    remove(base)
    base.mkdir(mode=0o755)
    return base


def sweep_stale() -> None:
    """Unmount and remove what sessions have left whose process is gone."""
    for base in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        pid = base.name.removeprefix(PREFIX)
        if pid.isdigit() and not Path("/proc", pid).exists() and os.stat(base).st_uid == os.geteuid():
            remove(base)


def release(base: Path) -> None:
    """Kill the processes of a session and unmount everything below its directory."""
    for process in processes(base):
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    abort_below(base)
    for mount in mounts_below(base):
        detach(mount.point)


def remove(base: Path) -> None:
    """Release a session's directory and remove it, never crossing into another file system."""
    assert base.name.startswith(PREFIX)
    release(base)
    command = ["rm", "-rf", "--one-file-system", "--", str(base)]  # shutil.rmtree fails on trees deeper than its stack
    subprocess.run(command, check=True, timeout=REMOVE_LIMIT_S)
