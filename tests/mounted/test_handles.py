"""File handles (open_by_handle_at(2), NFS export) hold when the kernel has forgotten the file, and open no other one.

With ``nfs_export=on`` they hold over a new mount. The kernel's overlayfs with that option is held to the same, but for
what it does not promise.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import signal
import stat
import struct
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.mounts import LIMIT_S, layer_options, overlayfs_mount, prepare, run, union_mount
from tests.support.probes import need, requires
from unionfs.syscalls import files

from .command import servers, unionmount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

pytestmark = requires("root", "fuse")

SUBJECTS: dict[str, Callable[..., AbstractContextManager[Path]]] = {
    "overlayfs": partial(overlayfs_mount, options="index=on,nfs_export=on,redirect_dir=on"),
    "direct": union_mount,
    "userxattr": partial(union_mount, options="whiteouts=userxattr"),
    "oci": partial(union_mount, options="whiteouts=oci"),
    "exported": partial(union_mount, options="nfs_export=on"),
    "exported, oci": partial(union_mount, options="whiteouts=oci,nfs_export=on"),
}
OVER_MOUNTS = ["overlayfs", "exported"]
_HEAD = struct.Struct("=Ii")
_libc = ctypes.CDLL(None, use_errno=True)


class Mount(NamedTuple):
    """A mount, a descriptor of its root, and a directory in it for one test."""

    point: Path
    root: int
    tree: Path

    def handle(self, name: str) -> tuple[int, bytes]:
        """Return the handle of a file of the tree; see name_to_handle_at(2)."""
        return files.file_handle(self.root, os.fsencode(self.tree / name))

    def open(self, handle: tuple[int, bytes], flags: int = os.O_RDONLY) -> int:
        """Open a file by its handle; see open_by_handle_at(2)."""
        kind, data = handle
        packed = _HEAD.pack(len(data), kind) + data
        descriptor = _libc.open_by_handle_at(self.root, packed, flags | os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(descriptor)

    def read(self, handle: tuple[int, bytes]) -> str:
        """Return what a file holds that is known by its handle; of a directory, its names."""
        descriptor = self.open(handle)
        try:
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                return " ".join(sorted(os.listdir(descriptor)))
            return os.read(descriptor, 1000).decode()
        finally:
            os.close(descriptor)

    def refuses(self, handle: tuple[int, bytes]) -> bool:
        """Tell whether a handle is stale."""
        try:
            os.close(self.open(handle, os.O_PATH))
        except OSError as error:
            return error.errno == errno.ESTALE
        return False

    def forget(self) -> None:
        """Have the kernel drop every file that nobody uses, and see it done."""
        deadline = time.monotonic() + 30
        while True:
            with open("/proc/sys/vm/drop_caches", "w") as caches:
                caches.write("2")
            if self.known() <= 1:
                return
            assert time.monotonic() < deadline, "the kernel keeps what it knows"
            time.sleep(0.01)

    def known(self) -> int:
        """Return how many files the kernel has not forgotten, where there is a server to ask."""
        if self.point.name != "unionfs":
            return 0
        return int(json.loads(os.getxattr(self.point, "user.unionfs.stats"))["nodes"])


#: As many trees as one mount serves tests.
TREES = 20
FILES = {
    "only0/inside/a0": "only0/inside/a of 0",
    "only2/inside/a2": "only2/inside/a of 2",
    "merged/deep/b1": "merged/deep/b of 1",
    "twins/one": "twins",
    "new/file": "new",
}
DIRECTORIES = {"only1/inside": "a1 b1", "merged/deep": "a0 a1 a2 b0 b1 b2", "new": "file"}


def _fill(lowers: list[Path], upper: Path) -> None:
    """Two lower layers with a merged directory, and an upper one from an earlier time."""
    for index, layer in enumerate((*lowers, upper)):
        for directory in ("merged/deep", f"only{index}/inside"):
            (layer / directory).mkdir(parents=True)
            for name in ("a", "b"):
                (layer / directory / f"{name}{index}").write_text(f"{directory}/{name} of {index}")
        (layer / f"link{index}").symlink_to("a")
        os.mkfifo(layer / f"fifo{index}")
    (lowers[1] / "twins").mkdir()
    (lowers[1] / "twins/one").write_text("twins")
    os.link(lowers[1] / "twins/one", lowers[1] / "two")


@contextmanager
def _mounted(subject: str, base: Path) -> Iterator[Mount]:
    if subject == "overlayfs":
        need("overlayfs")
    with SUBJECTS[subject](base, *prepare(base, 2)) as point:
        root = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield Mount(point, root, point)
        finally:
            os.close(root)


@pytest.fixture(scope="module", params=SUBJECTS)
def mounts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Iterator[Mount]]:
    """Each kind of mount, and a tree of its own in it for each test, with a new file as well."""
    base = tmp_path_factory.mktemp("handles")
    lowers, upper, _work = prepare(base, 2)
    for number in range(TREES):
        _fill([layer / str(number) for layer in lowers], upper / str(number))
    with _mounted(request.param, base) as made:
        yield (made._replace(tree=made.point / str(number)) for number in range(TREES))


@pytest.fixture
def mount(mounts: Iterator[Mount]) -> Mount:
    """One tree, of files that the kernel knows."""
    made = next(mounts)
    (made.tree / "new").mkdir()
    (made.tree / "new/file").write_text("new")
    return made


def test_files_and_directories_that_nobody_knows(mount: Mount) -> None:
    handles = {name: mount.handle(name) for name in FILES | DIRECTORIES}
    numbers = {name: os.lstat(mount.tree / name).st_ino for name in handles}
    mount.forget()
    for name, content in (FILES | DIRECTORIES).items():
        assert mount.read(handles[name]) == content
    assert {name: os.lstat(mount.tree / name).st_ino for name in handles} == numbers
    assert {name: mount.handle(name) for name in handles} == handles, "a file has one handle"


def test_files_that_are_no_regular_files(mount: Mount) -> None:
    names = [f"{kind}{index}" for kind in ("link", "fifo") for index in range(3)]
    handles = {name: mount.handle(name) for name in names}
    for name in names:
        os.chown(mount.tree / name, 1, 1, follow_symlinks=False)
    mount.forget()
    for name in names:
        descriptor = mount.open(handles[name], os.O_PATH)
        assert os.path.samestat(os.fstat(descriptor), os.lstat(mount.tree / name))
        os.close(descriptor)


def test_directories_opened_by_handle_have_their_paths(mount: Mount) -> None:
    """The kernel finds the names again, with the parents that it asks for and their listings."""
    handle = mount.handle("merged/deep")
    mount.forget()
    descriptor = mount.open(handle)
    assert os.readlink(f"/proc/self/fd/{descriptor}") == str(mount.tree / "merged/deep")
    os.close(descriptor)


CHANGES: dict[str, Callable[[Path], object]] = {
    "written": lambda path: path.write_text(path.read_text() + "!"),
    "its attributes changed": lambda path: path.chmod(0o600),
    "renamed": lambda path: path.rename(path.parent / "renamed"),
    "moved": lambda path: path.rename(path.parents[1] / f"{path.name} moved"),
    "a parent renamed": lambda path: path.parent.rename(path.parents[1] / f"{path.parent.name} renamed"),
    "another name given": lambda path: os.link(path, path.parent / "another"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_changed_in_between(mount: Mount, change: str) -> None:
    """Before the kernel forgets them, and after."""
    handles = {name: mount.handle(name) for name in FILES}
    for name in FILES:
        CHANGES[change](mount.tree / name)
    for _ in range(2):
        mount.forget()
        for name, content in FILES.items():
            assert mount.read(handles[name]) == content + "!" * (change == "written")


def test_files_that_are_copied_up_by_handle(mount: Mount) -> None:
    handles = {name: mount.handle(name) for name in FILES}
    mount.forget()
    for handle in handles.values():
        descriptor = mount.open(handle, os.O_WRONLY)
        os.pwrite(descriptor, b"X", 0)
        os.close(descriptor)
        mount.forget()
    for name, content in FILES.items():
        assert mount.read(handles[name]) == (mount.tree / name).read_text() == "X" + content[1:]


def test_directories_that_are_renamed(mount: Mount) -> None:
    handles = {name: mount.handle(name) for name in DIRECTORIES}
    mount.forget()
    for name in DIRECTORIES:
        (mount.tree / name).rename(mount.tree / name.replace("/", " "))
    mount.forget()
    for name, content in DIRECTORIES.items():
        assert mount.read(handles[name]) == content


@pytest.mark.parametrize("copied", [False, True])
def test_names_of_a_file_that_has_several(mount: Mount, copied: bool) -> None:
    """The handle of one is that of all, and holds until the last one is gone."""
    handle = mount.handle("two")
    assert handle == mount.handle("twins/one")
    if copied:
        (mount.tree / "two").chmod(0o600)
    mount.forget()
    (mount.tree / "two").unlink()
    mount.forget()
    assert mount.read(handle) == "twins"
    mount.forget()
    (mount.tree / "twins/one").unlink()
    mount.forget()
    assert mount.refuses(handle)


def test_names_of_a_new_file_that_has_several(mount: Mount) -> None:
    os.link(mount.tree / "new/file", mount.tree / "second")
    handle = mount.handle("new/file")
    mount.forget()
    (mount.tree / "new/file").unlink()
    mount.forget()
    assert mount.read(handle) == "new"
    assert mount.handle("second") == handle


@pytest.mark.parametrize("forgotten", ["before", "after", "both"])
def test_files_that_are_gone(mount: Mount, forgotten: str) -> None:
    """Their handles are stale, also if other files have their names."""
    handles = {name: mount.handle(name) for name in (*FILES, "only2/inside", "new")}
    if forgotten != "after":
        mount.forget()
    (mount.tree / "two").unlink()
    for name in handles:
        path = mount.tree / name
        if path.is_dir():
            run("rm", "-r", path)
            path.mkdir()
        else:
            path.unlink()
            path.write_text("another file")
    if forgotten != "before":
        mount.forget()
    assert {name: mount.refuses(handle) for name, handle in handles.items()} == dict.fromkeys(handles, True)


@pytest.mark.parametrize("subject", ["direct", "oci", "exported", "exported, oci"])
def test_a_handle_never_opens_a_file_that_took_over_the_inode_number(subject: str, tmp_path: Path) -> None:
    """Be it new, a copy, or met after another mount."""
    lowers, upper, _work = prepare(tmp_path, 2)
    for index in range(60):
        (lowers[0] / f"lower{index}").write_text(f"lower {index}")
        (upper / f"upper{index}").write_text(f"upper {index}")
    gone = []
    with _mounted(subject, tmp_path) as mount:
        for first in (0, 20, 40):
            names = [name for name in os.listdir(mount.point) if not name.startswith("lower")]
            gone += [mount.handle(name) for name in names]
            for name in names:
                (mount.point / name).unlink()
            mount.forget()
            for index in range(first, first + 20):
                (mount.point / f"lower{index}").chmod(0o600)
                (mount.point / f"new{index}").write_text(f"new {index}")
                if index < 20:
                    os.link(mount.point / f"new{index}", mount.point / f"second{index}")
            for _ in range(2):
                mount.forget()
                live = {(mount.point / name).read_text(): mount.handle(name) for name in os.listdir(mount.point)}
                assert [handle for handle in gone if not mount.refuses(handle)] == []
        mount.forget()
        assert {content: mount.read(handle) for content, handle in live.items()} == {name: name for name in live}
    with _mounted(subject, tmp_path) as mount:
        for name in os.listdir(mount.point):
            os.lstat(mount.point / name)
        assert [handle for handle in gone if not mount.refuses(handle)] == []
        held = {content: mount.read(handle) for content, handle in live.items() if not mount.refuses(handle)}
        if subject == "exported":
            assert held == {name: name for name in live}
        elif subject == "exported, oci":  # copies do not say what they are copies of
            assert held == {name: name for name in live if not name.startswith("lower")}
        else:
            assert held == {}


@pytest.mark.parametrize("subject", OVER_MOUNTS)
def test_handles_hold_over_a_new_mount(subject: str, tmp_path: Path) -> None:
    """The same file has the same handle, and it opens it before anybody has looked at the file."""
    lowers, upper, _work = prepare(tmp_path, 2)
    _fill(lowers, upper)
    names = [*FILES, *DIRECTORIES, "two", *(f"{kind}{index}" for kind in ("link", "fifo") for index in range(3))]
    with _mounted(subject, tmp_path) as mount:
        (mount.point / "new").mkdir()
        (mount.point / "new/file").write_text("new")
        handles = {name: mount.handle(name) for name in names}
        os.chown(mount.point / "link0", 1, 1, follow_symlinks=False)
        os.chown(mount.point / "fifo1", 1, 1)
    for _ in range(2):
        with _mounted(subject, tmp_path) as mount:
            assert {name: mount.read(handles[name]) for name in FILES | DIRECTORIES} == FILES | DIRECTORIES
            assert mount.read(handles["two"]) == "twins"
            for name in ("link0", "link2", "fifo1", "fifo2"):
                descriptor = mount.open(handles[name], os.O_PATH)
                assert os.path.samestat(os.fstat(descriptor), os.lstat(mount.point / name))
                os.close(descriptor)
            assert {name: mount.handle(name) for name in names} == handles


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("subject", OVER_MOUNTS)
def test_files_that_changed_before_a_new_mount(subject: str, change: str, tmp_path: Path) -> None:
    lowers, upper, _work = prepare(tmp_path, 2)
    _fill(lowers, upper)
    names = [name for name in FILES if name != "new/file"]
    with _mounted(subject, tmp_path) as mount:
        handles = {name: mount.handle(name) for name in names}
        for name in names:
            CHANGES[change](mount.point / name)
    with _mounted(subject, tmp_path) as mount:
        for name in names:
            assert mount.read(handles[name]) == FILES[name] + "!" * (change == "written")


@pytest.mark.parametrize("subject", OVER_MOUNTS)
def test_files_that_are_gone_before_a_new_mount(subject: str, tmp_path: Path) -> None:
    """Their handles are stale, whatever has their names and numbers; one that is unlinked holds while it is open."""
    lowers, upper, _work = prepare(tmp_path, 2)
    _fill(lowers, upper)
    with _mounted(subject, tmp_path) as mount:
        handles = {name: mount.handle(name) for name in ("only0/inside/a0", "only2/inside/a2", "twins/one", "only2")}
        with (mount.point / "only2/inside/a2").open() as file:
            run("rm", "-r", *(mount.point / name for name in ("only0", "only2", "twins", "two")))
            assert mount.read(handles["only2/inside/a2"]) == file.read() == "only2/inside/a of 2"
    with _mounted(subject, tmp_path) as mount:
        for index in range(60):
            (mount.point / f"another{index}").mkdir()
            (mount.point / f"another{index}/file").write_text("another file")
        assert {name: mount.refuses(handle) for name, handle in handles.items()} == dict.fromkeys(handles, True)


def test_a_server_that_was_killed(tmp_path: Path) -> None:
    """All that a handle needs stands in the layers."""
    lowers, upper, work = prepare(tmp_path, 2)
    _fill(lowers, upper)
    point = tmp_path / "killed"
    point.mkdir()
    options = layer_options(lowers, upper, work, "nfs_export=on")
    done = unionmount("-o", options, point)
    assert (done.returncode, done.stderr) == (0, "")
    (point / "new").mkdir()
    for name, content in FILES.items():
        (point / name).write_text(content)
    (point / "merged").rename(point / "moved")
    paths = {content: point / name.replace("merged", "moved") for name, content in FILES.items()}
    handles = {content: files.file_handle(-1, os.fsencode(path)) for content, path in paths.items()}
    os.kill(json.loads(os.getxattr(point, "user.unionfs.config"))["pid"], signal.SIGKILL)
    deadline = time.monotonic() + LIMIT_S
    while servers(point):
        assert time.monotonic() < deadline, "the server does not end"
        time.sleep(0.01)
    run("umount", point)
    with _mounted("exported", tmp_path) as mount:
        assert {content: mount.read(handle) for content, handle in handles.items()} == {name: name for name in handles}


def test_a_tree_of_some_thousand_files(tmp_path: Path) -> None:
    """Each file is found, and the server forgets with the kernel."""
    lowers, _upper, _work = prepare(tmp_path, 2)
    for number in range(2000):
        directory = lowers[number % 2] / f"d{number % 7}" / f"e{number % 40}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"f{number}").write_text(str(number))
    with _mounted("direct", tmp_path) as mount:
        paths = {path.name[1:]: path for path in mount.point.glob("d*/e*/f*")}
        handles = {content: mount.handle(str(path)) for content, path in paths.items()}
        assert len(handles) == 2000
        for number in range(0, 2000, 50):
            paths[str(number)].rename(mount.point / f"moved{number}")
        mount.forget()
        assert {content: mount.read(handle) for content, handle in handles.items()} == {name: name for name in handles}
        mount.forget()
