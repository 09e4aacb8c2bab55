"""The tests' own tools: a comparison that sees nothing, or a mount that is not taken away, would prove nothing."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers, mounts, trees
from tests.support.probes import requires

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PAST_NS = 1_000_000_000_123_456_789


def make_tree(root: Path) -> None:
    """One of most kinds of file, with fixed times."""
    (root / "directory").mkdir(parents=True)
    (root / "file").write_bytes(b"data")
    (root / "other").write_bytes(b"data")
    (root / "name").hardlink_to(root / "file")
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo")
    for path in (*root.iterdir(), root):
        os.utime(path, ns=(PAST_NS, PAST_NS), follow_symlinks=False)


def write_same_size(root: Path) -> None:
    (root / "file").write_bytes(b"atad")
    os.utime(root / "file", ns=(PAST_NS, PAST_NS))


def break_link(root: Path) -> None:
    (root / "name").unlink()
    (root / "name").write_bytes(b"data")
    for path in (root / "name", root):
        os.utime(path, ns=(PAST_NS, PAST_NS))


def redirect_link(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("else")


CHANGES: dict[str, Callable[[Path], None]] = {
    "digest": write_same_size,
    "links": break_link,
    "mode": lambda root: (root / "file").chmod(0o600),
    "mtime_ns": lambda root: os.utime(root / "directory", ns=(PAST_NS, PAST_NS + 1)),
    "target": redirect_link,
    "only in the second": lambda root: (root / "directory" / "new").mkdir(),
    "only in the first": lambda root: (root / "directory").rmdir(),
}


def test_equal_trees_are_the_same(tmp_path: Path) -> None:
    """Two trees that were made in the same way differ in nothing that is compared."""
    make_tree(tmp_path / "one")
    make_tree(tmp_path / "two")
    trees.assert_same_tree(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("what", CHANGES)
def test_each_change_is_seen(tmp_path: Path, what: str) -> None:
    """Every kind of change fails the comparison and says what it is, and changes the digest of the layer."""
    make_tree(tmp_path / "one")
    make_tree(tmp_path / "two")
    before = trees.digest_of_layer(tmp_path / "two")
    CHANGES[what](tmp_path / "two")
    with pytest.raises(AssertionError, match=what):
        trees.assert_same_tree(tmp_path / "one", tmp_path / "two")
    assert trees.digest_of_layer(tmp_path / "two") != before


def test_a_change_that_was_put_back_is_seen_in_a_layer(tmp_path: Path) -> None:
    """The change time gives it away."""
    make_tree(tmp_path / "one")
    before = trees.digest_of_layer(tmp_path / "one")
    (tmp_path / "one" / "file").chmod(0o600)
    (tmp_path / "one" / "file").chmod(0o644)
    assert trees.digest_of_layer(tmp_path / "one") != before


def test_ignored_fields_are_not_compared(tmp_path: Path) -> None:
    """A field can be left out by name; a name that is no field is a mistake of the test."""
    make_tree(tmp_path / "one")
    make_tree(tmp_path / "two")
    (tmp_path / "two" / "file").chmod(0o600)
    trees.assert_same_tree(tmp_path / "one", tmp_path / "two", ignore={"mode"})
    with pytest.raises(AssertionError, match="no such field"):
        trees.assert_same_tree(tmp_path / "one", tmp_path / "two", ignore={"inode"})


def test_a_tree_beyond_path_max_is_walked_whole(tmp_path: Path) -> None:
    """Thirty directories of 200 bytes are longer than PATH_MAX; their names need not be UTF-8."""
    directory = os.open(tmp_path, os.O_RDONLY)
    for _ in range(30):
        os.mkdir(b"\xff" * 200, dir_fd=directory)
        inner = os.open(b"\xff" * 200, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)
    tree = trees.snapshot(tmp_path)
    assert tree[b"/".join([b"\xff" * 200] * 30 + [b"bottom"])].kind == "file"
    assert len(tree) == 32


@requires("user-xattrs")
def test_xattrs_are_seen(tmp_path: Path) -> None:
    """By name and value; a file without any has an empty tuple."""
    (tmp_path / "file").touch()
    assert trees.snapshot(tmp_path)[b"file"].xattrs == ()
    os.setxattr(tmp_path / "file", "user.name", b"value")
    assert trees.snapshot(tmp_path)[b"file"].xattrs == (("user.name", b"value"),)


@requires("overlayfs", "fuse-overlayfs", "root")
def test_the_peers_show_the_same_tree(tmp_path: Path) -> None:
    """Two independent implementations agree on a stack of two layers, and take their mounts away."""
    lowers, _, _ = mounts.prepare(tmp_path, 2)
    make_tree(lowers[1])
    (lowers[0] / "file").write_bytes(b"on top")
    with (
        mounts.overlayfs_mount(tmp_path, lowers) as oracle,
        mounts.fuse_overlayfs_mount(tmp_path, lowers) as peer,
    ):
        trees.assert_same_tree(oracle, peer)
        assert (peer / "file").read_bytes() == b"on top"
        assert len(leftovers.mounts_below(tmp_path)) == 2
    assert leftovers.mounts_below(tmp_path) == []


@requires("overlayfs", "root")
def test_a_busy_mount_is_taken_away_and_fails_the_test(tmp_path: Path) -> None:
    """What cannot be unmounted is detached, and that is no success."""
    lowers, _, _ = mounts.prepare(tmp_path, 2)
    with pytest.raises(AssertionError, match="busy"), mounts.overlayfs_mount(tmp_path, lowers) as point:
        held = os.open(point, os.O_RDONLY)
    os.close(held)
    assert not mounts.is_mounted(point)


def test_a_path_is_escaped_in_options(tmp_path: Path) -> None:
    """Colons and commas in a name do not separate."""
    assert mounts.layer_options([tmp_path / "a:b,c"], None, None, "ro") == f"lowerdir={tmp_path}/a\\:b\\,c,ro"


def test_mount_points_with_spaces_are_read(tmp_path: Path) -> None:
    """mountinfo writes them in octal; a path that is not mounted raises when it is detached."""
    line = b"36 35 0:98 / /a\\040b\\134c rw shared:1 - fuse.unionmount source rw".split(b" ")
    assert leftovers.parse_mount(line) == leftovers.Mount(98, b"/a b\\c", "fuse.unionmount")
    line = b"36 35 7:1 / /mnt rw - fuseblk.unionmount /dev/loop1 rw".split(b" ")
    assert leftovers.parse_mount(line) == leftovers.Mount(7340033, b"/mnt", "fuseblk.unionmount")
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is looked at below
        leftovers.detach(tmp_path)
    assert caught.value.errno in (errno.EINVAL, errno.EPERM)
