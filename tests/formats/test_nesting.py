"""An overlay on top of our mount, the kernel's or ours; names and attributes that could be mistaken for the format."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.mounts import overlayfs_mount, prepare, union_mount
from tests.support.probes import requires
from tests.support.trees import assert_same_tree, snapshot
from unionfs import ondisk

from . import scripts
from .dialects import DIALECTS, Looker, write
from .test_reading import BOTTOM, DELETED, EXPECTED, HIDING, TOP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from tests.support.trees import Tree

pytestmark = requires("root", "fuse", "trusted-xattrs", "user-xattrs")

ALL = list(scripts.SCRIPTS)
#: Without the scripts about hard links, which take an index of file handles.
WITHOUT_LINKS = [name for name in ALL if not name.startswith("links")]
PRIVATE = (
    *("opaque", "redirect", "metacopy", "origin", "impure", "whiteout", "nlink", "protattr"),
    *("overlay.opaque", "anything"),
)


@pytest.fixture
def outer(tmp_path: Path) -> Iterator[Path]:
    """Our mount, in which the layers of another overlay stand; what it leaves, the kernel shows as the same tree."""
    base = tmp_path / "outer"
    (lower,), upper, work = prepare(base)
    write(lower, {"place/": ""})
    with union_mount(base, [lower], upper, work) as point:
        yield point
        ours = snapshot(point)
    with overlayfs_mount(base, [lower], upper, work, "redirect_dir=on") as point:
        assert_same_tree(_without_user_marks(ours), _without_user_marks(snapshot(point)), ignore=("rdev",))


def _without_user_marks(tree: Tree) -> Tree:
    """Return the tree without ``user.overlay.*``: they are ordinary to the kernel, and so it shows how
    we store them.
    """
    return {
        path: entry._replace(xattrs=tuple(pair for pair in entry.xattrs if not pair[0].startswith("user.overlay.")))
        for path, entry in tree.items()
    }


# -- names and attributes of the format ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "directory"])
@pytest.mark.parametrize("prefix", ["trusted", "user"])
def test_attributes_of_the_format_belong_to_programs(outer: Path, kind: str, prefix: str) -> None:
    """A program can set each of them and sees just what it has set; it means nothing to the mount."""
    place = outer / "place" / kind
    if kind == "file":
        place.write_text("data")
    else:
        write(place, {"inner": "data"})
    expected = {f"{prefix}.overlay.{name}": name.encode() for name in PRIVATE}
    for name, value in expected.items():
        os.setxattr(place, name, value)
    assert {name: os.getxattr(place, name) for name in os.listxattr(place)} == expected
    moved = place.rename(place.with_name("moved"))
    assert {name: os.getxattr(moved, name) for name in os.listxattr(moved)} == expected
    assert (
        Looker(outer).tree("place/") == {"place/moved": "data"}
        if kind == "file"
        else {
            "place/moved/": "",
            "place/moved/inner": "data",
        }
    )
    for name in expected:
        os.removexattr(moved, name)
        with pytest.raises(OSError, match="No data") as caught:
            os.removexattr(moved, name)
        assert caught.value.errno == errno.ENODATA
    assert os.listxattr(moved) == []


def test_the_formats_own_attributes_do_not_show(tmp_path: Path) -> None:
    """Nobody sees, changes or removes what the layers are held together by."""
    (lower,), upper, work = prepare(tmp_path)
    write(lower, {"d/file": "0", "e/file": "0"})
    with union_mount(tmp_path, [lower], upper, work) as point:
        (point / "d").rename(point / "moved")
        (point / "moved/file").chmod(0o600)
        assert "trusted.overlay.redirect" in os.listxattr(upper / "moved")
        for place in (point / "moved", point / "moved/file"):
            assert [name for name in os.listxattr(place) if "overlay" in name] == []
        for call in (
            lambda: os.getxattr(point / "moved", "trusted.overlay.redirect"),
            lambda: os.removexattr(point / "moved", "trusted.overlay.redirect"),
        ):
            with pytest.raises(OSError, match="No data"):
                call()
        os.setxattr(point / "moved", "trusted.overlay.redirect", b"/e")
        assert os.getxattr(upper / "moved", "trusted.overlay.redirect") == b"/d"
        assert Looker(point).tree() == {"e/": "", "e/file": "0", "moved/": "", "moved/file": "0"}


MAKERS: dict[str, Callable[[Path], object]] = {
    "create": lambda path: path.touch(),
    "mkdir": lambda path: path.mkdir(),
    "symlink": lambda path: path.symlink_to("place"),
    "mkfifo": os.mkfifo,
    "link": lambda path: path.hardlink_to(path.with_name("file")),
    "rename": lambda path: path.with_name("file").rename(path),
}


@pytest.mark.parametrize("name", [".wh.x", ".wh..wh..opq", ".wh.", ".wh..wh.plnk"])
@pytest.mark.parametrize("maker", MAKERS)
def test_names_of_markers_cannot_be_made(outer: Path, maker: str, name: str) -> None:
    """They would delete something: refused, and nothing is changed."""
    (outer / "place/file").touch()
    with pytest.raises(PermissionError):
        MAKERS[maker](outer / "place" / name)
    assert not (outer / "place" / name).exists()
    assert sorted(os.listdir(outer / "place")) == ["file"]


def test_a_whiteout_is_a_device_to_programs(outer: Path) -> None:
    """The device 0:0 can be made, shows as what it is, and deletes nothing; nor do any others."""
    place = outer / "place"
    numbers = [(0, 0), (0, 1), (1, 3), (0, (1 << 18) - 1), (0, (1 << 18) - 2), (5, (1 << 18) - 1)]
    for number, device in enumerate(numbers):
        (place / str(number)).touch()
        os.mknod(place / f"new{number}", stat.S_IFCHR | 0o600, os.makedev(*device))
        (place / f"new{number}").rename(place / str(number))
    os.mknod(place / "block", stat.S_IFBLK | 0o600, os.makedev(0, 0))
    found = [os.lstat(place / str(number)) for number in range(len(numbers))]
    assert [(os.major(state.st_rdev), os.minor(state.st_rdev)) for state in found] == numbers
    assert {stat.S_IFMT(state.st_mode) for state in found} == {stat.S_IFCHR}
    with os.scandir(place) as entries:
        assert sorted(entry.name for entry in entries) == ["0", "1", "2", "3", "4", "5", "block"]


@given(st.integers(0, (1 << 20) - 1), st.integers(0, 300), st.sampled_from((stat.S_IFCHR, stat.S_IFBLK)))
def test_escaped_devices(minor: int, major: int, kind: int) -> None:
    """What a program makes is what it sees, and never the device that deletes; but for one number
    beyond all nestings.
    """
    device = os.makedev(major, minor)
    stored = ondisk.escape_device(kind, device)
    assert not ondisk.is_whiteout(kind, stored)
    if (major, minor) != (0, (1 << 18) - 17):
        assert ondisk.unescape_device(kind, stored) == device


@pytest.mark.parametrize(
    ("redirect", "names"),
    [
        (b"/a", [b"a"]),
        (b"/a/b c", [b"a", b"b c"]),
        (b"a", [b"a"]),
        *((bad, []) for bad in (b"", b"/", b".", b"..", b"a/b", b"/a//b", b"/a/", b"/../a", b"/a/.", b"//a")),
    ],
)
def test_redirects_are_paths_of_names(redirect: bytes, names: list[bytes]) -> None:
    """As the kernel writes them, and nothing that could lead elsewhere."""
    assert ondisk.redirect_names(redirect) == names


# -- layers that stand in our mount ----------------------------------------------------------------------------------


@requires("overlayfs")
@pytest.mark.parametrize("inner", ["kernel", "ours"])
def test_lower_layers_in_our_mount(tmp_path: Path, outer: Path, inner: str) -> None:
    """Copied into our mount, layers in the form that can be copied mean the same (overlayfs.rst, "Nesting")."""
    layers = [outer / "place/top", outer / "place/bottom"]
    write(layers[1], BOTTOM)
    write(layers[0], TOP)
    dialect = DIALECTS["xattr-whiteouts"]
    for path in HIDING:
        dialect.hide(layers[0] / path)
    for path in DELETED:
        dialect.delete(layers[0] / path)
    mount = overlayfs_mount if inner == "kernel" else union_mount
    with mount(tmp_path, layers) as point:
        assert Looker(point).tree() == EXPECTED


@requires("overlayfs")
@pytest.mark.parametrize("inner", ["kernel", "ours"])
def test_an_upper_beside_our_mount(tmp_path: Path, outer: Path, inner: str) -> None:
    """Our mount as the lower layer of a writable overlay: all scripts end as on a plain directory."""
    plain = tmp_path / "plain"
    plain.mkdir()
    for place in (outer / "place", plain):
        scripts.prepare(place)
    _, upper, work = prepare(tmp_path)
    mount, options = (overlayfs_mount, "redirect_dir=on,index=off") if inner == "kernel" else (union_mount, "")
    for generation in (0, 1):
        scripts.work(plain, generation, WITHOUT_LINKS)
        with mount(tmp_path, [outer / "place"], upper, work, options) as point:
            scripts.work(point, generation, WITHOUT_LINKS)
            shown = snapshot(point)
    assert_same_tree(_chosen(snapshot(plain)), _chosen(shown), ignore=("mtime_ns", "links"))


def _chosen(tree: Tree) -> Tree:
    return {path: entry for path, entry in tree.items() if not path.startswith(b"links")}


@requires("overlayfs")
@pytest.mark.parametrize(
    ("mount", "options", "names"),
    [
        (overlayfs_mount, "index=on,redirect_dir=on,metacopy=on", ALL),
        (overlayfs_mount, "redirect_dir=on,index=off", WITHOUT_LINKS),
        (overlayfs_mount, "userxattr", [name for name in scripts.STILL if name in WITHOUT_LINKS]),
        (union_mount, "metacopy=on", ALL),
        (union_mount, "userxattr", ALL),
    ],
)
def test_all_layers_in_our_mount(
    tmp_path: Path, outer: Path, mount: Callable[..., AbstractContextManager[Path]], options: str, names: list[str]
) -> None:
    """An overlay with its upper and workdir in our mount works as on a plain directory, whoever makes it."""
    plain = tmp_path / "plain"
    place = outer / "place"
    for root in (place / "lower", plain):
        root.mkdir()
        scripts.prepare(root, names)
    for name in ("upper", "work"):
        (place / name).mkdir()
    for generation in (0, 1):
        scripts.work(plain, generation, names)
        with mount(tmp_path, [place / "lower"], place / "upper", place / "work", options) as point:
            scripts.work(point, generation, names)
            shown = snapshot(point)
    assert_same_tree(plain, shown, ignore=("mtime_ns",))
