"""Decode what the kernel wrote: one message into one `Request`.

`OPCODES` says what each opcode carries, and is all there is to know about it; the decoder has no case of its own for
any of them. This module does not know what a request means, nor who answers it.
"""

from __future__ import annotations

import struct

from unionfs.fuse.wire import abi
from unionfs.lean import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from mmap import mmap

    Plan = tuple[struct.Struct, int, int, bool]
    """The layout of the arguments, where they end in the message, how many names follow, and whether data does."""


class WireError(Exception):
    """The bytes are no message of this protocol."""


class TruncatedHeader(WireError):
    """The message is shorter than a request's header."""


class LengthMismatch(WireError):
    """A length written in the message is not the length it has."""


class TruncatedBody(WireError):
    """The message ends inside its arguments or its data."""


class UnterminatedName(WireError):
    """A name has no NUL before the end of the message."""


class Opcode(NamedTuple):
    """What the requests of one opcode carry after the header, in this order, and whether the kernel waits.

    `names` counts the NUL-terminated names after the layout; with `data` the rest of the message is a payload.
    """

    name: str
    layout: struct.Struct | None
    names: int
    data: bool
    reply: bool


class Request(NamedTuple):
    """One request.

    `args` are the integers of the layout, as `abi.FIELDS` names them. `data` is a view into the buffer given to
    `decode`: it is valid only until that buffer is read into again, and must be released (or dropped) by then if the
    buffer is to be resized.
    """

    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    pid: int
    args: tuple[int, ...]
    names: tuple[bytes, ...]
    data: memoryview | None


def _plain(name: str, layout: struct.Struct | None = None, names: int = 0) -> Opcode:
    return Opcode(name, layout, names, data=False, reply=True)


OPCODES: dict[int, Opcode] = {
    abi.LOOKUP: _plain("LOOKUP", names=1),
    abi.FORGET: Opcode("FORGET", abi.FORGET_IN, names=0, data=False, reply=False),
    abi.GETATTR: _plain("GETATTR", abi.GETATTR_IN),
    abi.SETATTR: _plain("SETATTR", abi.SETATTR_IN),
    abi.READLINK: _plain("READLINK"),
    abi.SYMLINK: _plain("SYMLINK", names=2),
    abi.MKNOD: _plain("MKNOD", abi.MKNOD_IN, names=1),
    abi.MKDIR: _plain("MKDIR", abi.MKDIR_IN, names=1),
    abi.UNLINK: _plain("UNLINK", names=1),
    abi.RMDIR: _plain("RMDIR", names=1),
    abi.RENAME: _plain("RENAME", abi.RENAME_IN, names=2),
    abi.LINK: _plain("LINK", abi.LINK_IN, names=1),
    abi.OPEN: _plain("OPEN", abi.OPEN_IN),
    abi.READ: _plain("READ", abi.READ_IN),
    abi.WRITE: Opcode("WRITE", abi.WRITE_IN, names=0, data=True, reply=True),
    abi.STATFS: _plain("STATFS"),
    abi.RELEASE: _plain("RELEASE", abi.RELEASE_IN),
    abi.FSYNC: _plain("FSYNC", abi.FSYNC_IN),
    abi.SETXATTR: Opcode("SETXATTR", abi.SETXATTR_IN, names=1, data=True, reply=True),
    abi.GETXATTR: _plain("GETXATTR", abi.GETXATTR_IN, names=1),
    abi.LISTXATTR: _plain("LISTXATTR", abi.GETXATTR_IN),
    abi.REMOVEXATTR: _plain("REMOVEXATTR", names=1),
    abi.FLUSH: _plain("FLUSH", abi.FLUSH_IN),
    abi.INIT: _plain("INIT", abi.INIT_IN),
    abi.OPENDIR: _plain("OPENDIR", abi.OPEN_IN),
    abi.READDIR: _plain("READDIR", abi.READ_IN),
    abi.RELEASEDIR: _plain("RELEASEDIR", abi.RELEASE_IN),
    abi.FSYNCDIR: _plain("FSYNCDIR", abi.FSYNC_IN),
    abi.GETLK: _plain("GETLK", abi.LK_IN),
    abi.SETLK: _plain("SETLK", abi.LK_IN),
    abi.SETLKW: _plain("SETLKW", abi.LK_IN),
    abi.ACCESS: _plain("ACCESS", abi.ACCESS_IN),
    abi.CREATE: _plain("CREATE", abi.CREATE_IN, names=1),
    abi.INTERRUPT: Opcode("INTERRUPT", abi.INTERRUPT_IN, names=0, data=False, reply=False),
    abi.BMAP: _plain("BMAP", abi.BMAP_IN),
    abi.DESTROY: _plain("DESTROY"),
    abi.IOCTL: Opcode("IOCTL", abi.IOCTL_IN, names=0, data=True, reply=True),
    abi.POLL: _plain("POLL", abi.POLL_IN),
    abi.NOTIFY_REPLY: Opcode("NOTIFY_REPLY", abi.NOTIFY_RETRIEVE_IN, names=0, data=True, reply=False),
    abi.BATCH_FORGET: Opcode("BATCH_FORGET", abi.BATCH_FORGET_IN, names=0, data=True, reply=False),
    abi.FALLOCATE: _plain("FALLOCATE", abi.FALLOCATE_IN),
    abi.READDIRPLUS: _plain("READDIRPLUS", abi.READ_IN),
    abi.RENAME2: _plain("RENAME2", abi.RENAME2_IN, names=2),
    abi.LSEEK: _plain("LSEEK", abi.LSEEK_IN),
    abi.COPY_FILE_RANGE: _plain("COPY_FILE_RANGE", abi.COPY_FILE_RANGE_IN),
    abi.SETUPMAPPING: _plain("SETUPMAPPING", abi.SETUPMAPPING_IN),
    abi.REMOVEMAPPING: Opcode("REMOVEMAPPING", abi.REMOVEMAPPING_IN, names=0, data=True, reply=True),
    abi.SYNCFS: _plain("SYNCFS", abi.SYNCFS_IN),
    abi.TMPFILE: _plain("TMPFILE", abi.CREATE_IN, names=1),
    abi.STATX: _plain("STATX", abi.STATX_IN),
    abi.COPY_FILE_RANGE_64: _plain("COPY_FILE_RANGE_64", abi.COPY_FILE_RANGE_IN),
}

# Which argument counts the payload, and how many bytes it counts by.
_PAYLOAD: Mapping[int, tuple[int, int]] = {
    abi.WRITE: (2, 1),
    abi.SETXATTR: (0, 1),
    abi.IOCTL: (4, 1),
    abi.NOTIFY_REPLY: (1, 1),
    abi.BATCH_FORGET: (0, abi.FORGET_ONE.size),
    abi.REMOVEMAPPING: (0, abi.REMOVEMAPPING_ONE.size),
}

# Layouts of older kernels that the length of the message tells apart.
_OLDER: Mapping[int, struct.Struct] = {abi.INIT: abi.INIT_IN_COMPAT}

_HEADER_BYTES = abi.IN_HEADER.size
_NOTHING = struct.Struct("=")
_unpack_header = abi.IN_HEADER.unpack_from


def _plan(opcode: Opcode) -> Plan:
    layout = opcode.layout or _NOTHING
    return layout, _HEADER_BYTES + layout.size, opcode.names, opcode.data


_UNKNOWN = _plan(_plain(""))
_new = tuple.__new__  # a NamedTuple's own constructor is a Python function: half a microsecond more


class Decoder:
    """Decodes the requests of one connection.

    Args:
        setxattr_ext: whether INIT_SETXATTR_EXT was negotiated; it makes the layout of SETXATTR longer, and nothing in
            the message tells.
    """

    __slots__ = ("_plans",)

    def __init__(self, *, setxattr_ext: bool) -> None:
        opcodes = dict(OPCODES)
        if not setxattr_ext:
            opcodes[abi.SETXATTR] = opcodes[abi.SETXATTR]._replace(layout=abi.SETXATTR_IN_COMPAT)
        self._plans = {code: _plan(entry) for code, entry in opcodes.items()}

    def decode(self, buffer: bytearray | mmap, length: int) -> Request:
        """Return the request in the first `length` bytes of `buffer` (`length` is at most its size).

        An opcode that is not in `OPCODES` gives no arguments and no names: the kernel expects ENOSYS for it. Bytes
        after the last name are ignored: they are the extension headers of 7.36 and later, or a newer kernel's fields.

        Raises:
            TruncatedHeader, LengthMismatch, TruncatedBody, UnterminatedName: the message is malformed.
        """
        if length < _HEADER_BYTES:
            raise TruncatedHeader(f"{length} bytes")
        size, opcode, unique, nodeid, uid, gid, pid, _ = _unpack_header(buffer)
        if size != length:
            raise LengthMismatch(f"opcode {opcode}: header says {size} bytes, message has {length}")
        layout, end, count, has_data = self._plans.get(opcode, _UNKNOWN)
        if length < end:
            layout = _older_layout(opcode, length)
        args = layout.unpack_from(buffer, _HEADER_BYTES)
        names: tuple[bytes, ...] = ()
        while count:
            count -= 1
            stop = buffer.find(b"\0", end, length)
            if stop < 0:
                raise UnterminatedName(f"opcode {opcode}")
            names += (bytes(buffer[end:stop]),)
            end = stop + 1
        data = _payload(opcode, args, memoryview(buffer)[end:length]) if has_data else None
        return _new(Request, (opcode, unique, nodeid, uid, gid, pid, args, names, data))


decode = Decoder(setxattr_ext=False).decode
"""Decode for a connection that has negotiated nothing yet."""


def forgets(request: Request) -> list[tuple[int, int]]:
    """Return the (node id, lookup count) pairs of a FORGET or BATCH_FORGET."""
    if request.data is None:
        return [(request.nodeid, request.args[0])]
    return [(nodeid, nlookup) for nodeid, nlookup in abi.FORGET_ONE.iter_unpack(request.data)]


def _older_layout(opcode: int, length: int) -> struct.Struct:
    layout = _OLDER.get(opcode)
    if layout is None or length < _HEADER_BYTES + layout.size:
        raise TruncatedBody(f"opcode {opcode}: {length} bytes")
    return layout


def _payload(opcode: int, args: tuple[int, ...], rest: memoryview) -> memoryview:
    index, unit = _PAYLOAD[opcode]
    expected = args[index] * unit
    if len(rest) < expected:
        raise TruncatedBody(f"opcode {opcode}: {len(rest)} of {expected} bytes of data")
    if len(rest) > expected:
        raise LengthMismatch(f"opcode {opcode}: {len(rest)} bytes of data, {expected} announced")
    return rest
