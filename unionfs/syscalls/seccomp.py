"""Filters on system calls, and answering some of them from another process: seccomp(2), seccomp_unotify(2)."""

from __future__ import annotations

import ctypes
import errno
import os
from fcntl import ioctl
from struct import Struct

from unionfs.lean import NamedTuple
from unionfs.syscalls._libc import X86_64, check, libc

RET_ALLOW = 0x7FFF0000
RET_USER_NOTIF = 0x7FC00000

#: AUDIT_ARCH_X86_64 and AUDIT_ARCH_AARCH64 of <linux/audit.h>; 0 on a machine whose numbers are not known here.
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}.get(os.uname().machine, 0)
#: The system calls that give a file to another owner or make a device, by number.
if X86_64:
    NUMBERS = {"chown": 92, "fchown": 93, "lchown": 94, "mknod": 133, "mknodat": 259, "fchownat": 260}
else:
    NUMBERS = {"mknodat": 33, "fchownat": 54, "fchown": 55}

INSTRUCTION = Struct("=HBBI")
"""struct sock_filter: code, jumps if true and if false, operand."""

_SYS_SECCOMP = 317 if X86_64 else 277
_SET_MODE_FILTER = 1
_NEW_LISTENER = 1 << 3
_WAIT_KILLABLE_RECV = 1 << 5  # Linux 5.19: a signal does not restart a call that is being answered
_NOTIF_RECV, _NOTIF_SEND, _NOTIF_ID_VALID = 0xC0502100, 0xC0182101, 0x40082102

_NOTIFICATION = Struct("=QII iIQ6Q")
_RESPONSE = Struct("=QqiI")
_ID = Struct("=Q")


class Call(NamedTuple):
    """A system call that waits for an answer."""

    id: int
    process_id: int
    """Of the thread, as seen from the process that answers; 0 if that does not see it."""
    number: int
    arguments: tuple[int, ...]


def listen(program: bytes) -> int:
    """Have ``program``, in BPF, decide on this process's and its descendants' system calls; return the listener.

    Needs CAP_SYS_ADMIN in the process's user namespace. Raises OSError: EBUSY if there is a listener already, EINVAL
    or ENOSYS on a kernel before 5.0.
    """
    code = ctypes.create_string_buffer(program, len(program))
    argument = Struct("@HP").pack(len(program) // INSTRUCTION.size, ctypes.addressof(code))
    for flags in (_NEW_LISTENER | _WAIT_KILLABLE_RECV, _NEW_LISTENER):
        result = libc.syscall(_SYS_SECCOMP, _SET_MODE_FILTER, flags, argument)
        if result != -1 or ctypes.get_errno() != errno.EINVAL:
            break
    return check(result)


def receive(listener: int) -> Call:
    """Wait for the next call that the filter hands over. Raises OSError: ENOENT if its caller has died meanwhile."""
    buffer = bytearray(_NOTIFICATION.size)
    ioctl(listener, _NOTIF_RECV, buffer)
    number_, process_id, _flags, number, _architecture, _address, *arguments = _NOTIFICATION.unpack(buffer)
    return Call(number_, process_id, number, tuple(arguments))


def still_waits(listener: int, call: Call) -> bool:
    """Tell whether the caller still waits: if not, its process id may belong to somebody else by now."""
    try:
        ioctl(listener, _NOTIF_ID_VALID, _ID.pack(call.id))
    except OSError:
        return False
    return True


def answer(listener: int, call: Call, error_number: int) -> None:
    """Let a call return 0, or fail with ``error_number``. A caller that has died does not mind."""
    response = bytearray(_RESPONSE.pack(call.id, 0, -error_number, 0))
    try:
        ioctl(listener, _NOTIF_SEND, response)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
