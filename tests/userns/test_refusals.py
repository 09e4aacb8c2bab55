"""The filter, run by a small interpreter of BPF: exactly what the kernel would refuse is handed over."""

from __future__ import annotations

import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.idmap import Range
from unionfs.sandbox import refusals
from unionfs.sandbox.refusals import KEEP, NODES, OWNERS, program

ALLOW, ASK, ARCHITECTURE = 1, 2, 77
NUMBERS = {name: 10 + index for index, name in enumerate([*OWNERS, *NODES])}
UIDS, GIDS = (Range(0, 0, 1), Range(100, 100, 50)), (Range(5, 5, 10),)
PROGRAM = program(ARCHITECTURE, NUMBERS, UIDS, GIDS, allow=ALLOW, ask=ASK)


def verdict(number: int, arguments: list[int], architecture: int = ARCHITECTURE) -> int:
    """Run the program over struct seccomp_data, as net/core/filter.c does."""
    data = struct.pack("<iIQ6Q", number, architecture, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("=HBBI", PROGRAM))
    at = accumulator = 0
    while True:
        code, true, false, operand = steps[at]
        at += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, operand)
        elif code == 0x54:
            accumulator &= operand
        elif code == 0x06:
            return int(operand)
        else:
            holds = {0x15: accumulator == operand, 0x35: accumulator >= operand}[code]
            at += true if holds else false


def exists(number: int, ids: tuple[Range, ...]) -> bool:
    return number == KEEP or any(range_.view <= number < range_.view + range_.size for range_ in ids)


IDS = st.one_of(st.integers(0, 200), st.just(KEEP), st.integers(0, KEEP))


@given(st.sampled_from(sorted(OWNERS)), IDS, IDS, st.integers(0, KEEP))
def test_owners_who_do_not_exist_are_handed_over(name: str, uid: int, gid: int, high: int) -> None:
    arguments = [0] * 6
    arguments[OWNERS[name][0]], arguments[OWNERS[name][1]] = uid | high << 32, gid
    expected = ALLOW if exists(uid, UIDS) and exists(gid, GIDS) else ASK
    assert verdict(NUMBERS[name], arguments) == expected


KINDS = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFDIR, 0)


@given(st.sampled_from(sorted(NODES)), st.sampled_from(KINDS), st.integers(0, 0o7777), st.sampled_from([0, 259]))
def test_devices_are_handed_over(name: str, kind: int, mode: int, device: int) -> None:
    arguments = [0] * 6
    arguments[NODES[name][0]], arguments[NODES[name][1]] = kind | mode, device
    asks = kind == stat.S_IFBLK or (kind == stat.S_IFCHR and device)
    assert verdict(NUMBERS[name], arguments) == (ASK if asks else ALLOW)


@pytest.mark.parametrize(
    ("number", "architecture"), [(0, ARCHITECTURE), (10, ARCHITECTURE + 1), (1 << 30 | 10, ARCHITECTURE)]
)
def test_everything_else_passes(number: int, architecture: int) -> None:
    assert verdict(number, [0, 7, 7], architecture) == ALLOW


def test_jumps_fit_their_byte() -> None:
    """Ten lines of a map, more than newuidmap(1) is ever asked for, still make a program."""
    many = tuple(Range(100 * n, 100 * n, 10) for n in range(10))
    numbers = dict.fromkeys([*OWNERS, *NODES], 1)
    assert refusals.program(1, numbers, many, many, allow=ALLOW, ask=ASK)
