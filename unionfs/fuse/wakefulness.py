"""How the loop waits: spinning, and keeping idle processors from falling asleep, while nobody else wants them; where
others do, before them.

The time that a request takes is mostly the waking of those who wait. A client that waits for an answer leaves its
processor idle, and to bring an idle one back takes some microseconds on bare metal and more than ten in a virtual
machine: more than the answer takes. The kernel's quality-of-service interface says how much of that somebody can bear
(Documentation/power/pm_qos_interface.rst); it is open to root alone. On a machine with more to do than processors to do
it on nobody is idle, and who spins takes a processor from somebody, perhaps from the client. There each request waits
for a processor twice, and the server is what everybody waits for who uses the mount.

This module knows no request; the loop that serves them says when to be awake.
"""

from __future__ import annotations

import os

_DEVICE = "/dev/cpu_dma_latency"
_NONE_US = 0
_ANY_US = 2_000_000_000  # PM_QOS_CPU_LATENCY_DEFAULT_VALUE: no demand
_LOADAVG = "/proc/loadavg"
_LOADAVG_BYTES = 128
_GLANCE_NS = 1_000_000  # looking takes some microseconds
_AHEAD = 10  # steps of nice(2)
_SESSION = "/proc/self/autogroup"


class Wakefulness:
    """A demand for processors that wake at once, made and taken back; without effect where it may not be made."""

    __slots__ = ("_awake", "_demand")

    def __init__(self) -> None:
        self._awake = False
        self._demand: int | None = None  # the open device; opened when it is first needed, -1 if it cannot be

    def be(self, *, awake: bool) -> None:
        """Let no processor fall asleep from now on, or let an idle machine rest again."""
        if awake is self._awake:
            return
        self._awake = awake
        if self._demand is None:
            self._demand = _open(_DEVICE, os.O_WRONLY)
        if self._demand >= 0:
            os.write(self._demand, (_NONE_US if awake else _ANY_US).to_bytes(4, "little"))


def go_ahead_of_others() -> None:
    """Have the scheduler prefer this process to its caller, as nice(2) does; without effect for who may not ask that.

    The leader of a session takes it along, for it is sessions that processors are shared between: sched(7), "The
    autogroup feature".
    """
    try:
        value = os.nice(-_AHEAD)
        if os.getsid(0) == os.getpid():
            with open(_SESSION, "w") as session:
                session.write(str(value))
    except OSError:
        pass  # not root, or a kernel that shares nothing between sessions


class Crowd:
    """How many threads want to run, looked up once a millisecond at most: proc_loadavg(5)."""

    __slots__ = ("_file", "_is_there", "_next_ns", "_processors")

    def __init__(self) -> None:
        self._file = _open(_LOADAVG, os.O_RDONLY)
        self._processors = os.cpu_count() or 1
        self._next_ns = 0
        self._is_there = False

    def is_there(self, now_ns: int) -> bool:
        """Tell whether more of them than processors do, as of about ``now_ns``; not if that cannot be known."""
        if now_ns >= self._next_ns and self._file >= 0:
            self._next_ns = now_ns + _GLANCE_NS
            running = os.pread(self._file, _LOADAVG_BYTES, 0).split(b" ")[3].partition(b"/")[0]
            self._is_there = int(running) > self._processors
        return self._is_there


def _open(path: str, flags: int) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC)
    except OSError:
        return -1
