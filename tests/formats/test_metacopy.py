"""``overlay.metacopy``: attributes change without a copy of the data, which is found wherever the format says it is."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

import unionfs
from tests.crash import faults
from tests.support.mounts import ROOT, overlayfs_mount, prepare, run, union_mount
from tests.support.probes import requires
from tests.support.trees import assert_same_tree, snapshot
from unionfs.union.mutate import Caller
from unionfs.union.nodes import Node
from unionfs.union.stack import Config, open_stack

from .dialects import Looker, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = requires("root", "fuse", "trusted-xattrs")

METACOPY = "trusted.overlay.metacopy"
REDIRECT = "trusted.overlay.redirect"
KERNEL = "metacopy=on,redirect_dir=on,index=on"
DATA = bytes(range(256)) * 64
BIG_BYTES = 10 << 30


class Stack:
    """One lower layer with files in it, an upper and a workdir."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (self.lower,), self.upper, self.work = prepare(base)
        (self.lower / "directory").mkdir()
        for name in ("file", "other", "directory/file"):
            (self.lower / name).write_bytes(DATA)
            (self.lower / name).chmod(0o644)
        (self.lower / "empty").touch()
        (self.lower / "one").write_bytes(DATA)
        (self.lower / "linked").hardlink_to(self.lower / "one")

    def marked(self, name: str) -> bool:
        """Tell whether the upper's file holds attributes alone."""
        return METACOPY in os.listxattr(self.upper / name)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    """An empty upper over one lower layer."""
    return Stack(tmp_path)


@pytest.fixture
def point(stack: Stack) -> Iterator[Path]:
    """Our mount of it with ``metacopy=on``. At its end the kernel shows the same tree from what we left."""
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work, "metacopy=on") as mounted:
        yield mounted
        ours = snapshot(mounted)
    with overlayfs_mount(stack.base, [stack.lower], stack.upper, stack.work, KERNEL) as mounted:
        assert_same_tree(ours, mounted)


# -- what is copied, and when ----------------------------------------------------------------------------------------


def test_ten_gigabytes(stack: Stack) -> None:
    """chmod, chown and times of 10 GB copy nothing; one changed byte copies all of it, holes as holes."""
    source = stack.lower / "big"
    with source.open("wb") as file:
        for offset in (0, BIG_BYTES // 2, BIG_BYTES - len(DATA)):
            os.pwrite(file.fileno(), DATA, offset)
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work, "metacopy=on") as mounted:
        big = mounted / "big"
        big.chmod(0o600)
        os.chown(big, 1000, 1000)
        os.utime(big, ns=(1, 2))
        os.setxattr(big, "user.x", b"1")
        assert stack.marked("big")
        assert (stack.upper / "big").stat().st_blocks < 64
        assert (big.stat().st_size, big.stat().st_blocks) == (BIG_BYTES, source.stat().st_blocks)
        with big.open("rb") as file:
            assert os.pread(file.fileno(), len(DATA), BIG_BYTES // 2) == DATA
    with overlayfs_mount(stack.base, [stack.lower], stack.upper, stack.work, KERNEL) as mounted:
        state = (mounted / "big").stat()
        assert (state.st_mode & 0o7777, state.st_uid, state.st_size, state.st_mtime_ns) == (0o600, 1000, BIG_BYTES, 2)
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work, "metacopy=on") as mounted:
        with (mounted / "big").open("r+b") as file:
            os.pwrite(file.fileno(), b"X", BIG_BYTES // 2)
        assert not stack.marked("big")
    state = (stack.upper / "big").stat()
    assert (state.st_mode & 0o7777, state.st_uid, state.st_size) == (0o600, 1000, BIG_BYTES)
    assert state.st_blocks * 512 < 1 << 20
    with (stack.upper / "big").open("rb") as file:
        found = [os.pread(file.fileno(), len(DATA), at) for at in (0, BIG_BYTES // 2, BIG_BYTES - len(DATA))]
    assert found == [DATA, b"X" + DATA[1:], DATA]


def test_an_upper_that_lost_the_marks_of_its_directories(stack: Stack) -> None:
    """A copy of one made without attributes of directories: nothing says that there are files without data in it."""
    (stack.upper / "directory").mkdir()
    copy = stack.upper / "directory/file"
    copy.touch()
    os.truncate(copy, len(DATA))
    os.setxattr(copy, METACOPY, b"")
    with overlayfs_mount(stack.base, [stack.lower], stack.upper, stack.work, KERNEL) as mounted:
        assert (mounted / "directory/file").read_bytes() == DATA
    assert "trusted.overlay.impure" not in os.listxattr(stack.upper / "directory")
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work) as mounted:
        assert (mounted / "directory/file").read_bytes() == DATA


def test_it_is_off_unless_asked_for(stack: Stack) -> None:
    """As in the kernel, by default: a layer with such files needs its lower layers for ever."""
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work) as mounted:
        (mounted / "file").chmod(0o600)
    assert (stack.upper / "file").read_bytes() == DATA


def test_a_layer_written_with_it_is_read_and_written_without_it(stack: Stack) -> None:
    """The option is about what is written, not about what is understood."""
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work, "metacopy=on") as mounted:
        (mounted / "file").chmod(0o600)
        (mounted / "other").chmod(0o600)
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work) as mounted:
        assert (mounted / "file").read_bytes() == DATA
        with (mounted / "other").open("ab") as file:
            file.write(b"more")
    assert (stack.marked("file"), stack.marked("other")) == (True, False)
    assert (stack.upper / "other").read_bytes() == DATA + b"more"


def test_files_without_data_or_with_several_names_are_copied_whole(stack: Stack, point: Path) -> None:
    """There is nothing to save in an empty file, and a file with links has its copy in the index."""
    for name in ("empty", "linked"):
        (point / name).chmod(0o600)
        assert not stack.marked(name)


# -- open files ------------------------------------------------------------------------------------------------------


def test_a_descriptor_sees_attributes_and_data_change(stack: Stack, point: Path) -> None:
    """What was opened before any copy follows both of them: first the attributes, then the data."""
    with (point / "file").open("rb") as early:
        assert early.read(4) == DATA[:4]
        (point / "file").chmod(0o640)
        assert os.fstat(early.fileno()).st_mode & 0o7777 == 0o640
        os.fchown(early.fileno(), 7, 8)
        with (point / "file").open("rb") as between, (point / "file").open("r+b") as writer:
            assert between.read() == DATA
            os.pwrite(writer.fileno(), b"new", 10)
            assert os.pread(early.fileno(), 3, 10) == os.pread(between.fileno(), 3, 10) == b"new"
        state = os.fstat(early.fileno())
        assert (state.st_mode & 0o7777, state.st_uid, state.st_gid) == (0o640, 7, 8)
    assert not stack.marked("file")


def test_a_mapping_sees_the_data_change(point: Path) -> None:
    """A shared mapping of a file whose attributes alone were copied shows what is written through another."""
    (point / "file").chmod(0o600)
    with (point / "file").open("rb") as reader, mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as seen:
        assert seen[:4] == DATA[:4]
        with (point / "file").open("r+b") as writer, mmap.mmap(writer.fileno(), 0) as changed:
            changed[:4] = b"new!"
            changed.flush()
        assert seen[:4] == b"new!"


def test_an_open_file_outlives_its_name(stack: Stack, point: Path) -> None:
    """Removed after its attributes were copied, an open file is still read, changed and written."""
    (point / "file").chmod(0o600)
    with (point / "file").open("r+b") as file, (point / "other").open("rb") as reader:
        (point / "other").chmod(0o600)
        (point / "file").unlink()
        (point / "other").unlink()
        assert reader.read() == DATA
        os.fchmod(file.fileno(), 0o640)
        os.pwrite(file.fileno(), b"new", 0)
        assert os.pread(file.fileno(), len(DATA), 0) == b"new" + DATA[3:]
        os.fchmod(reader.fileno(), 0o604)
        assert os.fstat(reader.fileno()).st_mode & 0o7777 == 0o604
    assert set(os.listdir(stack.work / "work")) <= {"#whiteout"}


def test_truncation(stack: Stack, point: Path) -> None:
    """Emptying a file copies nothing; cutting it does. No zeros are left behind either way."""
    for name in ("file", "other", "directory/file"):
        (point / name).chmod(0o600)
    (point / "file").write_bytes(b"")
    os.truncate(point / "other", 100)
    (point / "directory/file").write_bytes(b"short")
    found = [(stack.upper / name).read_bytes() for name in ("file", "other", "directory/file")]
    assert found == [b"", DATA[:100], b"short"]
    assert not any(stack.marked(name) for name in ("file", "other", "directory/file"))


def test_attributes_survive_the_copy_of_the_data(stack: Stack, point: Path) -> None:
    """Owner, set-id bits, capabilities, times and xattrs are as before a write that has not happened yet."""
    file = point / "file"
    os.chown(file, 1000, 1000)
    capability = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    os.setxattr(file, "security.capability", capability)
    os.setxattr(file, "user.x", b"1")
    os.utime(file, ns=(10**18, 10**18 + 1))
    assert stack.marked("file")
    before = file.stat()
    with file.open("r+b"):
        pass
    after = file.stat()
    assert not stack.marked("file")
    assert before == after
    assert before.st_mtime_ns == (stack.upper / "file").stat().st_mtime_ns == 10**18 + 1
    assert os.getxattr(file, "security.capability") == capability
    assert os.getxattr(file, "user.x") == b"1"


def test_no_room_for_the_data(stack: Stack) -> None:
    """A copy that fails leaves the file as it was: its data below, the writable layer no fuller than before."""
    (stack.lower / "large").write_bytes(DATA * 512)
    room = stack.base / "room"
    room.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=1m", "room", room)
    try:
        for name in ("upper", "work"):
            (room / name).mkdir()
        with union_mount(stack.base, [stack.lower], room / "upper", room / "work", "metacopy=on") as mounted:
            (mounted / "large").chmod(0o600)
            used = os.statvfs(room).f_bfree
            with pytest.raises(OSError, match="No space left"), (mounted / "large").open("r+b") as file:
                file.write(b"new")
            assert os.statvfs(room).f_bfree == used
            assert (mounted / "large").read_bytes() == DATA * 512
            assert (mounted / "large").stat().st_mode & 0o7777 == 0o600
        assert METACOPY in os.listxattr(room / "upper/large")
    finally:
        run("umount", room)


def test_others_go_on_while_data_is_copied(stack: Stack) -> None:
    """During a long copy, attributes are shown as they were, changes of them wait, and none is lost."""
    source = stack.lower / "large"
    source.write_bytes(DATA * 4096)
    os.utime(source, ns=(10**18, 10**18))
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work, "metacopy=on") as mounted:
        large = mounted / "large"
        large.chmod(0o600)
        before = large.stat()
        seen = set()
        with subprocess.Popen([sys.executable, "-c", "import sys; open(sys.argv[1], 'r+b').close()", large]) as writer:
            while writer.poll() is None:
                state = large.stat()
                seen.add((state.st_size, state.st_mtime_ns, state.st_mode & 0o7777))
                with large.open("rb") as file:
                    assert os.pread(file.fileno(), 8, len(DATA) * 2000) == DATA[:8]
            assert writer.returncode == 0
        os.chown(large, 7, 7)
        after = large.stat()
    assert seen <= {(len(DATA) * 4096, 10**18, 0o600)}
    assert (after.st_ino, after.st_mtime_ns, after.st_uid) == (before.st_ino, 10**18, 7)
    assert not stack.marked("large")
    assert (stack.upper / "large").read_bytes() == DATA * 4096


def test_a_death_before_every_system_call(tmp_path: Path) -> None:
    """Attributes are old or new, data is what it was, and the file has one name, whenever the server dies."""

    def work(place: Path, begin: Callable[[], None]) -> None:
        paths = [os.fsencode(place / name) for name in ("lower0", "upper", "work")]
        stack = open_stack(Config(paths[:1], *paths[1:], metacopy=True), own_process=False)
        edit, renames, root = stack.writable(), stack.renames, stack.view.nodes.root
        node = edit.child(root, b"file")
        assert isinstance(node, Node)
        assert renames is not None
        begin()
        edit.chmod(node, 0o600)
        renames.rename((root, b"file"), (edit.mkdir(root, b"d", 0o755, Caller(0, 0))[0], b"moved"))
        edit.change(node)
        stack.close()

    number, ended = 1, False
    while not ended:
        place = tmp_path / str(number)
        (lower,), upper, _ = prepare(place)
        (lower / "file").write_bytes(DATA)
        (lower / "file").chmod(0o640)
        ended, calls = faults.run(partial(work, place), number)
        with unionfs.Union(lower=[upper, lower]) as union:
            names = [name for name in ("/file", "/d/moved") if union.exists(name)]
            found = [(union.read_bytes(name), union.stat(name).st_mode & 0o7777) for name in names]
        assert found in ([(DATA, 0o640)], [(DATA, 0o600)]), f"a death at call {number}"
        number += 1
    assert calls.index(faults.BEGIN) + 20 < len(calls)
    assert found == [(DATA, 0o600)]


# -- names -----------------------------------------------------------------------------------------------------------


def test_a_renamed_file_finds_its_data(stack: Stack, point: Path) -> None:
    """A redirect says where the data stays, however often the file and its directories move."""
    (point / "file").rename(point / "moved")
    (point / "moved").chmod(0o600)
    (point / "moved").rename(point / "directory/moved")
    (point / "directory").rename(point / "elsewhere")
    (point / "elsewhere/file").chmod(0o600)
    (point / "elsewhere/file").rename(point / "file")
    assert os.getxattr(stack.upper / "elsewhere/moved", REDIRECT) == b"/file"
    assert os.getxattr(stack.upper / "file", REDIRECT) == b"/directory/file"
    assert (point / "file").read_bytes() == (point / "elsewhere/moved").read_bytes() == DATA
    with (point / "file").open("ab") as file:
        file.write(b"more")
    assert {METACOPY, REDIRECT}.isdisjoint(os.listxattr(stack.upper / "file"))


def test_a_redirect_that_would_be_too_long(stack: Stack) -> None:
    """Where no redirect can say it, a rename copies the data."""
    deep = "/".join(["d" * 100] * 3)
    write(stack.lower, {f"{deep}/file": "0"})
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work, "metacopy=on") as mounted:
        (mounted / deep / "file").chmod(0o600)
        assert stack.marked(f"{deep}/file")
        (mounted / deep / "file").rename(mounted / "here")
        assert (mounted / "here").read_text() == "0"
    assert (stack.upper / "here").read_text() == "0"


def test_a_link_and_an_exchange(point: Path) -> None:
    """Both names of a link, and both sides of an exchange, keep their data."""
    (point / "file").chmod(0o600)
    (point / "directory/link").hardlink_to(point / "file")
    (point / "other").write_bytes(b"other")
    (point / "other").rename(point / "file")
    assert ((point / "directory/link").read_bytes(), (point / "file").read_bytes()) == (DATA, b"other")


def test_a_directory_copied_whole_takes_the_data_along(stack: Stack) -> None:
    """In a dialect without redirects, a rename of a directory leaves nothing below that the files in it would need."""
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work, "metacopy=on") as mounted:
        (mounted / "directory/file").chmod(0o600)
    with union_mount(stack.base, [stack.lower], stack.upper, stack.work, "whiteouts=oci") as mounted:
        (mounted / "directory").rename(mounted / "moved")
        assert (mounted / "moved/file").read_bytes() == DATA
    assert (stack.upper / "moved/file").read_bytes() == DATA


# -- layers of attributes --------------------------------------------------------------------------------------------


def test_several_layers_of_attributes(tmp_path: Path) -> None:
    """Attributes come from the topmost layer, data from the lowest, through moves in between."""
    layers = [tmp_path / f"layer{number}" for number in range(4)]
    for number, layer in enumerate(layers):
        layer.mkdir()
        (tmp_path / f"work{number}").mkdir()
    write(layers[3], {"d/file": "0", "d/e/file": "1"})
    steps = (("d/file", "d/moved", 0o600), ("d/moved", "d/e/moved", 0o640), ("d/e/moved", "top", 0o604))
    for number, (old, new, mode) in zip((2, 1, 0), steps, strict=True):
        options = f"{KERNEL},index=off"
        with overlayfs_mount(tmp_path, layers[number + 1 :], layers[number], tmp_path / f"work{number}", options) as at:
            (at / old).chmod(mode)
            (at / old).rename(at / new)
    assert all(METACOPY in os.listxattr(layers[number] / name) for number, name in ((0, "top"), (2, "d/moved")))
    with union_mount(tmp_path, layers) as mounted:
        assert (mounted / "top").stat().st_mode & 0o7777 == 0o604
        assert Looker(mounted).tree() == {"top": "0", "d/": "", "d/e/": "", "d/e/file": "1"}
        ours = snapshot(mounted)
    with overlayfs_mount(tmp_path, layers, options="metacopy=on") as mounted:
        assert_same_tree(ours, mounted)
    with union_mount(tmp_path, layers[1:], layers[0], tmp_path / "work0") as mounted:
        with (mounted / "top").open("a") as file:
            file.write("more")
        assert (mounted / "top").read_text() == "0more"
    assert (layers[0] / "top").read_text() == "0more"


@pytest.mark.parametrize("between", ["whiteout", "directory", "nothing", "symlink"])
def test_data_that_is_not_there(tmp_path: Path, between: str) -> None:
    """Without data a file has attributes, and reading it is an error: zeros would be a lie."""
    layers = [tmp_path / f"layer{number}" for number in range(3)]
    for layer in layers:
        layer.mkdir()
    _bare(layers[0] / "file", 5)
    if between != "nothing":
        (layers[2] / "file").write_text("wrong")
    if between == "whiteout":
        os.mknod(layers[1] / "file", 0o020000, 0)
    elif between == "directory":
        (layers[1] / "file").mkdir()
    elif between == "symlink":
        (layers[1] / "file").symlink_to("other")
    with unionfs.Union(lower=layers) as union:
        assert union.stat("/file").st_size == 5
        with pytest.raises(OSError, match="in none of the layers") as caught:
            union.read_text("/file")
        assert caught.value.errno == errno.EIO
        assert union.listdir("/") == ["file"]


def _bare(path: Path, size: int, *, redirect: str | None = None, prefix: str = "trusted") -> None:
    """Make a file that has attributes alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)
    os.setxattr(path, f"{prefix}.overlay.metacopy", b"")
    if redirect is not None:
        os.setxattr(path, f"{prefix}.overlay.redirect", redirect.encode())


# -- data-only layers ------------------------------------------------------------------------------------------------


@pytest.fixture
def objects(tmp_path: Path) -> list[Path]:
    """A layer of attributes, and two of data, as image builders make them (mkcomposefs)."""
    made = [tmp_path / name for name in ("names", "data1", "data2")]
    for layer in made:
        layer.mkdir()
    for name, redirect in {"a": "/aa/1", "d/b": "/bb/2", "both": "/cc/3", "missing": "/none"}.items():
        _bare(made[0] / name, 3, redirect=redirect)
    write(made[0], {"plain": "own"})
    write(made[1], {"aa/1": "one", "cc/3": "top", "shown": "no"})
    write(made[2], {"bb/2": "two", "cc/3": "low"})
    return made


@pytest.mark.parametrize("reader", ["ours", "kernel"])
def test_data_only_layers(tmp_path: Path, objects: list[Path], reader: str) -> None:
    """Their names show nowhere; the first one that has the data gives it."""
    lowerdir = f"{objects[0]}::{objects[1]}::{objects[2]}"
    mount = union_mount if reader == "ours" else overlayfs_mount
    with mount(tmp_path, [], options=f"lowerdir={lowerdir},metacopy=on") as mounted:
        looker = Looker(mounted)
        assert looker.names() == ["a", "both", "d", "missing", "plain"]
        found = {name: looker.read(name) for name in ("a", "both", "d/b", "plain")}
        assert found == {"a": "one", "both": "top", "d/b": "two", "plain": "own"}
        assert looker.stat("missing").st_size == 3
        with pytest.raises(OSError, match=r"error|No such"):
            looker.read("missing")


def test_data_only_layers_below_a_writable_one(tmp_path: Path, objects: list[Path]) -> None:
    """Attributes change without the data, data with it, and the kernel shows the same."""
    _, upper, work = prepare(tmp_path)
    layers = f"lowerdir={objects[0]}::{objects[1]}::{objects[2]},upperdir={upper},workdir={work}"
    with union_mount(tmp_path, [], options=f"{layers},metacopy=on") as mounted:
        (mounted / "missing").unlink()
        (mounted / "a").chmod(0o600)
        (mounted / "d/b").rename(mounted / "b")
        with (mounted / "both").open("a") as file:
            file.write("more")
        ours, tree = snapshot(mounted), Looker(mounted).tree()
    assert tree == {"a": "one", "b": "two", "both": "topmore", "d/": "", "plain": "own"}
    with overlayfs_mount(tmp_path, [], options=f"{layers},{KERNEL}") as mounted:
        assert_same_tree(ours, mounted)


@pytest.mark.parametrize("redirect", ["/aa/../aa/1", "/link", "/loop/1", "/aa", "relative", "/"])
def test_a_redirect_leads_nowhere_but_into_the_layer(objects: list[Path], tmp_path: Path, redirect: str) -> None:
    """Links, dots and directories are no data; nothing outside of a layer can be reached."""
    (objects[1] / "link").symlink_to(tmp_path / "secret")
    (objects[1] / "loop").symlink_to("aa")
    (tmp_path / "secret").write_text("secret")
    _bare(objects[0] / "bad", 3, redirect=redirect)
    options = f"lowerdir={objects[0]}::{objects[1]}"
    with union_mount(tmp_path, [], options=options) as mounted, pytest.raises(OSError, match="error"):
        (mounted / "bad").read_bytes()


@pytest.mark.parametrize("lowerdir", ["A::", "::A", "A::B:C", "A:", "A:::B", ""])
def test_layers_that_are_named_wrongly(tmp_path: Path, lowerdir: str) -> None:
    """An empty name is a mistake, and no layer that shows can stand below one that does not."""
    for name in "ABC":
        (tmp_path / name).mkdir()
    words = [sys.executable, "-m", "unionfs.cli.main", "-o", f"lowerdir={lowerdir}", "point"]
    (tmp_path / "point").mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("unionmount: ")


# -- attributes that an owner can set himself ------------------------------------------------------------------------


def test_an_owner_cannot_point_at_what_he_may_not_read(tmp_path: Path) -> None:
    """Who owns a file can set its ``user.*``: followed by root, they would open any file of the lower layers to him."""
    (lower, top), _, _ = prepare(tmp_path, 2)
    lower, top = top, lower
    write(lower, {"secret": "secret", "private/file": "secret"})
    _bare(top / "mine", 6, redirect="/secret", prefix="user")
    (top / "open").mkdir()
    os.setxattr(top / "open", "user.overlay.redirect", b"/private")
    with unionfs.Union(lower=[top, lower]) as union:
        assert union.listdir("/open") == []
        with pytest.raises(OSError, match="in none of the layers"):
            union.read_text("/mine")


@requires("user-xattrs", "userns")
def test_without_privilege_they_are_followed(tmp_path: Path) -> None:
    """A server that can read no more than its user may follow what the user has set."""
    (top, lower), _, _ = prepare(tmp_path, 2)
    write(lower, {"data": "data42", "old/file": "0"})
    _bare(top / "mine", 6, redirect="/data", prefix="user")
    (top / "new").mkdir()
    os.setxattr(top / "new", "user.overlay.redirect", b"/old")
    script = (
        "import sys, unionfs; u = unionfs.Union(lower=sys.argv[1:]); print(u.read_text('/mine'), u.listdir('/new'))"
    )
    script += "; u.close()"
    done = run("unshare", "--user", "--map-root-user", sys.executable, "-c", script, top, lower)
    assert done.stdout == "data42 ['file']\n"


@requires("user-xattrs")
@pytest.mark.parametrize("reader", ["ours", "kernel"])
def test_into_data_only_layers_they_are_followed(tmp_path: Path, objects: list[Path], reader: str) -> None:
    """Whoever names a layer for its data alone means it to be read (Linux 6.16)."""
    _bare(objects[0] / "mine", 3, redirect="/aa/1", prefix="user")
    if reader == "ours":
        with union_mount(tmp_path, [], options=f"lowerdir={objects[0]}::{objects[1]}") as mounted:
            assert (mounted / "mine").read_text() == "one"
        return
    with overlayfs_mount(tmp_path, [], options=f"userxattr,lowerdir={objects[0]}::{objects[1]}") as mounted:
        try:
            assert (mounted / "mine").read_text() == "one"
        except PermissionError:
            pytest.skip("this kernel follows no user.overlay.redirect")
