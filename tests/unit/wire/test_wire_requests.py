"""Decoding, held to packets written out by hand (several recorded from Linux 6.18) and to their truncations."""

from __future__ import annotations

import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

from unionfs.fuse.wire import abi
from unionfs.fuse.wire.requests import (
    OPCODES,
    Decoder,
    LengthMismatch,
    Request,
    TruncatedBody,
    TruncatedHeader,
    UnterminatedName,
    WireError,
    decode,
    forgets,
)

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.skipif(sys.byteorder == "big", reason="the packets below are those of a little-endian machine")

decode_ext = Decoder(setxattr_ext=True).decode


def packet(annotated: str) -> bytearray:
    """Return the bytes of lines of hexadecimal digits with comments."""
    return bytearray.fromhex("".join(line.partition("#")[0] for line in annotated.splitlines()))


class Golden(NamedTuple):
    packet: bytearray
    request: Request
    optional: int = 0  # how many bytes at the end the message may do without
    decode: Callable[[bytearray, int], Request] = decode


def root(
    opcode: int, unique: int, nodeid: int, args: tuple[int, ...], *names: bytes, data: bytes | None = None
) -> Request:
    view = None if data is None else memoryview(data)
    return Request(opcode, unique, nodeid, uid=0, gid=0, pid=6184, args=args, names=names, data=view)


GOLDEN = {
    "INIT of 7.45, with flags2": Golden(
        packet("""
            68000000 1a000000 0200000000000000  # len 104, opcode 26, unique 2
            0000000000000000                    # nodeid: none
            00000000 00000000 00000000          # uid, gid, pid: the kernel itself
            0000 0000                           # total_extlen, padding
            07000000 2d000000                   # version 7.45
            00000200                            # max_readahead 128 KiB
            fbffff73 fd050000                   # flags, flags2
            0000000000000000000000 0000000000000000000000 0000000000000000000000 0000000000000000000000  # unused[11]
        """),
        Request(abi.INIT, 2, 0, 0, 0, 0, (7, 45, 131072, 0x73FFFFFB, 0x5FD), (), None),
        optional=48,
    ),
    "INIT of 7.31": Golden(
        packet("""
            38000000 1a000000 0200000000000000 0000000000000000  # len 56, opcode 26, unique 2, nodeid 0
            00000000 00000000 00000000 00000000                  # uid, gid, pid, extensions
            07000000 1f000000 00000200 fbffff03                  # 7.31, max_readahead, flags
        """),
        Request(abi.INIT, 2, 0, 0, 0, 0, (7, 31, 131072, 0x03FFFFFB), (), None),
    ),
    "LOOKUP": Golden(
        packet("""
            2c000000 01000000 1a00000000000000 0100000000000000  # len 44, opcode 1, unique 26, nodeid 1
            e8030000 64000000 28180000 00000000                  # uid 1000, gid 100, pid 6184, extensions
            6e657700                                             # "new"
        """),
        Request(abi.LOOKUP, 26, 1, 1000, 100, 6184, (), (b"new",), None),
    ),
    "a name that is not UTF-8": Golden(
        packet("""
            2b000000 01000000 1a00000000000000 0100000000000000  # len 43, opcode 1, unique 26, nodeid 1
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            ff8000
        """),
        root(abi.LOOKUP, 26, 1, (), b"\xff\x80"),
    ),
    "FORGET": Golden(
        packet("""
            30000000 02000000 1c00000000000000 0300000000000000  # len 48, opcode 2, unique 28, nodeid 3
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            0500000000000000                                     # nlookup 5
        """),
        root(abi.FORGET, 28, 3, (5,)),
    ),
    "GETATTR by handle": Golden(
        packet("""
            38000000 03000000 2200000000000000 0200000000000000  # len 56, opcode 3, unique 34, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            01000000 00000000                                    # GETATTR_FH, dummy
            0500000000000000                                     # fh 5
        """),
        root(abi.GETATTR, 34, 2, (abi.GETATTR_FH, 5)),
    ),
    "SETATTR of times before 1970 and after 2038": Golden(
        packet("""
            80000000 04000000 2e00000000000000 0200000000000000  # len 128, opcode 4, unique 46, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            30000000 00000000                                    # valid: ATIME, MTIME; padding
            0000000000000000 0000000000000000 0000000000000000   # fh, size, lock_owner
            feffffffffffffff 00f2052a01000000 0000000000000000   # atime -2, mtime 5000000000, ctime
            0065cd1d 00000000 00000000                           # atimensec 500000000, mtimensec, ctimensec
            00000000 00000000 00000000 00000000 00000000         # mode, unused4, uid, gid, unused5
        """),
        root(abi.SETATTR, 46, 2, (0x30, 0, 0, 0, -2, 5_000_000_000, 0, 500_000_000, 0, 0, 0, 0, 0)),
    ),
    "READLINK": Golden(
        packet("""
            28000000 05000000 1e00000000000000 0200000000000000  # len 40, opcode 5, unique 30, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
        """),
        root(abi.READLINK, 30, 2, ()),
    ),
    "SYMLINK": Golden(
        packet("""
            35000000 06000000 4400000000000000 0100000000000000  # len 53, opcode 6, unique 68, nodeid 1
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            73796d00 7461726765742f7800                          # "sym", "target/x"
        """),
        root(abi.SYMLINK, 68, 1, (), b"sym", b"target/x"),
    ),
    "MKNOD of device 300:70000": Golden(
        packet("""
            3c000000 08000000 4c00000000000000 0100000000000000  # len 60, opcode 8, unique 76, nodeid 1
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            a4210000 702c1111 12000000 00000000                  # mode S_IFCHR 0644, rdev, umask 022, padding
            6e6f6400                                             # "nod"
        """),
        root(abi.MKNOD, 76, 1, (0o20644, 0x11112C70, 0o22), b"nod"),
    ),
    "CREATE with a security context and a group": Golden(
        packet("""
            74000000 23000000 1c00000000000000 0100000000000000  # len 116, opcode 35, unique 28, nodeid 1
            00000000 00000000 28180000                           # uid, gid, pid
            0700 0000                                            # total_extlen 7 * 8 bytes, padding
            42800000 a0810000 12000000 00000000                  # flags, mode, umask, open_flags
            6e657700                                             # "new"
            28000000 01000000                                    # secctx_header: 40 bytes, one context
            02000000 00000000                                    # secctx: 2 bytes
            73656375726974792e73656c696e757800 7800              # "security.selinux", "x"
            0000000000                                           # to a multiple of 8
            10000000 20000000                                    # ext_header: 16 bytes, EXT_GROUPS
            01000000 64000000                                    # one group: 100
        """),
        root(abi.CREATE, 28, 1, (0x8042, 0o100640, 0o22, 0), b"new"),
        optional=56,
    ),
    "RENAME2": Golden(
        packet("""
            3c000000 2d000000 3e00000000000000 0100000000000000  # len 60, opcode 45, unique 62, nodeid 1
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            0900000000000000 02000000 00000000                   # newdir 9, RENAME_EXCHANGE, padding
            6600 6700                                            # "f", "g"
        """),
        root(abi.RENAME2, 62, 1, (9, 2), b"f", b"g"),
    ),
    "READ": Golden(
        packet("""
            50000000 0f000000 2400000000000000 0200000000000000  # len 80, opcode 15, unique 36, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            0500000000000000 0000100000000000                    # fh 5, offset 1 MiB
            00100000 02000000                                    # size 4096, READ_LOCKOWNER
            4c728f3280ad100d 02800000 00000000                   # lock_owner, flags, padding
        """),
        root(abi.READ, 36, 2, (5, 1 << 20, 4096, abi.READ_LOCKOWNER, 0x0D10AD80328F724C, 0x8002)),
    ),
    "WRITE": Golden(
        packet("""
            5b000000 10000000 2000000000000000 0200000000000000  # len 91, opcode 16, unique 32, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            0500000000000000 0000000000000000                    # fh 5, offset 0
            0b000000 00000000                                    # size 11, write_flags
            0000000000000000 02800000 00000000                   # lock_owner, flags, padding
            68656c6c6f20776f726c64                               # "hello world"
        """),
        root(abi.WRITE, 32, 2, (5, 0, 11, 0, 0, 0x8002), data=b"hello world"),
    ),
    "SETXATTR before 7.33, or without INIT_SETXATTR_EXT": Golden(
        packet("""
            3c000000 15000000 2800000000000000 0200000000000000  # len 60, opcode 21, unique 40, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            05000000 01000000                                    # size 5, XATTR_CREATE
            757365722e6100 7600006c75                            # "user.a", a value with NULs
        """),
        root(abi.SETXATTR, 40, 2, (5, 1), b"user.a", data=b"v\0\0lu"),
    ),
    "SETXATTR with INIT_SETXATTR_EXT": Golden(
        packet("""
            44000000 15000000 2800000000000000 0200000000000000  # len 68, opcode 21, unique 40, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            05000000 00000000 01000000 00000000                  # size 5, flags, SETXATTR_ACL_KILL_SGID, padding
            757365722e6100 76616c7565                            # "user.a", "value"
        """),
        root(abi.SETXATTR, 40, 2, (5, 0, abi.SETXATTR_ACL_KILL_SGID), b"user.a", data=b"value"),
        decode=decode_ext,
    ),
    "GETXATTR": Golden(
        packet("""
            37000000 16000000 2a00000000000000 0200000000000000  # len 55, opcode 22, unique 42, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            80000000 00000000 757365722e6100                     # size 128, padding, "user.a"
        """),
        root(abi.GETXATTR, 42, 2, (128,), b"user.a"),
    ),
    "INTERRUPT": Golden(
        packet("""
            30000000 24000000 2100000000000000 0000000000000000  # len 48, opcode 36, unique 33, nodeid 0
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            2000000000000000                                     # of request 32
        """),
        root(abi.INTERRUPT, 33, 0, (32,)),
    ),
    "IOCTL": Golden(
        packet("""
            4c000000 27000000 6a00000000000000 0200000000000000  # len 76, opcode 39, unique 106, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            0500000000000000 00000000 34120440                   # fh 5, flags, _IOW(0x12, 0x34, 4)
            8057d165fc7f0000 04000000 00000000                   # arg, in_size 4, out_size 0
            01020304
        """),
        root(abi.IOCTL, 106, 2, (5, 0, 0x40041234, 0x7FFC65D15780, 4, 0), data=b"\1\2\3\4"),
    ),
    "BATCH_FORGET": Golden(
        packet("""
            50000000 2a000000 0000000000000000 0000000000000000  # len 80, opcode 42, unique 0, nodeid 0
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            02000000 00000000                                    # two of them, dummy
            0300000000000000 0100000000000000                    # node 3, once
            0400000000000000 0700000000000000                    # node 4, seven times
        """),
        root(abi.BATCH_FORGET, 0, 0, (2,), data=struct.pack("=QQQQ", 3, 1, 4, 7)),
    ),
    "LSEEK": Golden(
        packet("""
            40000000 2e000000 5e00000000000000 0200000000000000  # len 64, opcode 46, unique 94, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            0500000000000000 ffffffffffffffff 04000000 00000000  # fh 5, offset -1, SEEK_HOLE, padding
        """),
        root(abi.LSEEK, 94, 2, (5, -1, 4)),
    ),
    "TMPFILE": Golden(
        packet("""
            3a000000 33000000 6c00000000000000 0100000000000000  # len 58, opcode 51, unique 108, nodeid 1
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            02804100 80810000 12000000 00000000                  # flags, mode, umask, open_flags
            2f00                                                 # "/": the name of what has none
        """),
        root(abi.TMPFILE, 108, 1, (0x418002, 0o100600, 0o22, 0), b"/"),
    ),
    "STATX": Golden(
        packet("""
            40000000 34000000 7600000000000000 0200000000000000  # len 64, opcode 52, unique 118, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            00000000 00000000 0000000000000000                   # getattr_flags, reserved, fh
            00000000 ff0f0000                                    # sx_flags, sx_mask
        """),
        root(abi.STATX, 118, 2, (0, 0, 0, 0xFFF)),
    ),
    "an opcode of the future": Golden(
        packet("""
            2c000000 36000000 7600000000000000 0200000000000000  # len 44, opcode 54, unique 118, nodeid 2
            00000000 00000000 28180000 00000000                  # uid, gid, pid, extensions
            01020304
        """),
        root(54, 118, 2, ()),
        optional=4,
    ),
}

all_packets = pytest.mark.parametrize("golden", GOLDEN.values(), ids=GOLDEN)


def with_length(message: bytearray, length: int) -> bytearray:
    """Return a truncated message whose header does not tell."""
    shorter = message[:length]
    shorter[:4] = struct.pack("=I", length)
    return shorter


@all_packets
def test_golden_packet(golden: Golden) -> None:
    assert golden.decode(golden.packet, len(golden.packet)) == golden.request


@all_packets
def test_golden_packet_in_a_larger_buffer(golden: Golden) -> None:
    buffer = golden.packet + b"what the request before this one left"
    assert golden.decode(buffer, len(golden.packet)) == golden.request


@all_packets
def test_truncated(golden: Golden) -> None:
    for length in range(len(golden.packet)):
        with pytest.raises(WireError):
            golden.decode(golden.packet[:length], length)


@all_packets
def test_truncated_with_a_header_that_agrees(golden: Golden) -> None:
    for length in range(40, len(golden.packet) - golden.optional):
        with pytest.raises((TruncatedBody, UnterminatedName)):
            golden.decode(with_length(golden.packet, length), length)


@all_packets
def test_truncated_where_that_is_allowed(golden: Golden) -> None:
    for length in range(len(golden.packet) - golden.optional, len(golden.packet)):
        request = golden.decode(with_length(golden.packet, length), length)
        assert request._replace(args=()) == golden.request._replace(args=())
        assert request.args == golden.request.args[: len(request.args)]


@all_packets
def test_header_that_says_another_length(golden: Golden) -> None:
    for length in (0, len(golden.packet) - 1, len(golden.packet) + 1, 0xFFFFFFFF):
        buffer = bytearray(golden.packet)
        buffer[:4] = struct.pack("=I", length)
        with pytest.raises(LengthMismatch):
            golden.decode(buffer, len(buffer))


def test_shorter_than_a_header() -> None:
    with pytest.raises(TruncatedHeader):
        decode(bytearray(39), 39)


@pytest.mark.parametrize("name", ["WRITE", "BATCH_FORGET", "IOCTL"])
def test_more_data_than_announced(name: str) -> None:
    message = GOLDEN[name].packet + b"more"
    with pytest.raises(LengthMismatch):
        decode(with_length(message, len(message)), len(message))


def test_the_long_setxattr_is_noticed_where_the_short_one_was_negotiated() -> None:
    message = GOLDEN["SETXATTR with INIT_SETXATTR_EXT"].packet
    with pytest.raises(LengthMismatch):
        decode(message, len(message))


def test_data_is_a_view_and_not_a_copy() -> None:
    message = bytearray(GOLDEN["WRITE"].packet)
    data = decode(message, len(message)).data
    assert data is not None
    message[-1:] = b"D"
    assert bytes(data) == b"hello worlD"


def test_forgets() -> None:
    one, many = GOLDEN["FORGET"].packet, GOLDEN["BATCH_FORGET"].packet
    assert forgets(decode(one, len(one))) == [(3, 5)]
    assert forgets(decode(many, len(many))) == [(3, 1), (4, 7)]


def test_what_gets_no_reply() -> None:
    silent = {entry.name for entry in OPCODES.values() if not entry.reply}
    assert silent == {"FORGET", "BATCH_FORGET", "INTERRUPT", "NOTIFY_REPLY"}


def test_the_table_names_opcodes_as_the_header_does() -> None:
    assert all(getattr(abi, entry.name) == opcode for opcode, entry in OPCODES.items())
    assert set(OPCODES) == set(range(1, 54)) - {7, 19}
