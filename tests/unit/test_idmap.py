"""Owners as values: ranges both ways, remembered owners both ways, ACLs, and what is no such thing."""

from __future__ import annotations

import os
import stat
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs import idmap
from unionfs.idmap import IdMap, Override, Ownership, Range

IDS = st.integers(0, 2**32 - 2)


def test_podman_writes_a_colon_first() -> None:
    expected = (Range(0, 1000, 1), Range(1, 100000, 65536))
    assert idmap.parse_ranges(":0:1000:1:1:100000:65536") == expected
    assert idmap.parse_ranges("0:1000:1:1:100000:65536") == expected


@pytest.mark.parametrize("text", ["", ":", "0", "0:1", "0:1:2:3", "a:b:c", "-1:0:1", "0:0:4294967296", "0 1 2"])
def test_what_is_no_list_of_ranges(text: str) -> None:
    with pytest.raises(ValueError, match="no ranges of ids"):
        idmap.parse_ranges(text)


def test_a_namespace_has_the_ids_inside() -> None:
    text = "         0       1000          1\n         1     100000      65536\n"
    assert idmap.parse_namespace(text) == (Range(0, 0, 1), Range(1, 1, 65536))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5), st.integers(0, 10_000))
def test_to_disk_is_the_inverse_of_to_view(sizes: list[int], probe: int) -> None:
    ranges, disk, view = [], 0, 500_000
    for size in sizes:
        ranges.append(Range(disk, view, size))
        disk, view = disk + 2 * size, view - 3000
    ids = IdMap(tuple(ranges))
    shown = ids.find(probe)
    if shown is None:
        assert ids.to_view(probe) == idmap.OVERFLOW_ID
        assert not any(range_.disk <= probe < range_.disk + range_.size for range_ in ranges)
    else:
        assert ids.to_view(probe) == shown
        assert ids.to_disk(shown) == probe


@given(IDS)
def test_no_map_changes_nothing(number: int) -> None:
    assert IdMap().to_view(number) == IdMap().to_disk(number) == number


@given(IDS)
def test_a_squashed_id_is_shown_for_all_and_stored_as_asked(number: int) -> None:
    assert IdMap(squash=7).to_view(number) == 7
    assert IdMap(squash=7).to_disk(number) == number


def test_keep_is_no_id() -> None:
    assert IdMap((Range(0, 1000, 1),)).to_disk(idmap.KEEP) == idmap.KEEP


@given(st.integers(0, 100), st.integers(1, 100), st.integers(0, 250), st.integers(0, 250))
def test_without_takes_one_id_out(first: int, size: int, hole: int, probe: int) -> None:
    whole = IdMap((Range(first, first + 1000, size),))
    rest = whole.without(hole)
    assert rest.find(probe) == (None if probe == hole else whole.find(probe))


def test_the_first_namespace_needs_no_map() -> None:
    everything = "         0          0 4294967295\n"
    assert idmap.in_namespace(everything, everything) is None


def test_who_does_not_exist_is_shown_as_root() -> None:
    one = idmap.in_namespace("0 1000 1\n", "0 1000 1\n")
    assert one is not None
    assert (one.uids.to_view(0), one.uids.to_view(idmap.OVERFLOW_ID), one.gids.to_view(5)) == (0, 0, 0)
    assert one.uids.to_disk(5) is None
    assert (one.attribute, one.always, one.squashes) == (idmap.CONTAINERS_OVERRIDE, False, False)
    other = idmap.in_namespace("1000 1000 1\n", "1000 1000 1\n")
    assert other is not None
    assert other.uids.to_view(idmap.OVERFLOW_ID) == 1000


def test_a_plain_ownership_does_nothing() -> None:
    assert (Ownership().attribute, Ownership().squashes) == (None, False)
    assert Ownership(gids=IdMap(squash=0)).squashes


# -- remembered owners -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "text"),
    [
        (Override(0, 0, stat.S_IFREG | 0o644), b"0:0:0644:file"),
        (Override(5, 60000, stat.S_IFDIR | 0o2755), b"5:60000:2755:dir"),
        (Override(1, 2, stat.S_IFLNK | 0o777), b"1:2:0777:symlink"),
        (Override(1, 2, stat.S_IFIFO), b"1:2:0000:pipe"),
        (Override(1, 2, stat.S_IFSOCK | 0o7777), b"1:2:7777:socket"),
        (Override(0, 6, stat.S_IFBLK | 0o660, os.makedev(8, 1)), b"0:6:0660:block-8-1"),
        (Override(0, 0, stat.S_IFCHR | 0o666, os.makedev(136, 300)), b"0:0:0666:char-136-300"),
        (Override(3, 4, 0o755), b"3:4:0755"),
    ],
)
def test_the_format_of_containers_storage(override: Override, text: bytes) -> None:
    assert override.encode() == text
    assert idmap.decode_override(text) == override


def test_other_writers_leave_leading_zeros_out_or_add_one() -> None:
    assert idmap.decode_override(b"1:2:755") == Override(1, 2, 0o755)
    assert idmap.decode_override(b"1:2:04755:file") == Override(1, 2, stat.S_IFREG | 0o4755)


def test_fuse_overlayfs_writes_the_type_twice() -> None:
    assert idmap.decode_override(b"1:2:104755") == Override(1, 2, 0o4755)
    assert idmap.decode_override(b"1:2:40755:dir") == Override(1, 2, stat.S_IFDIR | 0o755)


@given(st.binary(max_size=40))
def test_anything_else_is_refused_and_never_raises(value: bytes) -> None:
    found = idmap.decode_override(value)
    if found is not None:
        assert idmap.decode_override(found.encode()) == found


@pytest.mark.parametrize(
    "value",
    [b"", b"1:2", b"1:2:9", b"-1:2:755", b"1:2:755:", b"1:2:755:door", b"1:2:755:char", b"1:2:755:char-1",
     b"1:2:200000", b"1:2:755:char-1-2-3", b"1:2:755:char--1-2", b"1:2:755:file-1", b"1:2:755:file:x",
     b"4294967295:0:755", b"a:b:c"],
)  # fmt: skip
def test_what_is_no_remembered_owner(value: bytes) -> None:
    assert idmap.decode_override(value) is None


# -- requests --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-1, 2**32), min_size=1, max_size=5), st.binary(max_size=20))
def test_requests_come_through_whatever_the_name(numbers: list[int], name: bytes) -> None:
    assert idmap.decode_request(idmap.encode_request(*numbers, name=name), len(numbers)) == (numbers, name)


@pytest.mark.parametrize("value", [b"", b"1", b"x:2:"])
def test_what_is_no_request(value: bytes) -> None:
    with pytest.raises(ValueError, match="no request"):
        idmap.decode_request(value, 2)


# -- attributes ------------------------------------------------------------------------------------------------------


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NO_ID = 2**32 - 1
OWNER, USER, GROUP, NAMED, MASK, OTHER = 1, 2, 4, 8, 16, 32


def test_an_acl_s_users_and_groups_are_mapped_and_strangers_left_out() -> None:
    uids, gids = IdMap((Range(0, 1000, 10),)), IdMap((Range(0, 2000, 10),))
    before = acl((OWNER, 6, NO_ID), (USER, 7, 3), (USER, 7, 50), (GROUP, 4, NO_ID), (NAMED, 5, 4), (NAMED, 5, NO_ID),
                 (MASK, 7, NO_ID), (OTHER, 0, NO_ID))  # fmt: skip
    after = acl((OWNER, 6, NO_ID), (USER, 7, 1003), (GROUP, 4, NO_ID), (NAMED, 5, 2004), (MASK, 7, NO_ID),
                (OTHER, 0, NO_ID))  # fmt: skip
    assert idmap.map_acl(before, uids.find, gids.find) == after
    assert idmap.map_acl(after, uids.to_disk, gids.to_disk) == acl(
        (OWNER, 6, NO_ID), (USER, 7, 3), (GROUP, 4, NO_ID), (NAMED, 5, 4), (MASK, 7, NO_ID), (OTHER, 0, NO_ID)
    )


@pytest.mark.parametrize(
    ("entries", "group"),
    [
        ([(OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 0, NO_ID)], 4),
        ([(OWNER, 6, NO_ID), (USER, 7, 3), (GROUP, 0, NO_ID), (MASK, 6, NO_ID), (OTHER, 0, NO_ID)], 0),
        ([(OWNER, 6, NO_ID), (GROUP, 7, NO_ID), (NAMED, 7, 4), (MASK, 5, NO_ID), (OTHER, 7, NO_ID)], 5),
    ],
)
def test_what_the_owning_group_may_do(entries: list[tuple[int, int, int]], group: int) -> None:
    assert idmap.group_of_acl(acl(*entries)) == group


def test_the_mode_and_an_acl_stand_for_one_another() -> None:
    """The bits of the group are those of the mask where there is one."""
    plain = [(OWNER, 6, NO_ID), (GROUP, 4, NO_ID), (OTHER, 1, NO_ID)]
    named = [(OWNER, 6, NO_ID), (USER, 7, 3), (GROUP, 4, NO_ID), (MASK, 5, NO_ID), (OTHER, 1, NO_ID)]
    assert (idmap.mode_of_acl(acl(*plain)), idmap.mode_of_acl(acl(*named))) == (0o641, 0o651)
    assert idmap.acl_with_mode(acl(*plain), 0o4570) == acl((OWNER, 5, NO_ID), (GROUP, 7, NO_ID), (OTHER, 0, NO_ID))
    assert idmap.acl_with_mode(acl(*named), 0o570) == acl(
        (OWNER, 5, NO_ID), (USER, 7, 3), (GROUP, 4, NO_ID), (MASK, 7, NO_ID), (OTHER, 0, NO_ID)
    )
    assert idmap.mode_of_acl(acl()) is None


@given(st.binary(max_size=60))
def test_what_is_no_acl_stays(value: bytes) -> None:
    if value[:4] != b"\2\0\0\0" or (len(value) - 4) % 8:
        assert idmap.map_acl(value, lambda _id: 0, lambda _id: 0) == value
        assert idmap.acl_with_mode(value, 0o777) == value
        assert idmap.mode_of_acl(value) is None


@given(st.sampled_from([b"security.capability", b"security.x", b"user.x", b"trusted.x", b"system.posix_acl_access"]))
def test_to_show_an_attribute_is_the_inverse_of_storing_it(name: bytes) -> None:
    assert idmap.show_attribute(idmap.store_attribute(name)) == name


@pytest.mark.parametrize("name", idmap.OVERRIDES)
def test_what_is_remembered_is_not_shown(name: bytes) -> None:
    assert idmap.show_attribute(name) is None
