"""The methods of a union, one by one: what they do to which layer, in every dialect."""

from __future__ import annotations

import errno
import functools
import itertools
import os
import stat
import threading
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest

import unionfs
from tests.conformance.cases.xattrs import acl
from tests.support.probes import requires
from unionfs import errors, ondisk
from unionfs.layers.layer import Layer
from unionfs.layers.writable import WritableLayer
from unionfs.syscalls import files, mounts
from unionfs.union.nodes import Node
from unionfs.union.stack import Config, open_stack

from .expect import fails

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.union.conftest import Layers
    from unionfs.ondisk import Dialect


@pytest.fixture
def filled(layers: Layers, dialect: Dialect) -> Layers:
    """Something in each layer, in every dialect."""
    layers.write(
        {"0/both": "0", "1/both": "1", "0/a/x": "0x", "1/a/x": "1x", "1/a/y": "1y", "2/a/z": "2z", "2/b/c/d": "d"}
    )
    (layers.lowers[2] / "link").symlink_to("a/x")
    (layers.lowers[2] / "b" / "run").write_bytes(b"#!\n")
    (layers.lowers[2] / "b" / "run").chmod(0o4755)
    os.utime(layers.lowers[2] / "b" / "run", ns=(5, 1_000_000_000_123_456_789))
    return layers


# -- reading -----------------------------------------------------------------------------------------------------------


def test_links_of_a_directory(filled: Layers) -> None:
    """One where several layers make it up, of which none knows how many directories there are; else those it has."""
    own = [os.stat(filled.lowers[2] / name).st_nlink for name in ("b", "b/c")]
    with filled.union() as union:
        for _ in "before they are entered", "after":
            assert [union.stat(name).st_nlink for name in ("/", "a", "b", "b/c")] == [1, 1, *own]
            assert list(union.walk("/"))


def test_the_topmost_layer_decides(filled: Layers) -> None:
    """And directories merge."""
    with filled.union() as union:
        assert union.read_text("both") == "0"
        assert sorted(union.listdir("a")) == ["x", "y", "z"]
        assert sorted(union.listdir("/")) == ["a", "b", "both", "link"]


def test_kinds(filled: Layers) -> None:
    """What pathlib asks."""
    with filled.union() as union:
        assert (union.is_dir("a"), union.is_file("a"), union.is_symlink("a"), union.exists("a")) == (
            True,
            False,
            False,
            True,
        )
        assert (union.is_dir("link"), union.is_file("link"), union.is_symlink("link")) == (False, True, True)
        assert (union.exists("none"), union.exists("a/x/none"), union.is_dir("none")) == (False, False, False)
        assert union.readlink("link") == "a/x"
        assert union.readlink(b"link") == b"a/x"
        with fails(errno.EINVAL):
            union.readlink("a")


def test_attributes_are_those_of_the_file(filled: Layers) -> None:
    """Only device, inode and link count may differ."""
    real = os.stat(filled.lowers[2] / "b" / "run")
    with filled.union() as union:
        shown = union.stat("b/run")
        assert shown.st_mtime_ns == 1_000_000_000_123_456_789
        for field in ("st_mode", "st_size", "st_uid", "st_gid", "st_mtime_ns", "st_blocks", "st_blksize", "st_mtime"):
            assert getattr(shown, field) == getattr(real, field)
        assert stat.S_ISLNK(union.lstat("link").st_mode)
        assert {union.stat(path).st_dev for path in ("/", "both", "a/z", "b/c/d")} == {shown.st_dev}


def test_inode_numbers_are_the_same_in_every_way(filled: Layers) -> None:
    """In a listing, by name, after copy-up, and in a union opened anew."""
    with filled.union() as union:
        before = {entry.name: entry.inode() for entry in union.scandir("a")}
        assert before == {name: union.stat(f"a/{name}").st_ino for name in before}
        assert len(set(before.values())) == 3
        union.chmod("a/y", 0o600)
        assert union.stat("a/y").st_ino == before["y"]
        assert {entry.name: entry.inode() for entry in union.scandir("a")} == before


def test_no_two_nodes_have_one_id(filled: Layers) -> None:
    """Whatever number they show: 0, or one that is taken."""
    with filled.union() as union:
        nodes = union._stack.view.nodes
        for name, ino in ((b"1", 77), (b"2", 77), (b"3", 0), (b"4", 0)):
            node = Node(0, nodes.root, name, ino)
            nodes.identify(node, ino)
            assert node.id not in (0, *nodes.by_id)
            nodes.attach(node)


def test_scandir_walk_and_glob(filled: Layers) -> None:
    """As their namesakes do."""
    with filled.union() as union:
        with union.scandir("/") as entries:
            kinds = {entry.name: (entry.is_dir(), entry.is_file(), entry.is_symlink()) for entry in entries}
        assert kinds["a"] == (True, False, False)
        assert kinds["link"] == (False, True, True)
        assert {entry.path for entry in union.scandir(b"/b")} == {b"/b/c", b"/b/run"}
        assert next(entry.stat().st_size for entry in union.scandir("b") if entry.name == "run") == 3
        tree = {path: (sorted(directories), sorted(names)) for path, directories, names in union.walk("/")}
        assert tree == {
            "/": (["a", "b"], ["both", "link"]),
            "/a": ([], ["x", "y", "z"]),
            "/b": (["c"], ["run"]),
            "/b/c": ([], ["d"]),
        }
        assert [path for path, _, _ in union.walk("/", topdown=False)][-1] == "/"
        assert sorted(map(str, union.glob("a/[xy]"))) == ["/a/x", "/a/y"]
        assert sorted(map(str, union.glob("**/d"))) == ["/b/c/d"]
        assert sorted(map(str, union.glob("*/*"))) == ["/a/x", "/a/y", "/a/z", "/b/c", "/b/run"]
        assert list(union.iterdir("b/c")) == [PurePosixPath("b/c/d")]


def test_a_lookup_goes_on_with_the_listing_that_was_begun(filled: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the layers of a directory hold is read once for both."""
    read: list[int] = []
    original = Layer.open_listing

    def open_listing(layer: Layer, directory: int) -> int:
        read.append(layer.index)
        return original(layer, directory)

    monkeypatch.setattr(Layer, "open_listing", open_listing)
    with filled.union() as union:
        view = union._stack.view
        listing = view.listing(view.nodes.root)
        assert listing.reaches(0)
        assert view.lookup(view.nodes.root, b"a") is not None
        listing.finish()
    assert sorted(read) == [0, 1, 2, 3]


def test_walk_can_be_pruned_and_passes_errors_over(filled: Layers) -> None:
    """What the caller takes out of the list of directories is not entered."""
    seen: list[str] = []
    problems: list[OSError] = []
    with filled.union() as union:
        for path, directories, _ in union.walk("/"):
            seen.append(path)
            directories[:] = [name for name in directories if name != "b"]
        assert seen == ["/", "/a"]
        assert list(union.walk("/none", onerror=problems.append)) == []
    assert [type(problem) for problem in problems] == [FileNotFoundError]


# -- opening -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["r", "rb", "rt", "r+", "r+b", "w", "wb", "w+", "a", "ab", "a+", "x", "xb"])
def test_open_does_what_the_builtin_does(filled: Layers, tmp_path: Path, mode: str) -> None:
    """The same content before and after, the same position, the same type, the same errors."""
    model = tmp_path / "model"
    with filled.union() as union:
        for name in ("a/y", "new"):
            if union.exists(name):
                model.write_bytes(union.read_bytes(name))
            else:
                model.unlink(missing_ok=True)
            assert _use(functools.partial(union.open, name), mode) == _use(model.open, mode)
            assert union.exists(name) == model.exists()
            if model.exists():
                assert union.read_bytes(name) == model.read_bytes()


def _use(opener: Callable[[str], Any], mode: str) -> object:
    try:
        with opener(mode) as file:
            start = file.tell()
            data: Any = b"data" if "b" in mode else "data"
            told = file.write(data) if file.writable() else file.read()
            return type(file), start, told, file.readable(), file.writable()
    except OSError as error:
        return error.errno


def test_reading_copies_nothing(filled: Layers) -> None:
    """The upper stays empty until something changes."""
    with filled.union() as union:
        union.read_text("a/x")
        list(union.walk("/"))
        with pytest.raises(IsADirectoryError):
            union.open("a", "w")
        assert os.listdir(filled.upper) == []


def test_writing_copies_up_all_but_the_lower_file(filled: Layers) -> None:
    """Mode, owner, times of the directories above; and the lower file is untouched (see the fixture)."""
    with filled.union() as union:
        with union.open("b/run", "ab") as file:
            file.write(b"more")
        assert union.read_bytes("b/run") == b"#!\nmore"
    copy = filled.upper / "b" / "run"
    assert copy.read_bytes() == b"#!\nmore"
    assert (filled.upper / "b").stat().st_mtime_ns == (filled.lowers[2] / "b").stat().st_mtime_ns


def test_what_was_open_before_the_copy_up_goes_on(filled: Layers) -> None:
    """On the lower file's data, as documented."""
    with filled.union() as union, union.open("a/x") as before:
        union.write_text("a/x", "changed")
        assert before.read() == "0x"
        assert union.read_text("a/x") == "changed"


def test_a_file_object_is_a_real_file(filled: Layers) -> None:
    """With a descriptor for everything that takes one, and the name that it was opened by."""
    with filled.union() as union, union.open("a/x", "rb") as file:
        assert os.pread(file.fileno(), 10, 1) == b"x"
        assert file.name == "a/x"
        assert not os.get_inheritable(file.fileno())


def test_text_has_encodings(filled: Layers) -> None:
    """As pathlib has them."""
    with filled.union() as union:
        assert union.write_text("text", "é\n", encoding="latin-1", newline="\r\n") == 2
        assert union.read_bytes("text") == b"\xe9\r\n"
        assert union.read_text("text", encoding="latin-1") == "é\n"
        assert union.read_text("text", encoding="ascii", errors="replace") == "\ufffd\n"
        assert union.write_bytes("data", b"\0\1") == 2


def test_the_ends_of_a_fifo_meet(filled: Layers) -> None:
    """To wait for the other end must not keep the other end out."""
    with filled.union() as union:
        union.mkfifo("fifo")
        writer = threading.Thread(target=lambda: union.write_text("fifo", "through"))
        writer.start()
        assert union.read_text("fifo") == "through"
        writer.join()


# -- changes -----------------------------------------------------------------------------------------------------------


def test_directories(filled: Layers) -> None:
    """Made, removed, made again: empty, whatever is below."""
    with filled.union() as union:
        union.mkdir("a/sub/deep", parents=True)
        union.mkdir("a/sub", exist_ok=True)
        with pytest.raises(FileExistsError):
            union.mkdir("a")
        with pytest.raises(FileExistsError):
            union.mkdir("both", exist_ok=True)
        with pytest.raises(FileNotFoundError):
            union.mkdir("none/sub")
        with fails(errno.ENOTEMPTY):
            union.rmdir("b")
        union.rmtree("b")
        union.mkdir("b/", 0o700)
        assert union.listdir("b") == []
        assert stat.S_IMODE(union.stat("b").st_mode) == 0o700
    with filled.union() as union:
        assert union.listdir("b") == []


def test_removal(filled: Layers) -> None:
    """Gone, also when opened again; the lower one does not come back when it is made again and removed."""
    with filled.union() as union:
        union.unlink("a/x")
        union.remove("link")
        union.unlink("none", missing_ok=True)
        with pytest.raises(FileNotFoundError):
            union.unlink("a/x")
        with pytest.raises(IsADirectoryError):
            union.unlink("a")
        with pytest.raises(NotADirectoryError):
            union.rmdir("both")
        union.write_text("a/x", "again")
        union.unlink("a/x")
    with filled.union() as union:
        assert sorted(union.listdir("a")) == ["y", "z"]
        assert not union.is_symlink("link")


@pytest.mark.parametrize(
    ("path", "number"), [("/", errno.EBUSY), (".", errno.EINVAL), ("a/.", errno.EINVAL), ("a/..", errno.ENOTEMPTY)]
)
def test_what_is_no_name_cannot_be_removed(filled: Layers, path: str, number: int) -> None:
    """As rmdir(2) says."""
    with filled.union() as union:
        with fails(number):
            union.rmdir(path)
        with pytest.raises(IsADirectoryError):
            union.unlink(path)


def test_renames(filled: Layers) -> None:
    """Files, merged directories, over something, into themselves."""
    with filled.union() as union:
        union.rename("a/x", "b/x")
        union.rename("a", "moved")
        union.replace("both", "moved/y")
        assert sorted(union.listdir("moved")) == ["y", "z"]
        assert union.read_text("moved/y") == "0"
        union.rename("moved/", "b/moved/")
        for source, target, number in (
            ("b", "b/c/in", errno.EINVAL),
            ("b/c/d", "b", errno.ENOTEMPTY),
            ("b/run", "b/c", errno.EISDIR),
            ("b/c", "b/run", errno.ENOTDIR),
            ("b/c", "b/moved", errno.ENOTEMPTY),
            ("none", "x", errno.ENOENT),
            ("/", "x", errno.EBUSY),
            ("b/run/", "x", errno.ENOTDIR),
        ):
            with fails(number):
                union.rename(source, target)
    with filled.union() as union:
        assert sorted(union.listdir("/")) == ["b", "link"]
        assert union.read_text("b/moved/z") == "2z"
        assert union.read_text("b/x") == "0x"


def test_links_share_one_file(filled: Layers) -> None:
    """A link to a lower file, and what was several names below, stay one file through a copy-up."""
    os.link(filled.lowers[2] / "b" / "c" / "d", filled.lowers[2] / "same")
    with filled.union() as union:
        union.link("a/y", "hard")
        union.hardlink_to("harder", "hard")
        union.write_text("same", "changed")
        union.write_text("harder", "all")
        assert union.read_text("b/c/d") == "changed"
        assert union.stat("b/c/d").st_nlink == 2
        assert (union.read_text("a/y"), union.stat("hard").st_nlink) == ("all", 3)
        with pytest.raises(PermissionError):
            union.link("a", "directory")
    with filled.union() as union:
        assert union.read_text("same") == union.read_text("b/c/d") == "changed"
        assert union.stat("same").st_ino == union.stat("b/c/d").st_ino
        union.unlink("same")
        union.unlink("b/c/d")


def test_a_link_count_that_cannot_be_written(filled: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one before holds until another can be written, though links were added by then and the file was forgotten."""
    for name in ("same", "b/same"):
        os.link(filled.lowers[2] / "b" / "c" / "d", filled.lowers[2] / name)
    with filled.union() as union:
        union.write_text("same", "changed")
        with monkeypatch.context() as patch, fails(errno.EIO):
            patch.setattr(WritableLayer, "mark", _refuse_counts)
            union.unlink("b/same")
        for node in list(union._stack.view.nodes.by_id.values()):
            union._stack.view.nodes.forget(node, 0)
        assert union.stat("b/c/d").st_nlink == 3
        union.unlink("b/same")
        assert union.stat("b/c/d").st_nlink == 2


def _refuse_counts(_layer: WritableLayer, _directory: int, _name: bytes, marker: bytes, _value: bytes) -> bool:
    assert marker == ondisk.NLINK
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_inode_numbers_outlive_an_exchange(filled: Layers, dialect: Dialect) -> None:
    """A directory that had none gets the mark that its files may be copies of lower ones."""
    with filled.union() as union:
        union.chmod("b/run", 0o700)
        union.mkdir("made")
        union.touch("made/file")
        number = union.stat("b/run").st_ino
        stack, places = union._stack, [union._locate(path, follow=False) for path in ("made/file", "b/run")]
        one, other = ((place.parent, place.name) for place in places)
        assert stack.renames is not None
        stack.renames.rename(one, other, files.RENAME_EXCHANGE)
    with filled.union() as union:
        assert (union.stat("made/file").st_ino == number) is (dialect.prefix is not None)


def test_symlinks(filled: Layers) -> None:
    """In both orders of arguments; what is followed and what is not."""
    with filled.union() as union:
        union.symlink("a/z", "one")
        union.symlink_to("two", b"a/\xff")
        assert (union.readlink("one"), union.readlink(b"two")) == ("a/z", b"a/\xff")
        union.utime("one", ns=(1, 2), follow_symlinks=False)
        assert union.lstat("one").st_mtime_ns == 2
        assert union.stat("one").st_mtime_ns != 2
        union.chmod("one", 0o640)
        assert stat.S_IMODE(union.stat("a/z").st_mode) == 0o640
        union.utime("link", ns=(3, 4), follow_symlinks=False)
        assert union.readlink("link") == "a/x"


def test_times(filled: Layers) -> None:
    """In seconds, nanoseconds, now; before 1970 and after 2038."""
    with filled.union() as union:
        union.utime("both", (1.5, 2.25))
        assert union.stat("both").st_mtime == 2.25
        union.utime("both", ns=(-1, (1 << 32) * 10**9 + 7))
        assert (union.stat("both").st_atime_ns, union.stat("both").st_mtime_ns) == (-1, (1 << 32) * 10**9 + 7)
        union.touch("both")
        assert union.stat("both").st_mtime < 1 << 32
        union.touch("new", 0o600)
        assert stat.S_IMODE(union.stat("new").st_mode) == 0o600
        with pytest.raises(FileExistsError):
            union.touch("new", exist_ok=False)
        with pytest.raises(ValueError, match="not both"):
            union.utime("both", (1, 2), ns=(1, 2))


def test_truncate(filled: Layers) -> None:
    """Shorter, longer, empty; nothing but files."""
    with filled.union() as union:
        union.truncate("a/y", 1)
        assert union.read_bytes("a/y") == b"1"
        union.truncate("a/y", 4)
        assert union.read_bytes("a/y") == b"1\0\0\0"
        union.truncate("both", 0)
        assert union.read_bytes("both") == b""
        union.mkfifo("fifo")
        for path, length, number in (("a", 0, errno.EISDIR), ("fifo", 0, errno.EINVAL), ("both", -1, errno.EINVAL)):
            with fails(number):
                union.truncate(path, length)


def test_extended_attributes(filled: Layers) -> None:
    """Those of the layers' format are out of reach, and those of the same name of a program are kept apart."""
    with filled.union() as union:
        union.setxattr("a", "user.comment", b"one")
        union.setxattr("a", b"user.overlay.opaque", b"y")
        assert union.getxattr("a", b"user.comment") == b"one"
        assert set(union.listxattr("a")) == {"user.comment", "user.overlay.opaque"}
        assert sorted(union.listdir("a")) == ["x", "y", "z"]
        with pytest.raises(FileExistsError):
            union.setxattr("a", "user.comment", b"two", os.XATTR_CREATE)
        union.removexattr("a", "user.comment")
        with fails(errno.ENODATA):
            union.getxattr("a", "user.comment")
    with filled.union() as union:
        assert union.listxattr("a") == ["user.overlay.opaque"]
        assert sorted(union.listdir("a")) == ["x", "y", "z"]


@pytest.mark.parametrize(("says", "told"), [(errno.EOPNOTSUPP, errno.ENODATA), (errno.EIO, errno.EIO)])
def test_an_acl_that_cannot_be_had(layers: Layers, monkeypatch: pytest.MonkeyPatch, says: int, told: int) -> None:
    """Where a file system knows none, there is none: the kernel would refuse every access. No other error is hidden."""

    def refuse(_path: object, _name: object, *, follow_symlinks: bool) -> bytes:
        raise OSError(says, os.strerror(says))

    layers.write({"0/file": ""})
    with layers.union() as union:
        assert union.exists("file")
        with monkeypatch.context() as patch, fails(told):
            patch.setattr(os, "getxattr", refuse)
            union.getxattr("file", "system.posix_acl_access")


def test_names_of_the_format_cannot_be_made(filled: Layers) -> None:
    """A file of such a name would be a deletion."""
    with filled.union() as union:
        for call in (union.touch, union.mkdir, union.mkfifo, lambda path: union.rename("both", path)):
            with pytest.raises(PermissionError):
                call("a/.wh.x")
        assert not union.exists("a/.wh.x")


def test_umask_applies(filled: Layers) -> None:
    """To files and directories, also where something was deleted before."""
    before = os.umask(0o027)
    try:
        with filled.union() as union:
            union.rmtree("b")
            for path in ("new", "b"):
                union.mkdir(path)
                union.write_text(f"{path}/file", "")
                assert stat.S_IMODE(union.stat(path).st_mode) == 0o750
                assert stat.S_IMODE(union.stat(f"{path}/file").st_mode) == 0o640
    finally:
        os.umask(before)


def test_statvfs(filled: Layers) -> None:
    """The figures of where changes go."""
    with filled.union() as union:
        assert union.statvfs("/").f_bsize == os.statvfs(filled.upper).f_bsize
        with pytest.raises(FileNotFoundError):
            union.statvfs("none")


# -- without a writable layer ------------------------------------------------------------------------------------------


def test_without_an_upper_nothing_changes(layers: Layers) -> None:
    """EROFS, but what is not there is not there first."""
    layers.write({"0/a/x": "x"})
    with unionfs.Union(lower=layers.lowers) as union:
        calls: list[Callable[[], object]] = [
            lambda: union.write_text("a/x", ""),
            lambda: union.write_text("new", ""),
            lambda: union.mkdir("new"),
            lambda: union.unlink("a/x"),
            lambda: union.rmtree("a"),
            lambda: union.rename("a", "b"),
            lambda: union.chmod("a", 0o700),
            lambda: union.chown("a", 0, 0),
            lambda: union.utime("a"),
            lambda: union.truncate("a/x", 0),
            lambda: union.setxattr("a", "user.x", b""),
            lambda: union.symlink("x", "y"),
            lambda: union.link("a/x", "y"),
            lambda: union.touch("new"),
            lambda: union.mkfifo("new"),
        ]
        for call in calls:
            with fails(errno.EROFS):
                call()
        with pytest.raises(FileNotFoundError):
            union.unlink("none")
        assert union.read_text("a/x") == "x"
        assert list(union.changes()) == []
        assert union.statvfs().f_bsize


# -- opening a stack ---------------------------------------------------------------------------------------------------


def test_the_workdir_that_nobody_named_is_a_hidden_sibling(tmp_path: Path) -> None:
    """Made when it is needed, gone when it is not."""
    for name in ("lower", "upper"):
        (tmp_path / name).mkdir()
    work = tmp_path / ".upper.unionfs-work"
    with unionfs.Union(lower=tmp_path / "lower", upper=str(tmp_path / "upper")) as union:
        union.write_text("x", "")
        assert work.is_dir()
    assert not work.exists()


def test_what_cannot_be_a_stack_is_refused(layers: Layers, tmp_path: Path) -> None:
    """With a line that names the directory, before anything is made."""
    (tmp_path / "file").touch()
    lower, upper = layers.lowers[0], layers.upper
    for kind, arguments in (
        (errors.NoLayers, {"lower": []}),
        (errors.LayerMissing, {"lower": tmp_path / "none"}),
        (errors.LayerNotDirectory, {"lower": tmp_path / "file"}),
        (errors.LayerMissing, {"lower": lower, "upper": tmp_path / "none"}),
        (errors.UpperOverlapsLower, {"lower": lower, "upper": lower, "workdir": layers.work}),
        (errors.WorkdirOverlaps, {"lower": lower, "upper": upper, "workdir": upper}),
        (errors.LayerMissing, {"lower": lower, "upper": upper, "workdir": tmp_path / "none"}),
    ):
        with pytest.raises(kind):
            unionfs.Union(**arguments)
    assert not (tmp_path / ".none.unionfs-work").exists()


def test_an_upper_is_used_once(layers: Layers) -> None:
    """Not even by the same program."""
    with layers.union(), pytest.raises(errors.LayerInUse):
        layers.union()
    layers.union().close()


def test_a_volatile_union_that_ended_in_a_crash_is_refused(layers: Layers) -> None:
    """As the kernel does it (overlayfs.rst, "Volatile mount")."""
    mark = layers.work / "work" / "incompat" / "volatile"
    with layers.union(volatile=True):
        assert mark.exists()
    assert not mark.exists()
    mark.mkdir(parents=True)
    with pytest.raises(errors.LeftVolatile):
        layers.union()
    mark.rmdir()
    mark.parent.rmdir()


def test_a_volatile_stack_that_never_stood_leaves_no_sign(layers: Layers) -> None:
    """The next one is not refused because a data layer was missing."""
    lowers, upper, work = map(os.fsencode, layers.lowers), os.fsencode(layers.upper), os.fsencode(layers.work)
    config = Config(list(lowers), upper, work, volatile=True, data_layers=[upper + b"/missing"])
    with pytest.raises(errors.LayerMissing):
        open_stack(config, own_process=False)
    layers.union().close()


def test_the_program_keeps_its_limit_of_descriptors(layers: Layers) -> None:
    """A guest does not turn the host's screws: programs that use select(2) rely on it."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(soft, 512)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        with layers.union():
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == wanted
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("first", "then"), list(itertools.permutations(ondisk.DIALECTS, 2)), ids=lambda kind: kind.name
)
def test_link_counts_outlive_a_change_of_the_dialect(
    layers: Layers, monkeypatch: pytest.MonkeyPatch, first: Dialect, then: Dialect
) -> None:
    """What stays of a copy is the index's link, for as long as a name of a lower layer counts."""
    if os.geteuid() != 0:
        pytest.skip("not run as root: trusted.* attributes cannot be written")
    layers.write({"0/a": "old"})
    for name in "bcd":
        os.link(layers.lowers[0] / "a", layers.lowers[0] / name)
    monkeypatch.setattr(WritableLayer, "probe_dialect", lambda _self: first)
    with layers.union() as union:
        union.write_text("a", "new")
        union.unlink("b")
    monkeypatch.setattr(WritableLayer, "probe_dialect", lambda _self: then)
    for _ in range(2):
        with layers.union() as union:
            union.unlink("a", missing_ok=True)
            union.unlink("c", missing_ok=True)
            assert (union.read_text("d"), union.stat("d").st_nlink) == ("new", 1)


def test_threads_take_turns(layers: Layers) -> None:
    """Each finds what it made."""
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_number in range(40):
                union.makedirs(f"t{number}/{round_number}")
                union.write_text(f"t{number}/{round_number}/x", str(number))
                assert union.read_text(f"t{number}/{round_number}/x") == str(number)
                union.rename(f"t{number}/{round_number}", f"t{number}/moved{round_number}")
        except BaseException as problem:
            problems.append(problem)

    with layers.union() as union:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert problems == []
        assert [len(union.listdir(f"t{number}")) for number in range(4)] == [40] * 4


def test_unions_of_several_threads_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever another union lists while this one's thread waits for the kernel."""
    names = {union: {f"{union}{index}" for index in range(100)} for union in ("one", "other")}
    for directory, found in names.items():
        (tmp_path / directory).mkdir()
        for name in found:
            (tmp_path / directory / name).touch()
    really = files._syscall

    def crossed(*arguments: Any) -> int:
        result: int = really(*arguments)
        if threading.current_thread() is threading.main_thread():
            thread = threading.Thread(target=other.listdir)
            thread.start()
            thread.join()
        return result

    with unionfs.Union(lower=[tmp_path / "one"]) as one, unionfs.Union(lower=[tmp_path / "other"]) as other:
        monkeypatch.setattr(files, "_syscall", crossed)
        assert set(one.listdir()) == names["one"]


@pytest.fixture
def plain_upper(tmp_path: Path) -> Iterator[Path]:
    """A file system that has modes, and no attributes of any kind: ramfs."""
    place = tmp_path / "plain"
    place.mkdir()
    mounts.mount(b"ramfs", os.fsencode(place), b"ramfs")
    try:
        (place / "upper").mkdir()
        yield place / "upper"
    finally:
        mounts.unmount(os.fsencode(place), mounts.MNT_DETACH)


@requires("root")
def test_a_copy_without_its_acl_gives_the_group_no_more(tmp_path: Path, plain_upper: Path) -> None:
    """The bits of the group are those of the mask where there is an ACL, acl(5)."""
    lower = tmp_path / "lower"
    (lower / "directory").mkdir(parents=True)
    (lower / "file").touch()
    os.mkfifo(lower / "fifo")
    for name in ("file", "directory", "fifo"):
        os.setxattr(lower / name, "system.posix_acl_access", acl("u:7", "user:1000:7", "g:4", "m:7", "o:1"))
        assert stat.S_IMODE((lower / name).stat().st_mode) == 0o771
    with unionfs.Union(lower=lower, upper=plain_upper) as union:
        for name in ("file", "directory", "fifo"):
            union.utime(name, ns=(1, 1))
            assert stat.S_IMODE(union.stat(name).st_mode) == 0o741
