"""``unionmount convert``: the marks of a layer in another dialect, in place, the same tree at every instant."""

from __future__ import annotations

import os
import shutil
import sys
from functools import partial
from typing import TYPE_CHECKING

import pytest

import unionfs
from tests.crash import faults
from tests.support.mounts import fuse_overlayfs_mount, overlayfs_mount, run, union_mount
from tests.support.probes import requires
from tests.support.trees import assert_same_tree, snapshot
from unionfs import errors
from unionfs.union.convert import convert

from . import scripts
from .dialects import DIALECTS, Looker, write
from .test_exchange import KERNEL, OURS, Generations
from .test_reading import BOTTOM, DELETED, EXPECTED, HIDING, TOP
from .test_written import marks

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires("root", "trusted-xattrs", "user-xattrs")

TARGETS = {
    "overlay": {"device", "trusted.overlay.opaque"},
    "userxattr": {"device", "user.overlay.opaque"},
    "oci": {"marker", ".wh..wh..opq"},
}
#: What the kernel notes for itself, and a layer can keep.
HINTS = {f"user.overlay.{name}" for name in ("nlink", "uuid")}
COMMAND = (sys.executable, "-m", "unionfs.cli.main")


class Stack:
    """A lower layer and one above it that deletes and hides names of it, written in one dialect."""

    def __init__(self, base: Path, dialect: str) -> None:
        self.base, self.lower, self.layer = base, base / "lower", base / "layer"
        for place in (self.lower, self.layer):
            place.mkdir()
        write(self.lower, BOTTOM)
        write(self.layer, TOP)
        for path in HIDING:
            DIALECTS[dialect].hide(self.layer / path)
        for path in DELETED:
            DIALECTS[dialect].delete(self.layer / path)

    def tree(self) -> tuple[dict[str, str], dict[str, int]]:
        """Return the tree, and the times in it."""
        with unionfs.Union(lower=[self.layer, self.lower]) as union:
            found = Looker(union).tree()
            times = {path: union.stat("/" + path).st_mtime_ns for path in ("", *found)}
        with unionfs.Union(lower=self.lower, upper=self.layer) as union:
            assert Looker(union).tree() == found
        return found, times


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", DIALECTS)
def test_every_dialect_into_every_other(tmp_path: Path, source: str, target: str) -> None:
    """The tree and its times are as before, no mark of another dialect is left, and a second run has nothing to do."""
    stack = Stack(tmp_path, source)
    before = stack.tree()
    assert before[0] == EXPECTED
    done = convert(os.fsencode(stack.layer), target)
    assert (done.deletions, done.hiding_directories) == (len(DELETED), len(HIDING))
    assert marks(stack.layer) == TARGETS[target]
    assert stack.tree() == before
    once = snapshot(stack.layer)
    convert(os.fsencode(stack.layer), target)
    assert_same_tree(once, stack.layer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer", "lower"]


@requires("overlayfs", "fuse-overlayfs", "fuse")
@pytest.mark.parametrize("source", ["overlay", "oci", "user-xattr-whiteouts"])
def test_others_read_what_was_converted(tmp_path: Path, source: str) -> None:
    """Round and round: each dialect in turn, read by the one whose it is."""
    stack = Stack(tmp_path, source)
    layers = [stack.layer, stack.lower]
    convert(os.fsencode(stack.layer), "oci")
    with fuse_overlayfs_mount(tmp_path, layers) as point:
        assert Looker(point).tree() == EXPECTED
    convert(os.fsencode(stack.layer), "userxattr")
    with overlayfs_mount(tmp_path, layers, options="userxattr") as point:
        assert Looker(point).tree() == EXPECTED
    convert(os.fsencode(stack.layer), "overlay")
    with overlayfs_mount(tmp_path, layers) as point:
        assert Looker(point).tree() == EXPECTED


def test_what_stands_in_several_ways(tmp_path: Path) -> None:
    """Deleted twice, deleted and there again, hiding by a marker beside it, whiteouts where nothing is left to hide."""
    stack = Stack(tmp_path, "overlay")
    layer, lower = stack.layer, stack.lower
    write(lower, {"twice": "0", "again": "0", "beside/old": "0", "mixed/a": "0", "mixed/b": "0", "announced/a": "0"})
    write(layer, {".wh.twice": "", ".wh.again": "", "again": "1", ".wh.beside": "", "beside/new": "1"})
    write(layer, {".wh.": "", ".wh..wh.plnk/1": "", "announced/.wh..wh..opq": "", "mixed/c": "1"})
    DIALECTS["overlay"].delete(layer / "twice")
    DIALECTS["xattr-whiteouts"].delete(layer / "announced/a")
    DIALECTS["user-xattr-whiteouts"].delete(layer / "mixed/a")
    DIALECTS["oci"].delete(layer / "mixed/b")
    expected = {"again": "1", "beside/": "", "beside/new": "1", "mixed/": "", "mixed/c": "1", "announced/": ""}
    expected = {**EXPECTED, **expected}
    for target in ("overlay", "oci", "userxattr", "oci", "overlay"):
        assert stack.tree()[0] == expected
        convert(os.fsencode(layer), target)
        assert marks(layer) == TARGETS[target]
    assert stack.tree()[0] == expected
    assert not (layer / ".wh..wh.plnk").exists()


def test_programs_attributes_stay(tmp_path: Path) -> None:
    """What a program has set is no mark, though its name looks like one: it stands escaped, in every dialect."""
    stack = Stack(tmp_path, "overlay")
    with unionfs.Union(lower=stack.lower, upper=stack.layer) as union:
        union.setxattr("/merged/new", "trusted.overlay.opaque", b"y")
        union.setxattr("/merged", "user.overlay.redirect", b"/file")
    for target in ("oci", "userxattr", "overlay"):
        convert(os.fsencode(stack.layer), target)
        with unionfs.Union(lower=stack.lower, upper=stack.layer) as union:
            assert union.getxattr("/merged/new", "trusted.overlay.opaque") == b"y"
            assert union.getxattr("/merged", "user.overlay.redirect") == b"/file"
            assert Looker(union).tree() == EXPECTED


def test_what_copies_are_of_stays_known(tmp_path: Path) -> None:
    """So they keep their inode numbers, wherever there is a place to write that down."""
    stack = Stack(tmp_path, "overlay")
    with unionfs.Union(lower=stack.lower, upper=stack.layer) as union:
        union.chmod("/merged/file", 0o600)
        number = union.stat("/merged/file").st_ino
    for target in ("userxattr", "overlay"):
        convert(os.fsencode(stack.layer), target)
        with unionfs.Union(lower=stack.lower, upper=stack.layer) as union:
            assert union.stat("/merged/file").st_ino == number
    assert number != (stack.layer / "merged/file").stat().st_ino


# -- redirects and files without data --------------------------------------------------------------------------------


@requires("fuse", "overlayfs")
@pytest.mark.parametrize("target", ["oci", "userxattr"])
@pytest.mark.parametrize("writer", [KERNEL, OURS], ids=lambda way: way.who)
def test_redirects_need_the_lower_layers(tmp_path: Path, writer: object, target: str) -> None:
    """Without them a layer stays as it is; with them it shows the same, and stands by itself."""
    made = Generations(tmp_path)
    made.add(KERNEL)
    made.add(KERNEL if writer is KERNEL else OURS)
    layer, lowers = made.layers[0], made.layers[1:]
    written, before = snapshot(layer), made.as_lowers(OURS)
    with pytest.raises(errors.ConversionImpossible, match="'--lower'"):
        convert(os.fsencode(layer), target)
    assert_same_tree(written, layer)
    convert(os.fsencode(layer), target, [os.fsencode(lower) for lower in lowers])
    assert marks(layer) <= TARGETS[target] | HINTS
    assert_same_tree(before, made.as_lowers(OURS), ignore=("links",))


def test_data_only_layers_are_lower_layers_too(tmp_path: Path) -> None:
    """What a file without data points at can be named with ``--data``."""
    for name in ("layer", "lower", "data"):
        (tmp_path / name).mkdir()
    write(tmp_path / "data", {"1": "one"})
    with (tmp_path / "layer/file").open("wb") as file:
        file.truncate(3)
    os.setxattr(tmp_path / "layer/file", "trusted.overlay.metacopy", b"")
    os.setxattr(tmp_path / "layer/file", "trusted.overlay.redirect", b"/1")
    os.setxattr(tmp_path / "layer", "trusted.overlay.impure", b"y")
    words = ("--to", "oci", "--lower", tmp_path / "lower", "--data", tmp_path / "data")
    run(*COMMAND, "convert", tmp_path / "layer", *words)
    assert (tmp_path / "layer/file").read_text() == "one"
    assert os.listxattr(tmp_path / "layer/file") == []


# -- a death at any instant ------------------------------------------------------------------------------------------


def _deaths(template: Path, target: str, lowers: list[str], expected: dict[str, str]) -> int:
    """Let a conversion die before each of its system calls, on copies of ``template``; return how many there were.

    The tree must be the same after each, and after another conversion.
    """
    number = 1
    while True:
        place = template.parent / str(number)
        run("cp", "-a", template, place)
        ended, _calls = faults.run(partial(_convert, place, target, lowers), number)
        assert _tree(place) == expected, f"after a death at call {number}"
        _convert(place, target, lowers)
        assert (_tree(place), marks(place / "layer") <= TARGETS[target]) == (expected, True)
        shutil.rmtree(place)
        if ended:
            return number
        number += 1


def _convert(place: Path, target: str, lowers: list[str], _begin: object = None) -> None:
    convert(os.fsencode(place / "layer"), target, [os.fsencode(place / lower) for lower in lowers])


def _tree(place: Path) -> dict[str, str]:
    with unionfs.Union(lower=[place / "layer", place / "lower"]) as union:
        return Looker(union).tree()


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("overlay", "oci"),
        ("overlay", "userxattr"),
        ("oci", "overlay"),
        ("xattr-whiteouts", "overlay"),
        ("xattr-whiteouts", "oci"),
    ],
)
def test_a_death_before_every_system_call(tmp_path: Path, source: str, target: str) -> None:
    """At no instant does a deleted name come back; another run ends what was begun."""
    template = tmp_path / "template"
    write(template / "lower", {"gone": "0", "d/gone": "0", "d/file": "0", "hiding/old": "0", "beside/old": "0"})
    write(template / "layer", {"hiding/": "", "d/": "", "beside/new": "1"})
    DIALECTS[source].hide(template / "layer/hiding")
    for name in ("gone", "d/gone"):
        DIALECTS[source].delete(template / "layer" / name)
    (template / "layer/.wh.beside").touch()
    expected = {"beside/": "", "beside/new": "1", "d/": "", "d/file": "0", "hiding/": ""}
    assert _deaths(template, target, [], expected) > 20


@pytest.mark.parametrize("target", TARGETS)
def test_a_death_where_what_deletes_is_a_file_by_another_name(tmp_path: Path, target: str) -> None:
    """That name shows, and is met first: the file says that it deletes until nothing needs it to."""
    template = tmp_path / "template"
    write(template, {"lower/d/gone": "0", "layer/d/": ""})
    DIALECTS["xattr-whiteouts"].delete(template / "layer/d/gone")
    (template / "layer/shown").hardlink_to(template / "layer/d/gone")
    assert _deaths(template, target, [], {"d/": "", "shown": ""}) > 10


@requires("fuse")
def test_a_death_while_data_is_copied_from_below(tmp_path: Path) -> None:
    """A moved directory is copied before it loses its redirect, and a file's data before its mark."""
    template = tmp_path / "template"
    for name in ("lower", "layer", "work"):
        (template / name).mkdir(parents=True)
    write(template / "lower", {"d/file": "0", "d/gone": "0", "d/e/file": "0", "file": "0"})
    with union_mount(tmp_path, [template / "lower"], template / "layer", template / "work", "metacopy=on") as point:
        (point / "d").rename(point / "moved")
        (point / "moved/gone").unlink()
        (point / "file").chmod(0o600)
        (point / "moved/file").chmod(0o600)
        expected = Looker(point).tree()
    assert _deaths(template, "oci", ["lower"], expected) > 40


# -- the command -----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path) -> None:
    """One line on what was done."""
    stack = Stack(tmp_path, "overlay")
    done = run(*COMMAND, "convert", "--to=oci", stack.layer)
    assert done.stdout == f"{stack.layer}: {len(DELETED)} deleted names and {len(HIDING)} hiding directories\n"
    assert marks(stack.layer) == TARGETS["oci"]


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        (["{layer}"], 2, "'--to'"),
        (["--to", "oci"], 2, "one directory"),
        (["{layer}", "--to"], 2, "option '--to' needs a value"),
        (["{layer}", "--to", "aufs"], 2, "no such kind of whiteouts: 'aufs'"),
        (["{layer}", "--to", "oci", "--from", "overlay"], 2, "unknown option '--from'"),
        (["{layer}/missing", "--to", "oci"], 1, "{layer}/missing: no such layer"),
        (["{layer}/replaced", "--to", "oci"], 1, "{layer}/replaced: is not a directory"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, words: list[str], status: int, text: str) -> None:
    """One line that says why, and the layer is as it was."""
    stack = Stack(tmp_path, "overlay")
    before = snapshot(stack.layer)
    done = run(*COMMAND, "convert", *(word.format(layer=stack.layer) for word in words), check=False)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert text.format(layer=stack.layer) in done.stderr
    assert_same_tree(before, stack.layer)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer", "lower"]


def test_a_name_that_is_too_long_for_a_marker(tmp_path: Path) -> None:
    """It can be deleted by a device alone: refused before anything is written."""
    stack = Stack(tmp_path, "overlay")
    DIALECTS["overlay"].delete(stack.layer / "merged" / ("x" * 252))
    before = snapshot(stack.layer)
    with pytest.raises(errors.ConversionImpossible, match="too long for a marker"):
        convert(os.fsencode(stack.layer), "oci")
    assert_same_tree(before, stack.layer)


@requires("fuse")
def test_a_layer_that_is_mounted(tmp_path: Path) -> None:
    """It would change under the server: refused."""
    stack = Stack(tmp_path, "overlay")
    (tmp_path / "work").mkdir()
    with union_mount(tmp_path, [stack.lower], stack.layer, tmp_path / "work") as point:
        with pytest.raises(errors.LayerInUse):
            convert(os.fsencode(stack.layer), "oci")
        assert Looker(point).tree() == EXPECTED


def test_scripts_have_something_to_convert() -> None:
    """The scripts of generations hold moved directories: without them, tests here would prove little."""
    assert set(scripts.STILL) < set(scripts.SCRIPTS)
