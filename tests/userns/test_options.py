"""The mount options about owners, in the words of fuse-overlayfs, on mounts by root."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conformance.cases.xattrs import acl
from tests.support.mounts import LIMIT_S, fuse_overlayfs_mount, prepare, run, union_mount
from tests.support.probes import requires
from unionfs import errors, idmap
from unionfs.cli import owners
from unionfs.idmap import IdMap, Ownership, Range
from unionfs.syscalls import mounts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

pytestmark = requires("root", "fuse")

MAPPING = "uidmapping=:0:100000:65536,gidmapping=:0:200000:1000:5000:300000:10"
_libc = ctypes.CDLL(None, use_errno=True)
ATTRIBUTE = {"1": "security.fuseoverlayfs.override_stat", "2": "user.containers.override_stat"}


class Layers:
    """A stack's directories, with a file of 5:6 in the lower one."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (self.lower,), self.upper, self.work = prepare(base)
        self.upper.chmod(0o755)
        self.file = self.lower / "file"
        self.file.write_text("text")
        os.chown(self.file, 5, 6)

    def mount(self, options: str) -> AbstractContextManager[Path]:
        return union_mount(self.base, [self.lower], self.upper, self.work, options)


@pytest.fixture
def layers(base: Path) -> Iterator[Layers]:
    """A fresh stack; its lower layer must be as it was."""
    made = Layers(base)
    before = [(path, path.lstat(), os.listxattr(path)) for path in sorted(made.lower.rglob("*"))]
    yield made
    after = {path: (path.lstat(), os.listxattr(path)) for path in sorted(made.lower.rglob("*"))}
    for path, state, names in before:
        assert after[path][0].st_ctime_ns == state.st_ctime_ns
        assert after[path][1] == names


def owner(path: Path) -> tuple[int, int]:
    state = path.lstat()
    return state.st_uid, state.st_gid


def as_user(uid: int, gid: int, *command: str | Path) -> None:
    become = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    done = subprocess.run([*become, *command], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr


# -- ranges ----------------------------------------------------------------------------------------------------------


def test_ranges_shift_owners_both_ways(layers: Layers) -> None:
    os.chown(layers.upper, 0, 0)
    with layers.mount(MAPPING) as point:
        assert owner(point) == (100000, 200000)
        assert owner(point / "file") == (100005, 200006)
        os.chown(point / "file", 100007, 300002)
        assert owner(point / "file") == (100007, 300002)
        point.chmod(0o777)
        as_user(100009, 200009, "mkdir", point / "dir")
        os.symlink("x", point / "link")
        os.lchown(point / "link", 165535, -1)
        assert owner(point / "dir") == (100009, 200009)
        assert owner(point / "link")[0] == 165535
    assert owner(layers.upper / "file") == (7, 5002)
    assert owner(layers.upper / "dir") == (9, 9)
    assert owner(layers.upper / "link")[0] == 65535


def test_who_is_in_no_range(layers: Layers) -> None:
    """Strangers are shown as nobody and can be given nothing; what root makes outside is the container's root's."""
    stranger = layers.lower / "stranger-s"
    stranger.touch()
    os.chown(stranger, 70000, 2000)
    with layers.mount(MAPPING) as point:
        assert owner(point / "stranger-s") == (65534, 65534)
        with pytest.raises(OSError, match="Value too large"):
            os.chown(point / "file", 3, -1)
        assert owner(point / "file") == (100005, 200006)
        os.link(point / "file", point / "copied-up")
        (point / "made-by-root").touch()
        os.chown(point, 0, 0)  # as podman does with the root of a container's mount
        assert owner(point) == (100000, 200000)
        point.chmod(0o777)
        as_user(7, 7, "mkdir", point / "made-by-stranger")
    assert owner(layers.upper / "file") == (5, 6)
    assert owner(layers.upper / "made-by-root") == (0, 0)
    assert owner(layers.upper / "made-by-stranger") == (65534, 65534)


def test_set_group_id_directories_hand_down_the_stored_group(layers: Layers) -> None:
    with layers.mount(MAPPING) as point:
        (point / "dir").mkdir()
        os.chown(point / "dir", 100001, 200002)
        (point / "dir").chmod(0o2777)
        as_user(100009, 200009, "mkdir", point / "dir/inner")
        as_user(100009, 200009, "touch", point / "dir/file")
        assert owner(point / "dir/inner") == owner(point / "dir/file") == (100009, 200002)
        assert (point / "dir/inner").stat().st_mode & stat.S_ISGID
    assert owner(layers.upper / "dir/inner") == (9, 2)


@pytest.mark.requires("setfacl")
def test_ids_in_acls_are_mapped(layers: Layers) -> None:
    with layers.mount(MAPPING) as point:
        run("setfacl", "-m", "u:100042:r,g:200043:rw", point / "file")
        shown = run("getfacl", "-cn", point / "file").stdout
    stored = run("getfacl", "-cn", layers.upper / "file").stdout
    assert {"user:100042:r--", "group:200043:rw-"} <= set(shown.split())
    assert {"user:42:r--", "group:43:rw-"} <= set(stored.split())


def test_a_layer_that_the_kernel_has_mapped_is_taken_as_it_is(layers: Layers) -> None:
    """podman 4 mounts the layers id-mapped and asks for a map as well: each owner is to be shifted once."""
    with idmapped(layers.lower, layers.base / "mapped") as mapped:
        assert owner(mapped / "file") == (100005, 200006)
        with union_mount(layers.base, [mapped], layers.upper, layers.work, MAPPING) as point:
            assert owner(point / "file") == (100005, 200006)
            (point / "file").chmod(0o600)
            assert owner(point / "file") == (100005, 200006)
    assert owner(layers.upper / "file") == (5, 6)


@contextmanager
def idmapped(source: Path, point: Path) -> Iterator[Path]:
    """Mount ``source`` on ``point`` with its owners shifted by 100000 and 200000; see mount_setattr(2)."""
    point.mkdir()
    holder = subprocess.Popen(["unshare", "--user", "sleep", "60"])
    try:
        while os.readlink(f"/proc/{holder.pid}/ns/user") == os.readlink("/proc/self/ns/user"):
            time.sleep(0.01)
        Path(f"/proc/{holder.pid}/uid_map").write_text("0 100000 65536")
        Path(f"/proc/{holder.pid}/gid_map").write_text("0 200000 65536")
        namespace = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY)
    finally:
        holder.kill()
        holder.wait()
    tree = mounts.clone_tree(mounts.AT_FDCWD, os.fsencode(source))
    try:
        if _libc.syscall(442, tree, b"", 0x1000, struct.pack("=4Q", 0x00100000, 0, 0, namespace), 32):
            pytest.skip(f"this kernel maps no ids of the file system below {source}: {os.strerror(ctypes.get_errno())}")
        mounts.attach_tree(tree, mounts.AT_FDCWD, os.fsencode(point))
    finally:
        os.close(tree)
        os.close(namespace)
    try:
        yield point
    finally:
        run("umount", point)


# -- squashing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("squash_to_root", (0, 0)),
        ("squash_to_uid=1000", (1000, 6)),
        ("squash_to_gid=1001", (5, 1001)),
        ("squash_to_gid=1001,squash_to_root,squash_to_uid=1000", (1000, 1001)),
    ],
)
def test_squashed_owners(layers: Layers, options: str, shown: tuple[int, int]) -> None:
    with layers.mount(options) as point:
        assert owner(point / "file") == shown
        os.chown(point / "file", 7, 8)
        expected = [mine if mine not in (5, 6) else given for mine, given in zip(shown, (7, 8), strict=True)]
        assert owner(point / "file") == tuple(expected)
    assert owner(layers.upper / "file") == (7, 8), "who is asked for is stored all the same"


# -- remembered owners -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["1", "2"])
def test_all_owners_stand_in_attributes(layers: Layers, store: str) -> None:
    with layers.mount(f"xattr_permissions={store}") as point:
        assert owner(point / "file") == (5, 6)
        (point / "file").chmod(0o4751)
        os.chown(point / "file", -1, 9)
        (point / "file").chmod(0o6751)
        (point / "dir").mkdir(mode=0o700)
        os.mknod(point / "device", stat.S_IFCHR | 0o622, os.makedev(5, 1))
        os.chown(point / "device", 3, 4)
        os.symlink("x", point / "link")
        os.lchown(point / "link", 11, 12)
        shown = [
            (path.lstat().st_mode, *owner(path)) for path in map(point.joinpath, ("file", "dir", "device", "link"))
        ]
        assert (point / "device").stat().st_rdev == os.makedev(5, 1)
        assert os.listxattr(point / "file") == []
    assert shown == [
        (stat.S_IFREG | 0o6751, 5, 9),
        (stat.S_IFDIR | 0o700, 0, 0),
        (stat.S_IFCHR | 0o622 & ~_umask(), 3, 4),
        (stat.S_IFLNK | 0o777, 11, 12),
    ]
    assert os.getxattr(layers.upper / "file", ATTRIBUTE[store]) == b"5:9:6751:file"
    assert os.getxattr(layers.upper / "dir", ATTRIBUTE[store]) == b"0:0:0700:dir"
    assert owner(layers.upper / "file") == (0, 0)
    assert not (layers.upper / "file").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)
    with layers.mount(f"xattr_permissions={store}") as point:
        again = [
            (path.lstat().st_mode, *owner(path)) for path in map(point.joinpath, ("file", "dir", "device", "link"))
        ]
    assert again == shown


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_privileged_attributes_are_kept_as_ordinary_ones(layers: Layers) -> None:
    name, value = "security.capability", bytes.fromhex("0100000200200000000000000000000000000000")
    with layers.mount("xattr_permissions=2") as point:
        os.setxattr(point / "file", name, value)
        assert os.getxattr(point / "file", name) == value
        assert os.listxattr(point / "file") == [name]
    assert name not in os.listxattr(layers.upper / "file")
    assert os.getxattr(layers.upper / "file", "user.containers.override_" + name) == value
    with layers.mount("xattr_permissions=2") as point:
        os.removexattr(point / "file", name)
        assert os.listxattr(point / "file") == []


@requires("fuse-overlayfs")
@pytest.mark.parametrize("store", ["1", "2"])
def test_fuse_overlayfs_and_this_read_what_the_other_remembers(layers: Layers, store: str) -> None:
    """It writes the whole of st_mode, and no type."""
    words = f"xattr_permissions={store}"

    def theirs() -> AbstractContextManager[Path]:
        return fuse_overlayfs_mount(layers.base, [layers.lower], layers.upper, layers.work, words)

    def make(directory: Path) -> None:
        directory.mkdir()
        (directory / "tool").touch()
        for path, mode in ((directory, 0o2750), (directory / "tool", 0o711)):
            path.chmod(mode)
            os.chown(path, 7, 8)

    def shown(directory: Path) -> list[tuple[int, int, int]]:
        return [(path.stat().st_mode, *owner(path)) for path in (directory, directory / "tool")]

    with theirs() as point:
        make(point / "theirs")
    with layers.mount(words) as point:
        assert shown(point / "theirs") == [(0o42750, 7, 8), (0o100711, 7, 8)]
        make(point / "ours")
    with theirs() as point:
        assert shown(point / "theirs") == shown(point / "ours") == [(0o42750, 7, 8), (0o100711, 7, 8)]


def test_an_acl_and_the_remembered_mode_say_the_same(layers: Layers) -> None:
    """Whatever the real permission bits, which let the server in: acl(5)."""
    name, entries = "system.posix_acl_access", ("user:1000:7", "g:5")
    with layers.mount("xattr_permissions=2") as point:
        os.setxattr(point / "file", name, acl("u:4", *entries, "m:6", "o:0"))
        assert os.getxattr(point / "file", name) == acl("u:4", *entries, "m:6", "o:0")
        assert stat.S_IMODE((point / "file").stat().st_mode) == 0o460
        (point / "file").chmod(0o151)
        assert os.getxattr(point / "file", name) == acl("u:1", *entries, "m:5", "o:1")
    assert os.getxattr(layers.upper / "file", ATTRIBUTE["2"]) == b"5:6:0151:file"
    with layers.mount("xattr_permissions=2") as point:
        assert os.getxattr(point / "file", name) == acl("u:1", *entries, "m:5", "o:1")
        os.removexattr(point / "file", name)
        assert stat.S_IMODE((point / "file").stat().st_mode) == 0o151


def test_an_acl_changes_the_remembered_mode(layers: Layers) -> None:
    with layers.mount("xattr_permissions=2") as point:
        (point / "file").chmod(0o4600)
        os.setxattr(point / "file", "system.posix_acl_access", acl("u:7", "g:5", "o:1"))
        assert stat.S_IMODE((point / "file").stat().st_mode) == 0o4751


# -- words -----------------------------------------------------------------------------------------------------------


def test_words_and_values() -> None:
    words = ["ro", "uidmapping=0:5:1", "squash_to_root", "squash_to_gid=3", "xattr_permissions=2", "squash_to_rot"]
    expected = Ownership(IdMap((Range(0, 5, 1),), 0), IdMap(None, 3), idmap.CONTAINERS_OVERRIDE, always=True)
    assert owners.take(words) == (expected, ["ro", "squash_to_rot"])
    assert owners.take(["ro"]) == (None, ["ro"])


@pytest.mark.parametrize(
    "word",
    [
        "uidmapping=",
        "uidmapping=1:2",
        "gidmapping=a:b:c",
        "squash_to_uid=root",
        "squash_to_gid=-1",
        "xattr_permissions=3",
    ],
)
def test_bad_words(word: str) -> None:
    with pytest.raises(errors.UsageError, match=f"mount option '{word}'"):
        owners.take([word])
