"""What fusepy leaves out of libfuse's C interface: the caller's umask, the connection, fallocate, memory of an ioctl.

Layouts are those of <fuse.h> and <fuse_common.h> of libfuse 2.8 and later. No library is loaded here: the pointers come
from whichever one fusepy has loaded. To be used within a callback, in the thread that libfuse called.
"""

from __future__ import annotations

import ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CAP_ATOMIC_O_TRUNC = 1 << 3
CAP_BIG_WRITES = 1 << 5
CAP_DONT_MASK = 1 << 6
CAP_IOCTL_DIR = 1 << 11
CAP_POSIX_ACL = 1 << 19  # from here on libfuse 3 alone
CAP_HANDLE_KILLPRIV = 1 << 20
CAP_HANDLE_KILLPRIV_V2 = 1 << 21


class _Context(ctypes.Structure):
    """struct fuse_context; fusepy declares it without its last field."""

    _fields_ = [
        ("fuse", ctypes.c_void_p),
        ("uid", ctypes.c_uint),
        ("gid", ctypes.c_uint),
        ("pid", ctypes.c_int),
        ("private_data", ctypes.c_void_p),
        ("umask", ctypes.c_uint),
    ]


class Connection(ctypes.Structure):
    """struct fuse_conn_info of libfuse 2, as far as it is of use: what the kernel is capable of, and what is wanted."""

    _fields_ = [
        (name, ctypes.c_uint)
        for name in ("proto_major", "proto_minor", "async_read", "max_write", "max_readahead", "capable", "want")
    ]

    capable: int
    want: int


def with_fallocate(operations: type[ctypes.Structure], info: type[ctypes.Structure]) -> type[ctypes.Structure]:
    """Return struct fuse_operations up to ``fallocate``, from what fusepy declares of it; for libfuse 2.9.

    ``info`` is struct fuse_file_info.
    """
    fallocate = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(info)
    )
    between = [(name, ctypes.c_void_p) for name in ("poll", "write_buf", "read_buf", "flock")]
    fields = [*operations._fields_, *between, ("fallocate", fallocate)]
    return type(operations.__name__, (ctypes.Structure,), {"_fields_": fields})


def caller(context: Any) -> tuple[int, int, int, int]:
    """Return user id, group id, umask and id of the process that asks, from what fuse_get_context() returned."""
    found = _Context.from_address(ctypes.addressof(context.contents))
    return found.uid, found.gid, found.umask, found.pid


def connection(address: int) -> Connection:
    """Return the connection that libfuse 2 hands to the init callback."""
    return Connection.from_address(address)


def read(address: int, size_bytes: int) -> bytes:
    """Return bytes of memory, such as the argument of an ioctl."""
    return ctypes.string_at(address, size_bytes)


def write(address: int, data: bytes) -> None:
    """Overwrite memory, such as the answer to an ioctl."""
    ctypes.memmove(address, data, len(data))
