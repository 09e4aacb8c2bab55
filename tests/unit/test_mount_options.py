"""Mount option words, the mount table's format and where a mount point really is: all without mounting anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs import errors
from unionfs.fuse import mounting
from unionfs.fuse.mounting import MountOptions, parse_options
from unionfs.syscalls import mounts


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["ro"], mounts.MS_RDONLY),
        (["ro", "rw"], 0),
        (["rw", "ro"], mounts.MS_RDONLY),
        (["nosuid", "nodev", "noexec"], mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC),
        (["nosuid", "suid", "dev", "exec"], 0),
        (["noatime", "nodiratime"], mounts.MS_NOATIME | mounts.MS_NODIRATIME),
        (["noatime", "atime", "nodiratime", "diratime"], 0),
        (["relatime", "sync"], mounts.MS_RELATIME | mounts.MS_SYNCHRONOUS),
        (["sync", "async"], 0),
    ],
)
def test_generic_words_become_flags_and_the_last_one_wins(words: list[str], flags: int) -> None:
    options, unknown = parse_options(words)
    assert (options.flags, unknown) == (flags, [])


def test_named_options() -> None:
    named = ["fsname=a b", "subtype=x", "max_read=4096", "blksize=512", 'context="u:r:t:s0:c1,c2"']
    words = [*named, "blkdev", "allow_other"]
    options, unknown = parse_options(words)
    assert unknown == []
    assert options == MountOptions(0, "a b", "x", True, True, 4096, 512, ('context="u:r:t:s0:c1,c2"',))


def test_unknown_words_come_back_in_order() -> None:
    known = ["defaults", "x-systemd.automount", "_netdev", "default_permissions"]
    unknown = ["metacopy=on", "allow_root", "fsname", "nonsense"]
    assert parse_options([unknown[0], *known, *unknown[1:]]) == (MountOptions(), unknown)


@pytest.mark.parametrize("word", ["max_read=", "max_read=-1", "blksize=4k"])
def test_a_number_that_is_none_is_a_usage_error(word: str) -> None:
    with pytest.raises(errors.UsageError, match=word):
        parse_options([word])


def test_what_the_helper_is_told() -> None:
    options, _ = parse_options(["ro", "noatime", "allow_other", "blkdev", "fsname=a,b\\c"])
    assert mounting.helper_options(options) == (
        "ro,noatime,fsname=a\\,b\\\\c,subtype=unionmount,blkdev,default_permissions,allow_other"
    )


@given(st.binary(max_size=40).filter(lambda name: b"\0" not in name))
def test_unescape_inverts_what_the_kernel_does(name: bytes) -> None:
    escaped = b"".join(b"\\%03o" % byte if byte in b" \t\n\\#" else bytes([byte]) for byte in name)
    assert mounting.unescape(escaped) == name


def test_a_line_of_mountinfo() -> None:
    table = (
        rb"36 35 98:0 /mnt1 /mnt\040two rw,noatime master:1 shared:7 - ext3 /dev/root\134x rw,errors=continue"
        b"\n"
        rb"37 36 0:50 / /a rw - fuse.unionmount unionmount rw,user_id=0"
        b"\n"
    )
    first, second = mounting.mountinfo(table)
    assert first == mounting.Mount(
        36, 35, b"98:0", b"/mnt1", b"/mnt two", b"rw,noatime", b"ext3", b"/dev/root\\x", b"rw,errors=continue"
    )
    assert (second.mountpoint, second.kind) == (b"/a", b"fuse.unionmount")


def test_the_machines_own_table_has_a_root() -> None:
    assert b"/" in {mount.mountpoint for mount in mounting.mountinfo()}


def test_resolving_a_mountpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path.resolve() / "real"
    (real / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/deep")
    (tmp_path / "parent").symlink_to("real")
    monkeypatch.chdir(real)
    expected = os.fsencode(real / "deep")
    for spelling in ("deep", "deep/", "./deep", "deep/.", "deep/../deep", tmp_path / "link", tmp_path / "parent/deep"):
        assert mounting.resolve_mountpoint(spelling) == expected
    assert mounting.resolve_mountpoint(b"/") == mounting.resolve_mountpoint(b"//") == b"/"


def test_check_mountpoint_says_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.MountpointMissing, match="no such directory"):
        mounting.check_mountpoint(tmp_path / "missing")
    with pytest.raises(errors.MountpointMissing, match="'': no such directory"):
        mounting.check_mountpoint("")
    with pytest.raises(errors.MountpointNotDirectory):
        mounting.check_mountpoint(tmp_path / "file")
    with pytest.raises(errors.MountError):
        mounting.check_mountpoint(tmp_path / "file" / "below")
    assert mounting.check_mountpoint(tmp_path) == os.fsencode(tmp_path.resolve())
    assert not mounting.is_mounted(tmp_path)


def test_the_mount_options_must_fit_into_a_page(tmp_path: Path) -> None:
    options = MountOptions(security=("context=" + "x" * 5000,))
    with pytest.raises(errors.MountError, match="longer than a page"):
        mounting.mount_fuse(0, os.fsencode(tmp_path), options, user_id=0, group_id=0)
