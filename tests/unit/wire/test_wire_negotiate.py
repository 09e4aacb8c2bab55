"""INIT: only what both sides want is agreed upon, and the answer says so in the words of the kernel's version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.fuse.wire import abi
from unionfs.fuse.wire.negotiate import Offer, Retry, Settings, UnsupportedVersion, init_reply, negotiate
from unionfs.fuse.wire.requests import TruncatedBody, WireError

LINUX_6_18 = Offer(7, 45, 131072, 0x73FFFFFB | 0x5FD << 32)
LINUX_5_4 = Offer(7, 31, 131072, 0x03FFFFFB)
MIB = 1 << 20


def agreed(offer: Offer, wanted: int, max_write: int = MIB, max_stack_depth: int = 1) -> Settings:
    settings = negotiate(offer, wanted, max_write, max_stack_depth)
    assert isinstance(settings, Settings)
    return settings


def test_offer_joins_both_words_of_flags() -> None:
    assert Offer.from_args((7, 45, 131072, 0x73FFFFFB, 0x5FD)) == LINUX_6_18


def test_offer_of_an_old_kernel() -> None:
    assert Offer.from_args((7, 31, 131072, 0x03FFFFFB)) == LINUX_5_4


def test_second_word_of_flags_counts_only_where_it_is_promised() -> None:
    assert Offer.from_args((7, 36, 0, abi.INIT_ASYNC_READ, 0x20)).flags == abi.INIT_ASYNC_READ


def test_promised_flags_are_missing() -> None:
    with pytest.raises(TruncatedBody):
        Offer.from_args((7, 36, 0, abi.INIT_INIT_EXT))


@pytest.mark.parametrize("version", [(6, 99), (7, 0), (7, 22)])
def test_too_old(version: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedVersion, match=f"{version[0]}.{version[1]}") as caught:
        negotiate(Offer(*version, 0, 0), 0, MIB)
    assert isinstance(caught.value, WireError)


def test_newer_major_version_is_asked_to_try_again_with_ours() -> None:
    retry = negotiate(Offer(8, 0, 0, 0), 0, MIB)
    assert retry == Retry(45)
    message = init_reply(2, retry)
    assert abi.OUT_HEADER.unpack_from(message) == (80, 0, 2)
    assert abi.INIT_OUT.unpack_from(message, 16) == (7, 45, *[0] * 11)


@pytest.mark.parametrize(("offered", "agreed_on"), [(23, 23), (31, 31), (45, 45), (60, 45)])
def test_the_smaller_minor_version_is_spoken(offered: int, agreed_on: int) -> None:
    assert agreed(Offer(7, offered, 0, 0), 0).minor == agreed_on


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(1, 1 << 30))
def test_nothing_is_set_that_was_not_offered(offered: int, wanted: int, max_write: int) -> None:
    settings = agreed(Offer(7, 45, 4096, offered), wanted, max_write)
    implied = abi.INIT_INIT_EXT | abi.INIT_MAX_PAGES | abi.INIT_BIG_WRITES
    assert settings.flags & ~offered == 0
    assert settings.flags & ~(wanted | implied) == 0
    assert settings.max_write <= max(max_write, 4096)
    assert len(init_reply(1, settings)) == 16 + 64


def test_properties_follow_the_flags() -> None:
    nothing = agreed(LINUX_6_18, 0)
    everything = agreed(LINUX_6_18, LINUX_6_18.flags & ~abi.INIT_WRITEBACK_CACHE)
    for name in ("passthrough", "no_open", "no_opendir", "readdirplus", "setxattr_ext"):
        assert not getattr(nothing, name)
        assert getattr(everything, name)
    assert agreed(LINUX_6_18, abi.INIT_WRITEBACK_CACHE).writeback
    assert not everything.writeback


def test_passthrough_needs_a_stack_depth() -> None:
    assert agreed(LINUX_6_18, abi.INIT_PASSTHROUGH, max_stack_depth=2).max_stack_depth == 2
    assert agreed(LINUX_6_18, 0, max_stack_depth=2).max_stack_depth == 0
    assert agreed(LINUX_5_4, abi.INIT_PASSTHROUGH, max_stack_depth=2).max_stack_depth == 0


def test_passthrough_gives_way_to_writeback() -> None:
    settings = agreed(LINUX_6_18, abi.INIT_PASSTHROUGH | abi.INIT_WRITEBACK_CACHE)
    assert (settings.passthrough, settings.writeback, settings.max_stack_depth) == (False, True, 0)


def test_max_write_becomes_pages() -> None:
    assert agreed(LINUX_6_18, 0, MIB).max_pages == 256
    assert agreed(LINUX_6_18, 0, MIB + 1).max_pages == 257
    large = negotiate(LINUX_6_18, 0, MIB, page_bytes=65536)
    assert isinstance(large, Settings)
    assert large.max_pages == 16


def test_max_write_without_max_pages_is_what_32_pages_hold() -> None:
    settings = agreed(Offer(7, 27, 0, abi.INIT_BIG_WRITES), 0, MIB)
    assert settings.max_write == 32 * 4096
    assert settings.read_buffer_bytes >= settings.max_write + 80


def test_buffer_holds_the_largest_xattr() -> None:
    assert agreed(LINUX_6_18, 0, 1).read_buffer_bytes >= 65536 + 40 + 16 + 256


def test_reply_byte_by_byte() -> None:
    settings = agreed(LINUX_6_18, abi.INIT_DO_READDIRPLUS | abi.INIT_PASSTHROUGH)
    assert init_reply(2, settings) == bytes.fromhex(
        "50000000 00000000 0200000000000000"  # len 80, no error, unique 2
        "07000000 2d000000 00000200"  # 7.45, max_readahead 128 KiB
        "20204040"  # BIG_WRITES, DO_READDIRPLUS, MAX_PAGES, INIT_EXT
        "4000 3000"  # max_background 64, congestion_threshold 48
        "00001000 01000000"  # max_write 1 MiB, time_gran 1 ns
        "0001 0000"  # max_pages 256, map_alignment
        "20000000 01000000"  # flags2: PASSTHROUGH; max_stack_depth 1
        "0000 00000000000000000000000000000000000000000000"  # request_timeout, unused[11]
    )
