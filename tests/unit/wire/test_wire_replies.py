"""Encoding, held to bytes written out by hand, and taken apart again by the layouts that `test_wire_abi` checks."""

from __future__ import annotations

import errno
import os
import stat
import struct
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.fuse.wire import abi, notify, replies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

little_endian = pytest.mark.skipif(sys.byteorder == "big", reason="the bytes are those of a little-endian machine")


def status(**changes: int) -> os.stat_result:
    """Return what stat(2) might say of a file, times in nanoseconds."""
    given = {
        "st_mode": 0o100644,
        "st_size": 4097,
        "st_blocks": 16,
        "st_atime_ns": 1_000_000_001,
        "st_mtime_ns": 2_000_000_002,
        "st_ctime_ns": 3_000_000_003,
        "st_rdev": 0,
    } | changes
    seconds = (given[f"st_{which}_ns"] // 10**9 for which in ("atime", "mtime", "ctime"))
    mode, size = given.pop("st_mode"), given.pop("st_size")
    return os.stat_result((mode, 0, 0, 0, 0, 0, size, *seconds), given)


def fields(layout: struct.Struct, payload: bytes, offset: int = 0) -> dict[str, int]:
    return dict(zip(abi.FIELDS[layout], layout.unpack_from(payload, offset), strict=True))


def of_attributes(**changes: int) -> dict[str, int]:
    return fields(abi.ATTR, replies.attributes(status(**changes), ino=5, nlink=2, uid=1000, gid=100))


@little_endian
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (replies.error(12, errno.ENOENT), "10000000 feffffff 0c00000000000000"),
        (replies.ok(12), "10000000 00000000 0c00000000000000"),
        (replies.header(12, 4096), "10100000 00000000 0c00000000000000"),
        (replies.data(1 << 63, b"abc"), "13000000 00000000 0000000000000080 616263"),
    ],
)
def test_messages(message: bytes, expected: str) -> None:
    assert message == bytes.fromhex(expected)


@little_endian
@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (replies.opened(5, abi.FOPEN_PASSTHROUGH, 3), "0500000000000000 80000000 03000000"),
        (replies.opened(5, 0), "0500000000000000 00000000 00000000"),
        (replies.written(11), "0b000000 00000000"),
        (replies.copied(1 << 33), "0000000002000000"),
        (replies.xattr_size(7), "07000000 00000000"),
        (replies.lseek(4096), "0010000000000000"),
        (replies.poll(5), "05000000 00000000"),
        (replies.lock(0, 9, 1, 77), "0000000000000000 0900000000000000 01000000 4d000000"),
        (replies.ioctl(-1, 0, b"xy"), "ffffffff 00000000 00000000 00000000 7879"),
        (replies.negative_entry(10), "0000000000000000" * 2 + "0a00000000000000" + "00" * 104),
    ],
)
def test_payloads(payload: bytes, expected: str) -> None:
    assert payload == bytes.fromhex(expected)


def test_attributes() -> None:
    assert of_attributes() == {
        "ino": 5, "size": 4097, "blocks": 16, "atime": 1, "mtime": 2, "ctime": 3, "atimensec": 1, "mtimensec": 2,
        "ctimensec": 3, "mode": 0o100644, "nlink": 2, "uid": 1000, "gid": 100, "rdev": 0, "blksize": 4096, "flags": 0,
    }  # fmt: skip


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 999_999_999))
def test_times_of_any_century(seconds: int, nanoseconds: int) -> None:
    attributes = of_attributes(st_mtime_ns=seconds * 10**9 + nanoseconds)
    assert (attributes["mtime"], attributes["mtimensec"]) == (seconds, nanoseconds)


@pytest.mark.parametrize(
    ("device", "encoded"),
    [((0, 0), 0), ((1, 3), 0x103), ((8, 255), 0x8FF), ((300, 70000), 0x11112C70), ((4095, 0xFFFFF), 0xFFFFFFFF)],
)
def test_device_numbers(device: tuple[int, int], encoded: int) -> None:
    assert of_attributes(st_rdev=os.makedev(*device))["rdev"] == encoded
    assert replies.decode_dev(encoded) == device


@given(st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
def test_device_numbers_round_trip(major: int, minor: int) -> None:
    assert replies.decode_dev(replies.encode_dev(os.makedev(major, minor))) == (major, minor)


def test_attributes_of_a_real_file() -> None:
    st_real = os.stat(os.devnull)
    attributes = fields(abi.ATTR, replies.attributes(st_real, st_real.st_ino, 1, 0, 0))
    assert attributes["mode"] == st_real.st_mode
    assert attributes["rdev"] == 0x103
    assert attributes["mtime"] * 10**9 + attributes["mtimensec"] == st_real.st_mtime_ns


ATTRIBUTES = replies.attributes(status(), ino=5, nlink=2, uid=1000, gid=100)
ENTRY = replies.entry(5, 9, 10, 20, ATTRIBUTES)


def test_entry() -> None:
    assert abi.ENTRY_OUT.unpack_from(ENTRY) == (5, 9, 10, 20, 0, 0)
    assert ENTRY[abi.ENTRY_OUT.size :] == ATTRIBUTES
    assert len(ENTRY) == len(replies.negative_entry(1)) == 128


def test_entry_that_is_kept_for_good() -> None:
    assert abi.ENTRY_OUT.unpack_from(replies.entry(5, 0, 1 << 31, 1 << 31, ATTRIBUTES))[2:4] == (1 << 31, 1 << 31)


def test_attr() -> None:
    payload = replies.attr(20, ATTRIBUTES)
    assert abi.ATTR_OUT.unpack_from(payload) == (20, 0)
    assert payload[16:] == ATTRIBUTES
    assert len(payload) == 104


def test_created() -> None:
    assert replies.created(ENTRY, replies.opened(1, 2, 3)) == ENTRY + abi.OPEN_OUT.pack(1, 2, 3)


def test_statfs() -> None:
    result = os.statvfs("/")
    values = fields(abi.KSTATFS, replies.statfs(result))
    assert values["bsize"] == result.f_bsize
    assert values["namelen"] == result.f_namemax
    assert [values[name] for name in ("blocks", "bfree", "bavail", "files", "ffree", "frsize")] == [
        result.f_blocks, result.f_bfree, result.f_bavail, result.f_files, result.f_ffree, result.f_frsize,
    ]  # fmt: skip


def test_statx_without_a_time_of_birth() -> None:
    payload = replies.statx(20, status(st_rdev=os.makedev(300, 70000)), ino=5, nlink=2, uid=1000, gid=100)
    assert abi.STATX_OUT.unpack_from(payload) == (20, 0, 0)
    values = fields(abi.STATX_STAT, payload, abi.STATX_OUT.size)
    assert len(payload) == 288
    assert values["mask"] == replies.STATX_BASIC_STATS
    assert (values["rdev_major"], values["rdev_minor"]) == (300, 70000)
    assert (values["ino"], values["nlink"], values["uid"], values["gid"]) == (5, 2, 1000, 100)
    assert (values["mode"], values["size"], values["blocks"], values["blksize"]) == (0o100644, 4097, 16, 4096)
    assert [values[f"{name}.tv_sec"] for name in ("atime", "mtime", "ctime", "btime")] == [1, 2, 3, 0]
    assert [values[f"{name}.tv_nsec"] for name in ("atime", "mtime", "ctime", "btime")] == [1, 2, 3, 0]


def test_statx_with_a_time_of_birth() -> None:
    payload = replies.statx(20, status(), ino=5, nlink=2, uid=0, gid=0, btime_ns=-1_500_000_000)
    values = fields(abi.STATX_STAT, payload, abi.STATX_OUT.size)
    assert values["mask"] == replies.STATX_BASIC_STATS | replies.STATX_BTIME
    assert (values["btime.tv_sec"], values["btime.tv_nsec"]) == (-2, 500_000_000)


class Dirent(NamedTuple):
    ino: int
    offset: int
    dtype: int
    name: bytes


def parse(payload: bytes, before: int = 0) -> Iterator[tuple[bytes, Dirent]]:
    """Take a listing apart as parse_dirfile and parse_dirplusfile in fs/fuse/readdir.c do."""
    while payload:
        ino, offset, length, dtype = abi.DIRENT.unpack_from(payload, before)
        start = before + abi.DIRENT.size
        yield payload[:before], Dirent(ino, offset, dtype, payload[start : start + length])
        payload = payload[start + (length + 7) // 8 * 8 :]


dirents = st.lists(
    st.builds(
        Dirent,
        st.integers(0, 2**64 - 1),
        st.integers(0, 2**64 - 1),
        st.sampled_from([stat.S_IFMT(mode) >> 12 for mode in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)]),
        st.binary(min_size=1, max_size=255),
    ),
    max_size=20,
)


@pytest.mark.parametrize(("plus", "blank"), [(False, 0), (True, 128)])
@given(dirents, st.integers(0, 6000), st.integers(0, 2**40))
def test_listing(plus: bool, blank: int, given_dirents: list[Dirent], limit: int, offset: int) -> None:
    buffer = replies.DirentBuffer(limit, plus=plus)
    inos, _offsets, dtypes, names = zip(*given_dirents, strict=True) if given_dirents else ((), (), (), ())
    fit = buffer.extend(names, dtypes, inos, offset)
    told = list(parse(buffer.payload, blank))
    assert len(buffer.payload) <= limit
    assert fit is (len(told) == len(given_dirents))
    expected = [(ino, offset + row, dtype, name) for row, (ino, _, dtype, name) in enumerate(given_dirents)]
    assert told == [(bytes(blank), dirent) for dirent in expected[: len(told)]]
    assert fit or len(buffer.payload) + size(given_dirents[len(told)], blank) > limit
    while buffer.add(b"", 1, 1, 8, b"n"):
        pass
    assert len(buffer.payload) <= limit


def size(dirent: Dirent, blank: int) -> int:
    return blank + (24 + len(dirent[3]) + 7) // 8 * 8


@given(dirents, st.integers(0, 6000))
def test_listing_with_attributes(given_dirents: list[Dirent], limit: int) -> None:
    buffer = replies.DirentBuffer(limit, plus=True)
    fitting = taken(given_dirents, lambda dirent: buffer.add(ENTRY, *dirent))
    assert len(buffer.payload) <= limit
    assert list(parse(buffer.payload, 128)) == [(ENTRY, dirent) for dirent in given_dirents[:fitting]]


def taken(given_dirents: list[Dirent], add: Callable[[Dirent], bool]) -> int:
    """Add until one does not fit, as READDIR does, and return how many did."""
    for count, dirent in enumerate(given_dirents):
        if not add(dirent):
            return count
    return len(given_dirents)


@pytest.mark.parametrize("length", range(1, 10))
def test_an_entry_fits_to_the_byte(length: int) -> None:
    needed, name = (24 + length + 7) // 8 * 8, b"n" * length
    for plus, blank in ((False, 0), (True, 128)):
        assert replies.DirentBuffer(needed + blank, plus=plus).extend([name], [8], [1], 1)
        assert not replies.DirentBuffer(needed + blank - 1, plus=plus).extend([name], [8], [1], 1)
    assert replies.DirentBuffer(needed + 128, plus=True).add(ENTRY, 1, 1, 8, name)
    assert not replies.DirentBuffer(needed + 127, plus=True).add(ENTRY, 1, 1, 8, name)


@little_endian
@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            notify.inval_inode(3, -1),
            "28000000 02000000 0000000000000000 0300000000000000 ffffffffffffffff 0000000000000000",
        ),
        (
            notify.inval_inode(3, 4096, 512),
            "28000000 02000000 0000000000000000 0300000000000000 0010000000000000 0002000000000000",
        ),
        (
            notify.inval_entry(1, b"abc", abi.EXPIRE_ONLY),
            "24000000 03000000 0000000000000000 0100000000000000 03000000 01000000 61626300",
        ),
        (
            notify.delete(1, 3, b"abc"),
            "2c000000 06000000 0000000000000000 0100000000000000 0300000000000000 03000000 00000000 61626300",
        ),
        (
            notify.store(3, 4096, 3) + b"abc",
            "2b000000 04000000 0000000000000000 0300000000000000 0010000000000000 03000000 00000000 616263",
        ),
    ],
)
def test_notifications(message: bytes, expected: str) -> None:
    assert message == bytes.fromhex(expected)
