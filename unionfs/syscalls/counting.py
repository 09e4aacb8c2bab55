"""Counting the system calls of another process from outside: it pays for that while somebody counts, and only then.

For whoever has opened the tracepoint raw_syscalls:sys_enter for it, by perf_event_open(2), the kernel counts.
"""

from __future__ import annotations

import ctypes
import os
import sys
from fcntl import ioctl
from struct import Struct

from unionfs.syscalls._libc import X86_64, check, libc

_TRACEPOINT = "events/raw_syscalls/sys_enter/id"
_TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")

_SYS_PERF_EVENT_OPEN = 298 if X86_64 else 241
_PERF_TYPE_TRACEPOINT = 2
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_SET_FILTER = 0x40082406
_INHERIT = 2  # threads to come are counted as well
_ATTR = Struct("=II5Q16x")  # type, size, config, period, sample_type, read_format, flags: what perf_event_attr began as
_COUNT_BYTES = 8
_ACCOUNT_BYTES = 4096
#: poll, ppoll, futex: how often a thread asks while it waits says nothing about its work.
_WAITING = (7, 271, 202) if X86_64 else (73, 98)

_syscall = libc.syscall
_syscall.restype = ctypes.c_long


class SystemCalls:
    """Counts the system calls that process ``pid`` makes in any thread from now on, but for those that only wait.

    Raises OSError: ENOENT or EACCES where there is no tracefs to be read, EACCES or EPERM without CAP_PERFMON
    (perf_event_paranoid in the kernel's Documentation/admin-guide/sysctl/kernel.rst).
    """

    def __init__(self, pid: int) -> None:
        attributes = _ATTR.pack(_PERF_TYPE_TRACEPOINT, _ATTR.size, _tracepoint(), 0, 0, 0, _INHERIT)
        self._counters = [_open(attributes, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")]

    def count(self) -> int:
        """Return how many there were so far."""
        return sum(int.from_bytes(os.read(counter, _COUNT_BYTES), sys.byteorder) for counter in self._counters)

    def close(self) -> None:
        """Count no more."""
        while self._counters:
            os.close(self._counters.pop())


class ReadsAndWrites:
    """Tells how many calls that read or write process ``pid`` has made: those alone the kernel counts for everybody.

    See syscr and syscw in proc_pid_io(5). Raises OSError: EACCES where this process may not trace the other.
    """

    def __init__(self, pid: int) -> None:
        self._account = os.open(f"/proc/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)

    def count(self) -> int:
        """Return how many there were since that process began."""
        counts = dict(line.split(b": ") for line in os.pread(self._account, _ACCOUNT_BYTES, 0).splitlines())
        return int(counts[b"syscr"]) + int(counts[b"syscw"])

    def close(self) -> None:
        """Ask no more."""
        os.close(self._account)


def _tracepoint() -> int:
    """Return the number of the tracepoint, from the first place where tracefs may be mounted that has it."""
    places = [os.path.join(place, _TRACEPOINT) for place in _TRACEFS]
    with open(next(filter(os.path.exists, places), places[0])) as stream:
        return int(stream.read())


def _open(attributes: bytes, thread: int) -> int:
    """Return a descriptor of a counter for one thread that counts from now on; see perf_event_open(2)."""
    any_processor = no_group = -1
    opened = _syscall(_SYS_PERF_EVENT_OPEN, attributes, thread, any_processor, no_group, _PERF_FLAG_FD_CLOEXEC)
    counter = check(opened, "perf_event_open")
    ioctl(counter, _PERF_EVENT_IOC_SET_FILTER, " && ".join(f"id != {number}" for number in _WAITING).encode() + b"\0")
    return counter
