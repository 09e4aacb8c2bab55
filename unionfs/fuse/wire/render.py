"""Messages as one line of text each, for the debug log.

Not for the hot path: it is imported when debugging is asked for. Names are decoded for people here, and nowhere else
in this package.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from unionfs.fuse.wire import abi
from unionfs.fuse.wire.requests import OPCODES, forgets

if TYPE_CHECKING:
    import struct

    from unionfs.fuse.wire.requests import Request

_OCTAL = {"mode", "umask"}
_HEXADECIMAL = {"flags", "flags2", "valid", "cmd", "arg", "lock_owner", "owner"}
_NOTIFICATIONS = {
    value: name
    for name, value in vars(abi).items()
    if name.startswith("NOTIFY_") and isinstance(value, int) and name != "NOTIFY_REPLY"
}


def request(request: Request) -> str:
    """Return for example `LOOKUP #12 node 3 'name'`; arguments that are zero are left out."""
    opcode = OPCODES.get(request.opcode)
    name = opcode.name if opcode else f"OPCODE {request.opcode}"
    parts = [f"{name} #{request.unique} node {request.nodeid}"]
    if request.opcode == abi.BATCH_FORGET:
        parts += [f"{nodeid}-{nlookup}" for nodeid, nlookup in forgets(request)]
    elif opcode and opcode.layout:
        parts += _arguments(opcode.layout, request.args)
    parts += [repr(os.fsdecode(name)) for name in request.names]
    if request.data is not None and request.opcode != abi.BATCH_FORGET:
        parts.append(f"{len(request.data)} bytes")
    return " ".join(parts)


def reply(message: bytes) -> str:
    """Return for example `#12 ENOENT`, `#12 ok` or `#12 ok 128 bytes`; only the header is looked at."""
    length, error, unique = abi.OUT_HEADER.unpack_from(message)
    size = length - abi.OUT_HEADER.size
    if unique == 0:
        return f"{_NOTIFICATIONS.get(error, error)} {size} bytes"
    if error:
        return f"#{unique} {errno.errorcode.get(-error, -error)}"
    return f"#{unique} ok {size} bytes" if size else f"#{unique} ok"


def _arguments(layout: struct.Struct, values: tuple[int, ...]) -> list[str]:
    # Not strict: older kernels send shorter layouts, which begin like the newer ones.
    pairs = zip(abi.FIELDS[layout], values, strict=False)
    return [f"{field}={_number(field, value)}" for field, value in pairs if value]


def _number(field: str, value: int) -> str:
    if field in _OCTAL:
        return f"0o{value:o}"
    return f"{value:#x}" if field in _HEXADECIMAL else str(value)
