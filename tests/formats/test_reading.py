"""Deletions and hiding directories are read in every dialect, in one layer or several, whatever is asked for first."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

import unionfs
from tests.support.mounts import fuse_overlayfs_mount, overlayfs_mount, union_mount
from tests.support.probes import requires

from .dialects import DIALECTS, Looker, device, marker, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from .dialects import Content, Dialect

pytestmark = requires("root", "trusted-xattrs", "user-xattrs")

BOTTOM = {
    "file": "0",
    "gone": "0",
    "gone-directory/file": "0",
    "replaced": "0",
    "directory-to-file/file": "0",
    "file-to-directory": "0",
    "opaque/file": "0",
    "opaque/inner/file": "0",
    "merged/file": "0",
    "merged/gone": "0",
    "merged/gone-directory/file": "0",
    "merged/opaque/file": "0",
    "deep/1/2/3/file": "0",
    "deep/1/2/3/gone": "0",
}
TOP = {
    "replaced": "1",
    "directory-to-file": "1",
    "opaque/new": "1",
    "opaque/inner/new": "1",
    "merged/new": "1",
    "merged/opaque/": "",
    "deep/1/2/3/": "",
    "file-to-directory/new": "1",
}
DELETED = ("gone", "gone-directory", "merged/gone", "merged/gone-directory", "deep/1/2/3/gone")
HIDING = ("opaque", "merged/opaque")
EXPECTED = {
    "file": "0",
    "replaced": "1",
    "directory-to-file": "1",
    "file-to-directory/": "",
    "file-to-directory/new": "1",
    "opaque/": "",
    "opaque/new": "1",
    "opaque/inner/": "",
    "opaque/inner/new": "1",
    "merged/": "",
    "merged/file": "0",
    "merged/new": "1",
    "merged/opaque/": "",
    "deep/": "",
    "deep/1/": "",
    "deep/1/2/": "",
    "deep/1/2/3/": "",
    "deep/1/2/3/file": "0",
}
HIDDEN = (
    *DELETED,
    "gone-directory/file",
    "opaque/file",
    "opaque/inner/file",
    "merged/gone-directory/file",
    "merged/opaque/file",
    "directory-to-file/file",
)


def _nothing(_looker: Looker) -> None:
    """List each directory first."""


def _hidden_names(looker: Looker) -> None:
    """Ask for what is not to be seen, before anything was listed."""
    assert [path for path in HIDDEN if looker.mode(path)] == []


def _shown_names(looker: Looker) -> None:
    """Ask for what is to be seen, the deepest first."""
    assert [path for path in sorted(EXPECTED, key=len, reverse=True) if not looker.mode(path)] == []


def _lists_deepest_first(looker: Looker) -> None:
    for path in sorted(EXPECTED, reverse=True):
        if path.endswith("/"):
            below = {name.removeprefix(path).split("/")[0] for name in EXPECTED if name.startswith(path)}
            assert looker.names(path) == sorted(below - {""})


ORDERS = (_nothing, _hidden_names, _shown_names, _lists_deepest_first)


def _top(layer: Path, dialect: Dialect) -> None:
    write(layer, TOP)
    for path in HIDING:
        dialect.hide(layer / path)
    for path in DELETED:
        dialect.delete(layer / path)


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Four empty directories for layers, topmost first."""
    made = [tmp_path / f"layer{number}" for number in range(4)]
    for layer in made:
        layer.mkdir()
    return made


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", DIALECTS)
def test_a_layer_of_every_dialect(layers: list[Path], name: str, order: Callable[[Looker], None]) -> None:
    """Deleted names and hidden trees stay away, by lookup and by listing, in whichever order (fuse-overlayfs 425)."""
    write(layers[1], BOTTOM)
    _top(layers[0], DIALECTS[name])
    with unionfs.Union(lower=layers[:2]) as union:
        order(Looker(union))
        assert Looker(union).tree() == EXPECTED


@pytest.mark.parametrize("name", DIALECTS)
def test_an_upper_layer_of_every_dialect(layers: list[Path], name: str) -> None:
    """A writable layer may have been written by others, in a dialect that is not the one that is written now."""
    write(layers[1], BOTTOM)
    _top(layers[0], DIALECTS[name])
    with unionfs.Union(lower=layers[1], upper=layers[0]) as union:
        assert Looker(union).tree() == EXPECTED


@requires("fuse")
@pytest.mark.parametrize("name", DIALECTS)
def test_a_mount_of_every_dialect(tmp_path: Path, layers: list[Path], name: str) -> None:
    """The same through the kernel, which remembers what it was told."""
    write(layers[1], BOTTOM)
    _top(layers[0], DIALECTS[name])
    with union_mount(tmp_path, layers[:2]) as point:
        for order in ORDERS:
            order(Looker(point))
            assert Looker(point).tree() == EXPECTED


@requires("overlayfs")
@pytest.mark.parametrize("name", [name for name, dialect in DIALECTS.items() if dialect.options is not None])
def test_the_kernel_reads_these_layers_so(tmp_path: Path, layers: list[Path], name: str) -> None:
    """The layers of these tests are as the kernel's overlayfs wants them."""
    write(layers[1], BOTTOM)
    _top(layers[0], DIALECTS[name])
    with overlayfs_mount(tmp_path, layers[:2], options=DIALECTS[name].options or "") as point:
        assert Looker(point).tree() == EXPECTED


@requires("fuse-overlayfs")
@pytest.mark.parametrize("name", ["overlay", "oci", "fuse-overlayfs", "fuse-overlayfs-markers"])
def test_fuse_overlayfs_reads_these_layers_so(tmp_path: Path, layers: list[Path], name: str) -> None:
    """The layers of these tests are as fuse-overlayfs wants them."""
    write(layers[1], BOTTOM)
    _top(layers[0], DIALECTS[name])
    with fuse_overlayfs_mount(tmp_path, layers[:2]) as point:
        assert Looker(point).tree() == EXPECTED


MIDDLE = {"one/a": "1", "one/b": "1", "two/a": "1", "only/a": "1"}


@pytest.mark.parametrize("names", list(itertools.permutations(DIALECTS, 2)), ids=" over ".join)
def test_several_dialects_in_one_stack(layers: list[Path], names: tuple[str, str]) -> None:
    """Each layer speaks for itself; what one deletes, the next one above it may have again."""
    top, middle = (DIALECTS[name] for name in names)
    write(layers[2], {"one/a": "0", "one/c": "0", "two/b": "0", "three/a": "0", "four": "0", "back": "0"})
    write(layers[1], MIDDLE)
    middle.hide(layers[1] / "one")
    middle.delete(layers[1] / "three")
    middle.delete(layers[1] / "back")
    write(layers[0], {"one/": "", "two/c": "2", "three/b": "2", "back": "2"})
    top.hide(layers[0] / "two")
    top.delete(layers[0] / "one" / "a")
    top.delete(layers[0] / "four")
    top.delete(layers[0] / "only")
    expected = {"one/": "", "one/b": "1", "two/": "", "two/c": "2", "three/": "", "three/b": "2", "back": "2"}
    with unionfs.Union(lower=layers[:3]) as union:
        assert Looker(union).tree() == expected
    with unionfs.Union(lower=layers[1:3], upper=layers[0]) as union:
        assert Looker(union).tree() == expected


# -- AUFS and OCI: what the image specification says, and what is no marker ------------------------------------------


def _markers(layers: list[Path], bottom: Content, top: Content) -> Content:
    """Return the tree of two layers; the top one holds names of the AUFS dialect."""
    write(layers[1], bottom)
    write(layers[0], top)
    with unionfs.Union(lower=layers[:2]) as union:
        first = Looker(union).tree()
    with unionfs.Union(lower=layers[1], upper=layers[0]) as union:
        assert Looker(union).tree() == first
    return first


def test_a_marker_deletes_in_its_own_directory_alone(layers: list[Path]) -> None:
    """``.wh.x`` in the root leaves every ``x`` further down alone (fuse-overlayfs 151)."""
    bottom = {"x": "0", "a/x": "0", "a/b/x": "0"}
    shown = {"a/": "", "a/x": "0", "a/b/": "", "a/b/x": "0"}
    assert _markers(layers, bottom, {".wh.x": ""}) == shown
    assert _markers(layers, {}, {"a/": ""}) == shown


def test_a_marker_beside_its_name(layers: list[Path]) -> None:
    """A layer may delete a name and have it again: the new one shows, and nothing from below in it."""
    bottom = {"file": "0", "directory/old": "0", "kind/old": "0"}
    top = {".wh.file": "", "file": "1", ".wh.directory": "", "directory/new": "1", ".wh.kind": "", "kind": "1"}
    assert _markers(layers, bottom, top) == {"file": "1", "directory/": "", "directory/new": "1", "kind": "1"}


def test_a_hiding_marker_spares_its_own_layer(layers: list[Path]) -> None:
    """``.wh..wh..opq`` hides what lower layers have, wherever it stands among the names."""
    assert _markers(layers, {"d/old": "0", "d/e/old": "0"}, {"d/.wh..wh..opq": "", "d/e/new": "1"}) == {
        "d/": "",
        "d/e/": "",
        "d/e/new": "1",
    }


def test_a_hiding_marker_in_the_root(layers: list[Path]) -> None:
    """The root of a layer can hide all that is below it."""
    assert _markers(layers, {"old": "0", "d/old": "0"}, {".wh..wh..opq": "", "d/new": "1"}) == {"d/": "", "d/new": "1"}


def test_private_files_of_aufs_do_not_show(layers: list[Path]) -> None:
    """AUFS keeps its own files under ``.wh..wh.`` in the root of a branch, and a bare ``.wh.`` deletes nothing."""
    top = {".wh..wh.aufs": "", ".wh..wh.plnk/1.2": "", ".wh..wh.orph/": "", ".wh.": "", "new": "1"}
    assert _markers(layers, {"old": "0", ".wh.": ""}, top) == {"new": "1", "old": "0"}


def test_a_marker_in_the_lowest_layer_deletes_nothing(layers: list[Path]) -> None:
    """There is nothing below it; it does not show either."""
    assert _markers(layers, {".wh.x": "", "x": "0", "d/.wh..wh..opq": ""}, {"y": "1"}) == {"x": "0", "y": "1", "d/": ""}


def test_names_that_are_too_long_for_a_marker(layers: list[Path]) -> None:
    """A name of 255 bytes has no marker that could delete it, and is looked up as any other."""
    longest, deletable = "x" * 255, "y" * 251
    assert _markers(layers, {longest: "0", deletable: "0"}, {f".wh.{deletable}": ""}) == {longest: "0"}


# -- parts of layers -------------------------------------------------------------------------------------------------


@requires("overlayfs", "fuse")
@pytest.mark.parametrize("mount", [overlayfs_mount, union_mount])
def test_a_moved_directory_as_a_layer(
    tmp_path: Path, layers: list[Path], mount: Callable[[Path, list[Path]], AbstractContextManager[Path]]
) -> None:
    """Whoever stacks it says by that what is below it: whence it was moved in its own stack means nothing here."""
    write(layers[1], {"old/a": "0", "old/d/b": "0"})
    write(layers[0], {"new/c": "1"})
    os.setxattr(layers[0] / "new", "trusted.overlay.redirect", b"/old")
    with mount(tmp_path, [layers[0] / "new", layers[1] / "old"]) as point:
        assert Looker(point).tree() == {"a": "0", "c": "1", "d/": "", "d/b": "0"}


# -- layers that are not as they should be ---------------------------------------------------------------------------


@pytest.mark.parametrize("delete", [device, marker])
def test_a_whiteout_in_an_opaque_directory(layers: list[Path], delete: Callable[[Path], None]) -> None:
    """It is superfluous, and no reason to call a layer corrupt (fuse-overlayfs 306)."""
    write(layers[1], {"d/a": "0", "d/b": "0"})
    write(layers[0], {"d/c": "1"})
    DIALECTS["overlay"].hide(layers[0] / "d")
    delete(layers[0] / "d" / "a")
    with unionfs.Union(lower=layers[1], upper=layers[0]) as union:
        assert Looker(union).tree() == {"d/": "", "d/c": "1"}
        union.write_text("/d/a", "2")
        union.unlink("/d/c")
        assert Looker(union).tree() == {"d/": "", "d/a": "2"}
        union.unlink("/d/a")
        union.rmdir("/d")
        assert Looker(union).tree() == {}


def test_a_directory_may_hide_in_several_dialects_at_once(layers: list[Path]) -> None:
    """As fuse-overlayfs writes it: with an attribute, and with a marker for others."""
    write(layers[1], {"d/a": "0"})
    write(layers[0], {"d/b": "1"})
    for name in ("overlay", "userxattr", "fuse-overlayfs", "oci"):
        DIALECTS[name].hide(layers[0] / "d")
    with unionfs.Union(lower=layers[1], upper=layers[0]) as union:
        assert Looker(union).tree() == {"d/": "", "d/b": "1"}
        union.unlink("/d/b")
        union.rmdir("/d")
        union.mkdir("/d")
        assert Looker(union).tree() == {"d/": ""}


def test_an_empty_file_with_the_attribute_is_a_file_where_its_directory_does_not_say_so(layers: list[Path]) -> None:
    """Only a directory with ``overlay.opaque=x`` holds such whiteouts; of others, the kernel shows half."""
    write(layers[1], {"a": "0"})
    write(layers[0], {"a": ""})
    os.setxattr(layers[0] / "a", "trusted.overlay.whiteout", b"")
    with unionfs.Union(lower=layers[:2]) as union:
        assert Looker(union).tree() == {"a": ""}


def test_a_file_with_content_is_no_whiteout(layers: list[Path]) -> None:
    """An xattr whiteout is empty (overlayfs.rst); a file that is not stays one."""
    write(layers[1], {"a": "0", "b": "0"})
    write(layers[0], {"a": "1"})
    DIALECTS["xattr-whiteouts"].delete(layers[0] / "b")
    os.setxattr(layers[0] / "a", "trusted.overlay.whiteout", b"")
    with unionfs.Union(lower=layers[:2]) as union:
        assert Looker(union).tree() == {"a": "1"}


def test_opaque_with_another_value_hides_nothing(layers: list[Path]) -> None:
    """Only "y" does (ovl_get_opaquedir_val in fs/overlayfs/util.c)."""
    write(layers[1], {"d/a": "0"})
    write(layers[0], {"d/b": "1"})
    os.setxattr(layers[0] / "d", "trusted.overlay.opaque", b"n")
    with unionfs.Union(lower=layers[:2]) as union:
        assert Looker(union).tree() == {"d/": "", "d/a": "0", "d/b": "1"}


def test_writing_into_a_layer_of_markers(layers: list[Path]) -> None:
    """Names that a marker of another dialect deletes can be made again, removed again, and stay away."""
    write(layers[1], {"file": "0", "d/file": "0"})
    write(layers[0], {".wh.file": "", ".wh.d": ""})
    with unionfs.Union(lower=layers[1], upper=layers[0]) as union:
        union.write_text("/file", "1")
        union.mkdir("/d")
        assert Looker(union).tree() == {"file": "1", "d/": ""}
        union.unlink("/file")
        union.rmdir("/d")
        assert Looker(union).tree() == {}
    with unionfs.Union(lower=layers[1], upper=layers[0]) as union:
        assert Looker(union).tree() == {}
