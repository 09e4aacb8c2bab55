"""Layers as nobody should write them: all dialects in one, marks below marks, links, redirects, names of any bytes.

Whatever stands in a layer, ``unionmount convert`` leaves the tree that it shows with the one below it, ``check
--repair`` leaves it too, and then there is nothing to find any longer. There are two exceptions. A name that deletes is
among the links of its file, as in overlayfs, until it goes. And what is marked as a deletion but shows, because its
directory does not announce it, deletes after ``--repair``: overlayfs lists such a name, and finds no file.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.crash.operations import Tree, tree
from tests.support.probes import requires
from unionfs import Union
from unionfs.ondisk import WHITEOUT_ATTRIBUTES
from unionfs.union.check import check, repair
from unionfs.union.convert import convert

from .dialects import DIALECTS

pytestmark = requires("root", "trusted-xattrs", "user-xattrs")

NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\n %", "ä".encode(), b"x" * 240])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
#: A kind of thing, where it stands, and where the one that it has to do with does.
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["file", "directory", "symlink", "link", "marker link", "redirect", "metacopy"]
            + [f"{word} {name}" for name in DIALECTS for word in ("delete", "hide")]
        ),
        PATHS,
        PATHS,
    ),
    max_size=14,
)

#: A path that takes a block of its own in a redirect: by its blocks, a small file then seems to have its data.
_LONG = b"/".join([b"x" * 240] * 2)
#: A file that deletes by one of its names, and shows by another that is met earlier.
_LINKED = [("delete xattr-whiteouts", b"a/b/c", b"a"), ("link", b"a/a", b"a/b/c"), ("marker link", b"b", b"a/a")]


def _build(layer: Path, steps: list[tuple[str, bytes, bytes]]) -> None:
    for kind, path, other in steps:
        place, source = (Path(os.fsdecode(os.fsencode(layer) + b"/" + words)) for words in (path, other))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            _make(kind, place, source, b"/" + other)
        except (FileExistsError, NotADirectoryError, FileNotFoundError, PermissionError):
            continue  # there is no room for it


def _make(kind: str, place: Path, source: Path, path: bytes) -> None:
    word, _, dialect = kind.partition(" ")
    if word in ("file", "metacopy"):
        with open(place, "x") as stream:
            stream.write("data" * 3)
    if word in ("directory", "hide", "redirect"):
        place.mkdir(exist_ok=True)
    if word == "symlink":
        place.symlink_to("target")
    elif word == "link":
        os.link(source, place, follow_symlinks=False)
    elif word == "marker":
        os.link(source, place.with_name(".wh." + place.name), follow_symlinks=False)
    elif word == "redirect":
        os.setxattr(place, "trusted.overlay.redirect", path)
    elif word == "metacopy":
        os.truncate(place, 0)
        os.truncate(place, 12)
        os.setxattr(place, "trusted.overlay.metacopy", b"")
        os.setxattr(place, "trusted.overlay.redirect", path)
    elif word == "hide":
        DIALECTS[dialect].hide(place)
    elif word == "delete" and not os.path.lexists(place):
        DIALECTS[dialect].delete(place)


class _Unreadable(Exception):
    """The layer has a file whose data is nowhere."""


def _tree(layer: Path, lower: Path) -> Tree:
    try:
        with Union(lower=[layer, lower]) as union:
            return tree(union)
    except OSError as error:
        raise _Unreadable from error


def _in_layer(shown: Tree, layer: Path) -> dict[bytes, os.stat_result]:
    """Return the attributes of the files that the layer itself shows."""
    states = {path: os.lstat(os.fsencode(layer) + path) for path in shown if os.path.lexists(os.fsencode(layer) + path)}
    return {path: state for path, state in states.items() if not stat.S_ISDIR(state.st_mode)}


def _counted(shown: Tree, layer: Path) -> Tree:
    """Return a tree in which a file of the layer has as many links as names of it show."""
    files = _in_layer(shown, layer)
    names = Counter(state.st_ino for state in files.values())
    counted = {path: (*shown[path][:3], names[state.st_ino], *shown[path][4:]) for path, state in files.items()}
    return {**shown, **counted}


def _announced(shown: Tree, layer: Path) -> Tree:
    """Return a tree without the names that the layer marks as deletions where its directories do not say so."""
    files = _in_layer(shown, layer)
    empty = [path for path, state in files.items() if stat.S_ISREG(state.st_mode) and not state.st_size]
    marked = [path for path in empty if WHITEOUT_ATTRIBUTES.intersection(os.listxattr(os.fsencode(layer) + path))]
    return {path: state for path, state in shown.items() if path not in marked}


@pytest.mark.timeout(300)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    below=st.lists(st.tuples(st.sampled_from(["file", "directory", "link"]), PATHS, PATHS), max_size=10),
    steps=STEPS,
    target=st.sampled_from(["overlay", "userxattr", "oci"]),
    mended=st.booleans(),
)
@example(below=[("file", b"a", b"a")], steps=[("metacopy", b"a", b"a")], target="oci", mended=False)
@example(below=[("file", _LONG, b"a")], steps=[("metacopy", b"a", _LONG)], target="oci", mended=False)
@example(below=[("file", b"a/b/c", b"a")], steps=_LINKED, target="oci", mended=False)
@example(below=[("file", b"a/b/c", b"a")], steps=_LINKED, target="overlay", mended=False)
@example(below=[("file", b"a/b/c", b"a")], steps=_LINKED, target="overlay", mended=True)
def test_the_tree_stays(
    below: list[tuple[str, bytes, bytes]], steps: list[tuple[str, bytes, bytes]], target: str, *, mended: bool
) -> None:
    with tempfile.TemporaryDirectory() as base:
        lower, layer = Path(base, "lower"), Path(base, "layer")
        for place, content in ((lower, below), (layer, steps)):
            place.mkdir()
            _build(place, content)
        try:
            shown = _tree(layer, lower)
        except _Unreadable:
            return
        before = _counted(shown, layer)
        lowers = [os.fsencode(lower)]
        if mended:
            before = _counted(_announced(shown, layer), layer)
            repair(os.fsencode(layer), None, lowers)
            assert _counted(_tree(layer, lower), layer) == before
            assert check(os.fsencode(layer), None, lowers) == []
        convert(os.fsencode(layer), target, lowers)
        after = _tree(layer, lower)
        assert (_counted(after, layer) if target == "oci" else after) == before  # where markers are not written anew
        repair(os.fsencode(layer), None, lowers)
        assert check(os.fsencode(layer), None, lowers) == []
        assert _tree(layer, lower) == after
