"""The dispatcher, asked by a kernel in this process: what it answers, how often it is asked, and what it keeps."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, cast

import pytest

from tests.support.probes import requires
from tests.support.trees import assert_same_tree, digest_of_layer
from unionfs.fuse.dispatch import Dispatcher
from unionfs.fuse.memory import Kernel
from unionfs.fuse.memory_connection import ProtocolError, dirents, replay
from unionfs.fuse.wire import abi, notify, replies
from unionfs.fuse.wire.requests import decode
from unionfs.syscalls import files
from unionfs.syscalls.files import RENAME_EXCHANGE, RENAME_NOREPLACE
from unionfs.union.mutate import Caller
from unionfs.union.stack import Config, open_stack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from unionfs.fuse.wire.requests import Request
    from unionfs.union.stack import Stack


class Mount(NamedTuple):
    """A stack, and the kernel that has it mounted."""

    stack: Stack
    kernel: Kernel
    base: Path

    def cost(self, act: Callable[[], object]) -> dict[str, int]:
        """Return which requests ``act`` took."""
        before = dict(self.kernel.counts)
        act()
        counts = self.kernel.counts
        return {name: count - before.get(name, 0) for name, count in counts.items() if count != before.get(name)}


def make(base: Path, *, whiteouts: str | None = None, **offer: int) -> Mount:
    """Mount two lower layers under an empty writable one."""
    for name in ("upper", "work", "lower0/dir", "lower1/dir/sub"):
        (base / name).mkdir(parents=True, exist_ok=True)
    (base / "lower0/dir/both").write_text("upper one")
    (base / "lower1/dir/both").write_text("lower one")
    (base / "lower1/dir/deep").write_text("deep")
    (base / "lower1/file").write_text("x" * 10_000)
    os.symlink("file", base / "lower1/link")
    for path in sorted((base / "lower0").rglob("*")) + sorted((base / "lower1").rglob("*")):
        os.utime(path, ns=(1, 1), follow_symlinks=False)
    lowers = [os.fsencode(base / name) for name in ("lower0", "lower1")]
    config = Config(lowers, os.fsencode(base / "upper"), os.fsencode(base / "work"), whiteouts=whiteouts)
    stack = open_stack(config, own_process=False)
    return Mount(stack, Kernel(Dispatcher(stack), **offer), base)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """A mount, whose lower layers must stay as they are and which must forget all that it was told to forget."""
    made = make(tmp_path / "mount")
    layers = [made.base / "lower0", made.base / "lower1"]
    digest = [digest_of_layer(layer) for layer in layers]
    made.kernel.uid, made.kernel.gid = os.geteuid(), os.getegid()
    yield made
    made.kernel.drop_caches()
    assert list(made.stack.view.nodes.by_id) == [1], "a node that nobody counts on is still there"
    made.kernel.unmount()
    assert made.kernel.dispatcher.ended
    made.stack.close()
    assert [digest_of_layer(layer) for layer in layers] == digest


# -- what is answered ------------------------------------------------------------------------------------------------


def test_the_merged_tree(mount: Mount) -> None:
    """Names of all layers, each once, with the types, data and links of the topmost."""
    kernel = mount.kernel
    for plus in (True, False):
        names = {found.name: stat.S_IFMT(found.kind << 12) for found in kernel.readdir("/", plus=plus)}
        assert names == {
            b".": stat.S_IFDIR, b"..": stat.S_IFDIR, b"dir": stat.S_IFDIR, b"file": stat.S_IFREG, b"link": stat.S_IFLNK,
        }  # fmt: skip
    assert kernel.readlink("link") == b"file"
    handle = kernel.open("dir/both")
    assert kernel.read(handle) == b"upper one"
    assert kernel.read(handle, 5, 6) == b"one"
    kernel.close(handle)
    assert [found.ino for found in kernel.readdir("dir") if found.name == b"deep"] == [kernel.stat("dir/deep").ino]


def test_errors_reach_the_caller(mount: Mount) -> None:
    """An OSError of the union is the same errno for whoever asked."""
    kernel = mount.kernel
    kernel.mkdir("full")
    kernel.mkdir("full/sub")
    for number, act in (
        (errno.ENOENT, lambda: kernel.stat("absent")),
        (errno.EEXIST, lambda: kernel.mkdir("dir")),
        (errno.ENOTEMPTY, lambda: kernel.rmdir("full")),
        (errno.ENOTDIR, lambda: kernel.rmdir("file")),
        (errno.EISDIR, lambda: kernel.unlink("dir")),
        (errno.ENODATA, lambda: kernel.getxattr("file", b"user.absent")),
        (errno.EEXIST, lambda: kernel.rename("file", "link", RENAME_NOREPLACE)),
        (errno.ENAMETOOLONG, lambda: kernel.stat("x" * 256)),
        (errno.ESTALE, lambda: kernel.send(abi.GETATTR, 12345, (0, 0))),
        (errno.ENOSYS, lambda: kernel.send(abi.BMAP, abi.ROOT_ID, (0, 0))),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is asked for
            act()
        assert caught.value.errno == number, os.strerror(number)


@pytest.mark.parametrize("plus", [True, False])
@pytest.mark.parametrize(("directory", "reads"), [("dir", 0), ("dir", 2), ("dir", 3), ("one", 0), ("one", 1)])
def test_a_listing_that_failed_is_no_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, reads: int, *, plus: bool
) -> None:
    """An error after so many reads of the layers reaches who asks, and who asks again gets all names."""
    (tmp_path / "lower1/one").mkdir(parents=True)
    (tmp_path / "lower1/one/file").touch()
    kernel, really, left = make(tmp_path).kernel, files.getdents, [reads]
    kernel.stat(directory)

    def getdents(descriptor: int) -> bytes:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, "")
        return really(descriptor)

    with monkeypatch.context() as broken:
        broken.setattr(files, "getdents", getdents)
        for act in (lambda: list(kernel.readdir(directory, plus=plus)), lambda: kernel.rmdir(directory)) * 2:
            with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is asked for
                act()
            assert caught.value.errno in (errno.EIO, errno.ENOTEMPTY)
    kernel.mkdir(f"{directory}/new")
    names = {found.name for found in kernel.readdir(directory, plus=plus)}
    assert names == {b".", b"..", b"new"} | {b"dir": {b"both", b"deep", b"sub"}, b"one": {b"file"}}[directory.encode()]


def test_changes_go_to_the_upper_layer(mount: Mount) -> None:
    """Each of them, as seen through the mount and in the layer."""
    kernel, upper = mount.kernel, mount.base / "upper"
    kernel.umask = 0o022
    kernel.mkdir("new", 0o777)
    handle = kernel.open("new/file", os.O_CREAT | os.O_RDWR, 0o666)
    assert kernel.write(handle, b"hello") == 5
    assert (kernel.fstat(handle).size, kernel.fstat(handle).mode) == (5, stat.S_IFREG | 0o644)
    kernel.ftruncate(handle, 4)
    kernel.fsync(handle)
    kernel.close(handle)
    kernel.link("new/file", "new/twin")
    kernel.symlink(b"twin", "new/link")
    kernel.mknod("new/fifo", stat.S_IFIFO | 0o600)
    kernel.rename("new", "moved")
    kernel.rename("moved/link", "moved/file", RENAME_EXCHANGE)
    assert (upper / "moved/twin").read_text() == "hell"
    assert os.readlink(upper / "moved/file") == "twin"
    assert kernel.stat("moved/link").nlink == 2
    kernel.utime("moved/link", -1, 2**33 * 10**9 + 5)
    assert os.stat(upper / "moved/twin").st_mtime_ns == 2**33 * 10**9 + 5
    assert (kernel.stat("moved/twin").atime, kernel.stat("moved/twin").atimensec) == (-1, 999_999_999)
    kernel.setxattr("moved/twin", b"user.key", b"value")
    assert kernel.getxattr("moved/twin", b"user.key") == b"value"
    assert kernel.listxattr("moved/twin") == [b"user.key"]
    kernel.removexattr("moved/twin", b"user.key")
    assert kernel.listxattr("moved/twin") == []
    kernel.chmod("file", 0o600)
    assert kernel.stat("file").mode == stat.S_IFREG | 0o600
    kernel.truncate("file", 3)
    assert (upper / "file").read_text() == "xxx"
    assert len(kernel.statfs()) == len(abi.FIELDS[abi.KSTATFS])


def test_a_file_without_a_name_that_cannot_be_given_away(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a server that is not root's serves others: nothing stays open."""

    def refuse(_descriptor: int, _uid: int, _gid: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchown", refuse)
    edit, root = mount.stack.writable(), mount.stack.view.nodes.root
    opened = os.listdir("/proc/self/fd")
    with pytest.raises(PermissionError):
        edit.tmpfile(root, 0o600, Caller(os.geteuid() + 1, os.getegid()))
    assert os.listdir("/proc/self/fd") == opened


def test_nothing_is_kept_of_a_file_whose_last_name_is_gone(mount: Mount) -> None:
    """Its inode number may be another file's, whose id is not this one's: also where it had several names."""
    kernel, nodes = mount.kernel, mount.stack.view.nodes
    kernel.mknod("one", stat.S_IFREG | 0o600)
    kernel.link("one", "two")
    assert len(nodes.kept_ids) == 1
    for name in ("one", "two"):
        kernel.unlink(name)
    kernel.drop_caches()
    assert nodes.kept_ids == {}


def test_space_of_a_file(mount: Mount) -> None:
    """fallocate(2), and the holes that lseek(2) finds."""
    kernel = mount.kernel
    handle = kernel.open("sparse", os.O_CREAT | os.O_RDWR)
    kernel.fallocate(handle, 0, 0, 8192)
    assert kernel.fstat(handle).size == 8192
    kernel.ftruncate(handle, 0)
    kernel.write(handle, b"x", 1 << 20)
    told = list[object]()
    kernel.dispatcher.notify = told.append
    assert kernel.lseek(handle, 1 << 20, os.SEEK_DATA) == 1 << 20
    assert told == []
    assert 0 < kernel.lseek(handle, 0, os.SEEK_DATA) <= 1 << 20
    assert told == [notify.inval_inode(handle.nodeid)], "what a mapping wrote comes first"
    kernel.close(handle)
    handle = kernel.open("sparse")
    assert 0 < kernel.lseek(handle, 0, os.SEEK_DATA) <= 1 << 20
    assert len(told) == 1
    kernel.close(handle)


@pytest.mark.parametrize("deferring", [False, True])
def test_a_reader_sees_what_is_written_after_a_copy_up(mount: Mount, *, deferring: bool) -> None:
    """The handle follows its node, whether the copy is made at once or by another thread."""
    kernel = mount.kernel
    copyup = mount.stack.writable().copyup
    copyup.deferring, copyup.upper.pace.average_ns = deferring, 1 << 40
    reader = kernel.open("file")
    assert kernel.read(reader, 3) == b"xxx"
    writer = kernel.open("file", os.O_RDWR)
    kernel.write(writer, b"new")
    assert kernel.read(reader, 5) == b"newxx"
    assert kernel.fstat(reader).ino == os.stat(mount.base / "lower1/file").st_ino
    for handle in (reader, writer):
        kernel.close(handle)


def test_what_a_mapping_wrote_makes_no_file_longer(mount: Mount) -> None:
    """Pages from before open(2) emptied the file may be written back after it; of one at the end, a part is within."""
    kernel = mount.kernel
    handle = kernel.open("new", os.O_CREAT | os.O_RDWR)
    kernel.write(handle, b"before")
    kernel.close(kernel.open("new", os.O_WRONLY | os.O_TRUNC))
    kernel.write(handle, b"after")
    for offset, data in ((0, b"later on"), (8, b"beyond")):
        args = (handle.fh, offset, len(data), abi.WRITE_CACHE, 0, handle.flags)
        assert kernel.send(abi.WRITE, handle.nodeid, args, data=data) == replies.written(len(data))
    assert kernel.read(handle) == b"later"
    kernel.close(handle)


@requires("trusted-xattrs")
def test_a_file_that_was_copied_with_the_mark_of_its_origin_is_another_one(mount: Mount) -> None:
    """To stat(2), to readdir(3) and for its handle, also when the other one is forgotten: whichever is met first."""
    kernel, upper = mount.kernel, mount.base / "upper"
    kernel.chmod("dir/deep", 0o600)
    kernel.drop_caches()
    shutil.copy2(upper / "dir/deep", upper / "dir/copy")
    names = ["dir/copy", "dir/deep"]
    first, second = (kernel.stat(name).ino for name in names)
    assert first == os.stat(mount.base / "lower1/dir/deep").st_ino
    assert second == os.stat(upper / "dir/deep").st_ino
    kernel.drop_caches()
    assert [kernel.stat(name).ino for name in reversed(names)] == [second, first]
    listed = {entry.name: entry.ino for entry in kernel.readdir("dir")}
    assert [listed[b"copy"], listed[b"deep"]] == [first, second]


@pytest.mark.parametrize("origin", ["lower", "upper"])
def test_an_open_file_outlives_its_name(mount: Mount, origin: str) -> None:
    """Until it is closed and forgotten, after which no descriptor is left."""
    kernel = mount.kernel
    if origin == "upper":
        kernel.chmod("file", 0o600)
    handle = kernel.open("file", os.O_RDWR)
    kernel.unlink("file")
    kernel.drop_caches()
    kernel.write(handle, b"gone")
    assert kernel.read(handle, 5) == b"gonex"
    assert kernel.fstat(handle).nlink == 0
    assert b"file" not in [found.name for found in kernel.readdir("/")]
    descriptors = len(os.listdir("/proc/self/fd"))
    kernel.close(handle)
    kernel.drop_caches()
    assert len(os.listdir("/proc/self/fd")) < descriptors


def test_a_directory_in_many_small_answers(mount: Mount) -> None:
    """Positions hold while names come and go; each that stood all along is seen once."""
    kernel = mount.kernel
    kernel.mkdir("many")
    names = {b"%04d" % number for number in range(300)}
    for name in names:
        kernel.mknod(b"many/" + name, stat.S_IFREG | 0o644)
    for plus in (True, False):
        assert {found.name for found in kernel.readdir("many", plus=plus, size=1024)} == names | {b".", b".."}
    seen = []
    for found in kernel.readdir("many", size=512):
        if found.name not in (b".", b".."):
            seen.append(found.name)
            kernel.unlink(b"many/" + found.name)
    assert sorted(seen) == sorted(names)
    kernel.rmdir("many")


# -- how often it is asked -------------------------------------------------------------------------------------------


def test_what_is_known_is_not_asked_again(mount: Mount) -> None:
    """Names, the absence of names, and attributes hold until they change."""
    kernel = mount.kernel
    assert mount.cost(lambda: kernel.stat("dir/deep")) == {"LOOKUP": 2}
    assert mount.cost(lambda: kernel.stat("dir/deep")) == {}
    assert mount.cost(lambda: _miss(kernel, "dir/absent")) == {"LOOKUP": 1}
    assert mount.cost(lambda: _miss(kernel, "dir/absent")) == {}
    assert mount.cost(lambda: kernel.chmod("dir/deep", 0o600)) == {"SETATTR": 1}
    assert mount.cost(lambda: kernel.stat("dir/deep")) == {}


def _miss(kernel: Kernel, path: str) -> None:
    with pytest.raises(FileNotFoundError):
        kernel.stat(path)


def test_a_listing_brings_the_attributes(mount: Mount) -> None:
    """One READDIRPLUS and its empty end; a LOOKUP for each file, but none for who has looked at files before."""
    kernel = mount.kernel

    def walk() -> None:
        for found in list(kernel.readdir("/")):
            if found.name not in (b".", b".."):
                kernel.stat(found.name)

    assert mount.cost(walk) == {"OPENDIR": 1, "READDIRPLUS": 2, "LOOKUP": 2}
    kernel.drop_caches()
    assert mount.cost(walk) == {"READDIRPLUS": 2}, "OPENDIR was answered with ENOSYS"


def test_a_listing_says_once_what_cannot_change(mount: Mount) -> None:
    """Another process that lists a directory gets no lower file that the kernel knows, and changed ones as they are."""
    kernel = mount.kernel

    def entries() -> dict[bytes, int]:
        told = {found.name: found.entry.nodeid for found in kernel.readdir("dir") if found.entry is not None}
        return {name: bool(nodeid) for name, nodeid in told.items() if name not in (b".", b"..")}

    kernel.stat("dir/both")
    assert entries() == {b"both": False, b"deep": False, b"sub": True}, "nobody has looked at listed files"
    kernel.stat("dir/deep")
    kernel.drop_caches()
    assert entries() == {b"both": True, b"deep": True, b"sub": True}
    assert entries() == {b"both": False, b"deep": False, b"sub": False}
    kernel.chmod("dir/deep", 0o600)
    assert entries() == {b"both": False, b"deep": True, b"sub": False}
    assert kernel.stat("dir/deep").mode & 0o777 == 0o600


def test_the_price_of_a_new_file(mount: Mount) -> None:
    """One request to see that it is not there, one to make it, one each to write and close."""
    kernel = mount.kernel

    def create(path: str) -> None:
        handle = kernel.open(path, os.O_CREAT | os.O_WRONLY)
        kernel.write(handle, b"data")
        kernel.close(handle)

    assert mount.cost(lambda: create("first")) == {"LOOKUP": 1, "CREATE": 1, "WRITE": 1, "FLUSH": 1, "RELEASE": 1}
    assert mount.cost(lambda: create("second")) == {"LOOKUP": 1, "CREATE": 1, "WRITE": 1, "RELEASE": 1}


def test_what_is_forgotten_costs_a_request(mount: Mount) -> None:
    """Forgotten nodes are looked up again, and have the same inode numbers."""
    kernel = mount.kernel
    before = kernel.stat("dir/deep")
    handle = kernel.open("dir/both")
    assert mount.cost(kernel.drop_caches) == {"BATCH_FORGET": 1}
    assert kernel.stat("dir/deep") == before
    assert kernel.read(handle) == b"upper one", "an open file is not forgotten"
    kernel.close(handle)


# -- negotiation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "offer",
    [
        {"flags": 0},
        {"flags": abi.INIT_BIG_WRITES | abi.INIT_DO_READDIRPLUS, "minor": 31},
        {"flags": abi.INIT_INIT_EXT | abi.INIT_SETXATTR_EXT | abi.INIT_MAX_PAGES, "minor": 36},
    ],
)
def test_kernels_that_offer_less(tmp_path: Path, offer: dict[str, int]) -> None:
    """Nothing is used that was not offered, and all works without."""
    made = make(tmp_path / "mount", whiteouts=None, **offer)
    kernel = made.kernel
    assert not kernel.agreed & ~offer["flags"] & ~abi.INIT_INIT_EXT
    assert {found.name for found in kernel.readdir("dir", plus=False)} >= {b"both", b"deep", b"sub"}
    kernel.setxattr("file", b"user.key", b"value")
    assert kernel.getxattr("file", b"user.key") == b"value"
    kernel.unmount()
    made.stack.close()


def test_a_directory_that_was_copied_whole_is_forgotten(tmp_path: Path) -> None:
    """Though other threads copied its files, one after the other."""
    inside = tmp_path / "mount/lower1/dir/sub"
    inside.mkdir(parents=True)
    for name in ("one", "two"):
        (inside / name).write_text(name)
    made = make(tmp_path / "mount", whiteouts="oci")
    made.kernel.uid, made.kernel.gid = os.geteuid(), os.getegid()
    made.stack.writable().copyup.deferring = True
    made.kernel.rename("dir", "renamed")
    assert {found.name for found in made.kernel.readdir("renamed/sub")} >= {b"one", b"two"}
    made.kernel.drop_caches()
    assert list(made.stack.view.nodes.by_id) == [1]
    made.kernel.unmount()
    made.stack.close()


# -- recording -------------------------------------------------------------------------------------------------------


def test_a_recording_has_the_same_effect_again(tmp_path: Path) -> None:
    """Sent to another dispatcher on equal layers, the requests get the same answers but for times and inode numbers."""
    one, other = make(tmp_path / "one"), make(tmp_path / "other")
    for kernel in (one.kernel, other.kernel):
        kernel.uid, kernel.gid = os.geteuid(), os.getegid()
    _work(one.kernel)
    recorded = one.kernel.exchanges
    answers = list(replay(other.kernel.dispatcher, recorded[1:]))
    assert [_summary(answer.reply) for answer in answers] == [_summary(entry.reply) for entry in recorded[1:]]
    assert_same_tree(one.base / "upper", other.base / "upper", ignore=("mtime_ns", "xattrs"))
    for made in (one, other):
        made.stack.close()


def _work(kernel: Kernel) -> None:
    kernel.mkdir("new")
    handle = kernel.open("new/file", os.O_CREAT | os.O_RDWR)
    kernel.write(handle, b"data")
    kernel.close(handle)
    list(kernel.readdir("dir"))
    kernel.rename("dir/deep", "new/deep")
    kernel.unlink("dir/both")
    _miss(kernel, "dir/both")
    kernel.unmount()


def _summary(reply: bytes | None) -> tuple[int, ...] | None:
    return None if reply is None else abi.OUT_HEADER.unpack_from(reply)


# -- the kernel itself -----------------------------------------------------------------------------------------------


def _lying(answer: Callable[[Request], bytes | None]) -> Kernel:
    """Return a kernel whose dispatcher answers INIT well and then as ``answer`` says."""

    def handle(request: Request) -> bytes | None:
        if request.opcode == abi.INIT:
            return replies.data(request.unique, replies.init(abi.KERNEL_MINOR_VERSION))
        return answer(request)

    return Kernel(cast("Dispatcher", SimpleNamespace(decode=decode, handle=handle, tidy=list)))


LIES: dict[str, Callable[[Request], bytes | None]] = {
    "none": lambda request: None,
    "short": lambda request: b"\0" * 8,
    "a wrong length": lambda request: replies.ok(request.unique) + b"x",
    "to another request": lambda request: replies.ok(request.unique + 2),
    "an impossible error": lambda request: replies.error(request.unique, 600),
    "an error with a payload": lambda request: abi.OUT_HEADER.pack(20, -1, request.unique) + b"data",
}


@pytest.mark.parametrize("lie", LIES)
def test_a_reply_that_linux_would_refuse_is_an_error(lie: str) -> None:
    """fuse_dev_do_write answers EINVAL to each of them."""
    with pytest.raises(ProtocolError):
        _lying(LIES[lie]).stat("/")


def test_a_reply_that_nobody_waits_for_is_an_error() -> None:
    """FORGET has none."""
    kernel = _lying(lambda request: replies.ok(request.unique))
    with pytest.raises(ProtocolError):
        kernel.send(abi.FORGET, 2, (1,))


def test_names_that_linux_would_refuse_are_an_error() -> None:
    """Empty, cut off, or with a slash: EIO for whoever reads the directory."""
    for data in (
        abi.DIRENT.pack(1, 1, 0, 4),
        abi.DIRENT.pack(1, 1, 9, 4) + b"name\0\0\0\0",
        abi.DIRENT.pack(1, 1, 3, 4) + b"a/b\0\0\0\0\0",
    ):
        with pytest.raises(ProtocolError):
            list(dirents(data, plus=False))
