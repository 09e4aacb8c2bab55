"""The dialects as values: escaping is a law, markers are recognised in every dialect, handles read back as written."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs import ondisk

PREFIXES = (ondisk.TRUSTED_PREFIX, ondisk.USER_PREFIX)
MARKERS = (
    ondisk.OPAQUE,
    ondisk.REDIRECT,
    ondisk.METACOPY,
    ondisk.ORIGIN,
    ondisk.IMPURE,
    ondisk.WHITEOUT,
    ondisk.NLINK,
)
#: Names of attributes near those of the format, and quite other ones.
attributes = st.one_of(
    st.binary(min_size=1, max_size=40),
    st.builds(
        lambda parts: b"".join(parts),
        st.lists(
            st.sampled_from((*PREFIXES, ondisk.ESCAPE, *MARKERS, ondisk.FUSE_OVERLAYFS_PREFIX, b"user.", b"x", b".")),
            min_size=1,
            max_size=5,
        ),
    ),
)
names = st.binary(min_size=1, max_size=255).filter(lambda name: b"/" not in name and b"\0" not in name)


@given(attributes)
def test_escaping_is_undone_by_unescaping(name: bytes) -> None:
    """Whatever a program calls an attribute, it finds it under that name again."""
    stored = ondisk.escape_attribute(name)
    if not name.startswith(ondisk.FUSE_OVERLAYFS_PREFIX):  # refused, not stored
        assert ondisk.unescape_attribute(stored) == name


@given(attributes)
def test_unescaping_is_undone_by_escaping(stored: bytes) -> None:
    """What is shown under a name is what is reached under that name."""
    shown = ondisk.unescape_attribute(stored)
    if shown is not None:
        assert ondisk.escape_attribute(shown) == stored


@given(attributes)
def test_what_a_program_stores_is_never_private(name: bytes) -> None:
    """No program can write a mark of the format."""
    if not name.startswith(ondisk.FUSE_OVERLAYFS_PREFIX):
        stored = ondisk.escape_attribute(name)
        assert not ondisk.is_private_attribute(stored)
        assert stored not in ondisk.MARK_ATTRIBUTES


@given(attributes, attributes)
def test_two_names_are_stored_apart(one: bytes, other: bytes) -> None:
    """Escaping loses nothing."""
    assert (ondisk.escape_attribute(one) == ondisk.escape_attribute(other)) == (one == other)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("marker", MARKERS)
def test_every_mark_is_private_and_comes_nested(prefix: bytes, marker: bytes) -> None:
    """An overlay within a union has its own marks one level down, and one in that two (overlayfs.rst, "Nesting")."""
    assert ondisk.is_private_attribute(prefix + marker)
    assert ondisk.unescape_attribute(prefix + marker) is None
    assert ondisk.escape_attribute(prefix + marker) == prefix + b"overlay." + marker
    assert ondisk.unescape_attribute(prefix + b"overlay.overlay." + marker) == prefix + b"overlay." + marker


@given(names)
def test_a_marker_hides_the_name_it_was_made_for(name: bytes) -> None:
    """Except for names that belong to the dialect itself, which no file can have."""
    marker = ondisk.aufs_whiteout(name)
    assert ondisk.is_reserved_name(marker)
    if not ondisk.is_reserved_name(name):
        assert ondisk.hidden_by(marker) == name


@given(names)
def test_no_ordinary_name_is_a_marker(name: bytes) -> None:
    """Only names with the prefix hide anything."""
    assert ondisk.hidden_by(name) is None or ondisk.is_reserved_name(name)


@pytest.mark.parametrize("name", [b".wh.", ondisk.OPAQUE_MARKER, b".wh..wh.plnk", b".wh..wh.aufs", b".wh..wh.orph"])
def test_markers_of_aufs_itself_hide_nothing(name: bytes) -> None:
    """Such names are its own files; a bare ``.wh.`` is no name at all (OCI image specification, "Whiteouts")."""
    assert ondisk.is_reserved_name(name)
    assert ondisk.hidden_by(name) is None


@pytest.mark.parametrize(
    ("mode", "rdev", "expected"),
    [
        (stat.S_IFCHR, 0, True),
        (stat.S_IFCHR | 0o644, 0, True),
        (stat.S_IFCHR, os.makedev(1, 3), False),
        (stat.S_IFCHR, os.makedev(0, 1), False),
        (stat.S_IFBLK, 0, False),
        (stat.S_IFREG, 0, False),
        (stat.S_IFIFO, 0, False),
    ],
)
def test_only_character_device_zero_is_a_whiteout(mode: int, rdev: int, expected: bool) -> None:
    """Its mode does not matter."""
    assert ondisk.is_whiteout(mode, rdev) is expected


@pytest.mark.parametrize(
    ("attributes", "field", "value"),
    [
        ({}, "opaque", False),
        ({b"trusted.overlay.opaque": b"y"}, "opaque", True),
        ({b"user.overlay.opaque": b"y"}, "opaque", True),
        ({b"user.fuseoverlayfs.opaque": b"y"}, "opaque", True),
        ({b"trusted.overlay.opaque": b"n"}, "opaque", False),
        ({b"trusted.overlay.opaque": b""}, "opaque", False),
        ({b"trusted.overlay.opaque": b"x"}, "opaque", False),
        ({b"trusted.overlay.opaque": b"x"}, "xattr_whiteouts", True),
        ({b"user.overlay.opaque": b"x"}, "xattr_whiteouts", True),
        ({b"trusted.overlay.opaque": b"y", b"user.overlay.opaque": b"x"}, "xattr_whiteouts", True),
        ({b"trusted.overlay.opaque": b"x", b"user.overlay.opaque": b"y"}, "opaque", True),
        ({b"trusted.overlay.redirect": b"/a"}, "redirect", b"/a"),
        ({b"user.overlay.redirect": b"b"}, "redirect", b"b"),
        ({b"trusted.overlay.redirect": b"/a", b"user.overlay.redirect": b"/b"}, "redirect", b"/a"),
        ({b"trusted.overlay.redirect": b""}, "redirect", None),
        ({b"trusted.overlay.metacopy": b""}, "metacopy", True),
        ({b"user.overlay.metacopy": b"\0\4\0\1"}, "metacopy", True),
        ({}, "metacopy", False),
        ({b"trusted.overlay.origin": b"\0"}, "origin", b"\0"),
        ({b"trusted.overlay.origin": b""}, "origin", None),
        ({b"user.overlay.impure": b"y"}, "impure", True),
        ({b"user.overlay.impure": b"n"}, "impure", False),
        ({b"trusted.overlay.protattr": b"ai"}, "protection", ondisk.IMMUTABLE | ondisk.APPEND_ONLY),
        ({b"user.overlay.protattr": b"i"}, "protection", ondisk.IMMUTABLE),
    ],
)
def test_marks_are_read_in_every_dialect(attributes: dict[bytes, bytes], field: str, value: object) -> None:
    """``trusted`` goes before ``user``."""
    assert set(attributes) <= ondisk.MARK_ATTRIBUTES
    assert getattr(ondisk.read_marks(attributes), field) == value


@pytest.mark.parametrize(("flags", "value"), [(0x10, b"i"), (0x20, b"a"), (0xFFFF, b"ai")])
def test_protecting_flags_are_written_as_overlayfs_has_it(flags: int, value: bytes) -> None:
    """See ovl_set_protattr in fs/overlayfs/inode.c."""
    assert ondisk.encode_protection(flags) == value


def test_a_file_without_attributes_has_no_marks() -> None:
    """The common case."""
    assert ondisk.read_marks({}) == ondisk.NO_MARKS


@pytest.mark.parametrize("dialect", ondisk.DIALECTS, ids=lambda dialect: dialect.name)
def test_a_dialect_writes_what_every_reader_recognises(dialect: ondisk.Dialect) -> None:
    """An opaque mark is read back as one; a dialect without attributes has other means."""
    attribute = dialect.attribute(ondisk.OPAQUE)
    if attribute is None:
        assert not dialect.device_whiteouts
        assert not dialect.redirects
    else:
        assert ondisk.read_marks({attribute: b"y"}).opaque
        assert ondisk.is_private_attribute(attribute)


def test_dialects_are_tried_strongest_first() -> None:
    """The kernel follows redirects of ``trusted`` alone, and knows no AUFS markers."""
    assert [dialect.name for dialect in ondisk.DIALECTS] == ["overlay", "userxattr", "oci"]
    assert [dialect.redirects for dialect in ondisk.DIALECTS] == [True, False, False]


origins = st.builds(
    ondisk.Origin, st.binary(min_size=16, max_size=16), st.integers(0, 255), st.binary(min_size=1, max_size=128)
)


@given(origins)
def test_an_origin_reads_back_as_written(origin: ondisk.Origin) -> None:
    """Layout of struct ovl_fb in fs/overlayfs/overlayfs.h."""
    assert ondisk.decode_origin(origin.encode()) == origin


@given(origins, st.data())
def test_a_damaged_origin_is_none(origin: ondisk.Origin, data: st.DataObject) -> None:
    """Cut off at any byte, or made longer."""
    value = origin.encode()
    cut = data.draw(st.integers(0, len(value) - 1))
    assert ondisk.decode_origin(value[:cut]) is None
    assert ondisk.decode_origin(value + b"\0") is None


def test_an_origin_of_the_kernel() -> None:
    """As overlayfs wrote it on ext4: version 0, magic fb, 29 bytes, type 1, UUID, inode 12 and its generation."""
    value = bytes.fromhex("00fb1d0001" + "00112233445566778899aabbccddeeff" + "0c000000" + "4de0f1c2")
    origin = ondisk.decode_origin(value)
    assert origin is not None
    assert origin.uuid == bytes.fromhex("00112233445566778899aabbccddeeff")
    assert origin.ino == 12


@pytest.mark.parametrize(
    ("kind", "handle", "ino"),
    [
        (1, (7).to_bytes(4, "little") + bytes(4), 7),  # ext4: inode, generation
        (1, bytes(4) + (1 << 33).to_bytes(8, "little"), 1 << 33),  # tmpfs: generation, inode
        (0x81, (1 << 40).to_bytes(8, "little") + bytes(4), 1 << 40),  # XFS
        (0x4D, (257).to_bytes(8, "little") + bytes(12), 257),  # btrfs
        (0xF0, bytes(8), None),  # somebody else's
    ],
)
def test_inode_numbers_in_handles(kind: int, handle: bytes, ino: int | None) -> None:
    """Of the file systems whose handles are known."""
    assert ondisk.Origin(bytes(16), kind, handle).ino == ino
