"""System calls on the calling process: namespaces, what happens when its parent dies, its capabilities."""

from __future__ import annotations

import ctypes
import os
from struct import Struct

from unionfs.syscalls._libc import check, libc

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

CAP_DAC_OVERRIDE = 1
CAP_FSETID = 4
CAP_SYS_CHROOT = 18
CAP_SYS_ADMIN = 21

_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_HEADER = Struct("=Ii")
_CAPABILITY_DATA = Struct("=6I")  # effective, permitted, inheritable: the low words, then the high ones

_prctl = libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]


def unshare(flags: int) -> None:
    """Move this process into new namespaces (CLONE_NEW*); see unshare(2).

    Raises OSError: EPERM where it is not allowed, ENOSPC or EUSERS at a limit, EINVAL for a new user namespace in a
    process with several threads.
    """
    check(libc.unshare(flags))


def setns(descriptor: int, kinds: int = 0) -> None:
    """Move this process into the namespace of ``descriptor``, a /proc/PID/ns file or a pidfd; see setns(2)."""
    check(libc.setns(descriptor, kinds))


def set_parent_death_signal(number: int) -> None:
    """Have the kernel send this process signal ``number`` when the parent's thread ends; 0 for none.

    Forgotten when the process's credentials change: call it after that. See PR_SET_PDEATHSIG(2const). Raises OSError.
    """
    check(_prctl(PR_SET_PDEATHSIG, number, 0, 0, 0))


def set_child_subreaper() -> None:
    """Make this process the parent of every orphan among its descendants; see PR_SET_CHILD_SUBREAPER(2const)."""
    check(_prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))


def set_dumpable(*, dumpable: bool) -> None:
    """Say whether others of the same user may trace this process; see PR_SET_DUMPABLE(2const)."""
    check(_prctl(PR_SET_DUMPABLE, int(dumpable), 0, 0, 0))


def set_no_new_privileges() -> None:
    """Bar this process and its descendants from gaining rights by execve(2); see PR_SET_NO_NEW_PRIVS(2const)."""
    check(_prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def has_capability(capability: int) -> bool:
    """Tell whether the capability of this number is in effect, in the process's own user namespace; see capget(2)."""
    effective_low, _, _, effective_high, _, _ = _CAPABILITY_DATA.unpack(_capabilities())
    return bool((effective_high << 32 | effective_low) >> capability & 1)


def groups_of(pid: int) -> frozenset[int]:
    """Return the supplementary groups of a process, none if it is not to be seen here; see proc_pid_status(5)."""
    return frozenset(map(int, _status(pid, b"Groups:")))


def belongs(pid: int, gid: int, group: int) -> bool:
    """Tell whether a process, whose own group is ``gid``, is in ``group``."""
    return group == gid or group in groups_of(pid)


def thread_group(thread: int) -> int:
    """Return the process that a thread belongs to, the thread itself if it is not to be seen here; see
    proc_pid_status(5).
    """
    return int(next(iter(_status(thread, b"Tgid:")), thread))


def _status(pid: int, field: bytes) -> list[bytes]:
    try:
        descriptor = os.open(b"/proc/%d/status" % pid, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = b"".join(iter(lambda: os.read(descriptor, 1 << 14), b""))
        finally:
            os.close(descriptor)
    except OSError:
        return []
    return next((line.split()[1:] for line in text.split(b"\n") if line.startswith(field)), [])


def _capabilities() -> bytes:
    data = ctypes.create_string_buffer(_CAPABILITY_DATA.size)
    check(libc.capget(_CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0), data))
    return data.raw


class Without:
    """``with Without(CAP_FSETID):`` lets this thread do without one capability, any number of times; see capset(2)."""

    __slots__ = ("_full", "_header", "_lowered")

    def __init__(self, capability: int) -> None:
        self._header = _CAPABILITY_HEADER.pack(_CAPABILITY_VERSION_3, 0)
        self._full = _capabilities()
        words = list(_CAPABILITY_DATA.unpack(self._full))
        words[3 * (capability >> 5)] &= ~(1 << (capability & 31))
        self._lowered = _CAPABILITY_DATA.pack(*words)

    def __enter__(self) -> None:
        check(libc.capset(self._header, self._lowered))

    def __exit__(self, *_: object) -> None:
        check(libc.capset(self._header, self._full))


def is_superuser() -> bool:
    """Tell whether this process is root outside of any user namespace: no file's mode keeps it out."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map", "rb") as stream:
        return stream.read().split() == [b"0", b"0", b"4294967295"]
