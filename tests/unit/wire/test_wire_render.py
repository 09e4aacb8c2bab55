"""The lines of the debug log."""

from __future__ import annotations

import errno
import struct

import pytest

from unionfs.fuse.wire import abi, notify, render, replies
from unionfs.fuse.wire.requests import OPCODES, Request


def request(opcode: int, *args: int, names: tuple[bytes, ...] = (), data: bytes | None = None) -> Request:
    return Request(opcode, 12, 3, 0, 0, 77, args, names, None if data is None else memoryview(data))


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (request(abi.LOOKUP, names=(b"name",)), "LOOKUP #12 node 3 'name'"),
        (request(abi.LOOKUP, names=("Ünï\n".encode() + b"\xff",)), r"LOOKUP #12 node 3 'Ünï\n\udcff'"),
        (request(abi.STATFS), "STATFS #12 node 3"),
        (request(abi.RENAME2, 9, 2, names=(b"a", b"b")), "RENAME2 #12 node 3 newdir=9 flags=0x2 'a' 'b'"),
        (request(abi.MKDIR, 0o755, 0o22, names=(b"d",)), "MKDIR #12 node 3 mode=0o755 umask=0o22 'd'"),
        (request(abi.WRITE, 0, 8, 5, 0, 0, 1, data=b"hello"), "WRITE #12 node 3 offset=8 size=5 flags=0x1 5 bytes"),
        (request(abi.SETXATTR, 1, 0, names=(b"user.a",), data=b"v"), "SETXATTR #12 node 3 size=1 'user.a' 1 bytes"),
        (request(abi.BATCH_FORGET, 2, data=struct.pack("=QQQQ", 3, 1, 4, 7)), "BATCH_FORGET #12 node 3 3-1 4-7"),
        (request(99), "OPCODE 99 #12 node 3"),
    ],
)
def test_request(given: Request, line: str) -> None:
    assert render.request(given) == line


def test_each_opcode_can_be_printed() -> None:
    for opcode, entry in OPCODES.items():
        args = entry.layout.unpack(bytes(entry.layout.size)) if entry.layout else ()
        names = (b"x",) * entry.names
        line = render.request(request(opcode, *args, names=names, data=b"" if entry.data else None))
        assert line.startswith(f"{entry.name} #12 node 3")
        assert "\n" not in line


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (replies.ok(12), "#12 ok"),
        (replies.error(12, errno.ENOENT), "#12 ENOENT"),
        (replies.error(12, 511), "#12 511"),
        (replies.data(12, bytes(128)), "#12 ok 128 bytes"),
        (replies.header(12, 4096), "#12 ok 4096 bytes"),
        (notify.inval_entry(1, b"abc"), "NOTIFY_INVAL_ENTRY 20 bytes"),
    ],
)
def test_reply(message: bytes, line: str) -> None:
    assert render.reply(message) == line
