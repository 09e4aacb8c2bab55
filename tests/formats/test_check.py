"""``unionmount check``: what ought not to be in a layer or its workdir is found, and mended with ``--repair``."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

import unionfs
from tests.support.mounts import prepare, run, union_mount
from tests.support.probes import requires
from tests.support.trees import assert_same_tree, snapshot

from .dialects import DIALECTS, Looker, write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = requires("root", "trusted-xattrs", "user-xattrs")

COMMAND = (sys.executable, "-m", "unionfs.cli.main")


class Layers:
    """A lower layer, an upper and its workdir, with something right in them."""

    def __init__(self, base: Path) -> None:
        self.base = base
        (self.lower,), self.upper, self.work = prepare(base)
        write(self.lower, {"d/file": "0", "d/gone": "0", "file": "0", "old/file": "0"})
        with unionfs.Union(lower=self.lower, upper=self.upper, workdir=self.work) as union:
            union.unlink("/d/gone")
            union.rename("/old", "/new")
            union.mkdir("/made")

    def look(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command."""
        return run(*COMMAND, "check", *words, "--work", self.work, self.upper, self.lower, check=False)

    def tree(self) -> dict[str, str]:
        """Return what the layers show."""
        with unionfs.Union(lower=[self.upper, self.lower]) as union:
            return Looker(union).tree()


@pytest.fixture
def layers(tmp_path: Path) -> Layers:
    """A stack without faults."""
    return Layers(tmp_path)


def test_nothing_to_find(layers: Layers) -> None:
    """A sound layer is silence, and status 0; looking changes nothing."""
    before = snapshot(layers.upper), snapshot(layers.work), snapshot(layers.lower)
    done = layers.look()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert layers.look("--repair").returncode == 0
    for tree, place in zip(before, (layers.upper, layers.work, layers.lower), strict=True):
        assert_same_tree(tree, place)


def _opaque_with_device(layers: Layers) -> str:
    DIALECTS["overlay"].delete(layers.upper / "made/x")
    DIALECTS["overlay"].hide(layers.upper / "made")
    return "upper/made/x: a whiteout in an opaque directory, which has nothing to hide"


def _opaque_with_marker(layers: Layers) -> str:
    DIALECTS["oci"].delete(layers.upper / "made/y")
    DIALECTS["oci"].hide(layers.upper / "made")
    return "upper/made/.wh.y: a whiteout in an opaque directory, which has nothing to hide"


def _marker_of_nothing(layers: Layers) -> str:
    (layers.upper / ".wh.").touch()
    return "upper/.wh.: a whiteout of no name"


def _redirect_to_nothing(layers: Layers) -> str:
    os.setxattr(layers.upper / "new", "trusted.overlay.redirect", b"/missing")
    return "upper/new: its redirect leads nowhere: /missing"


def _redirect_that_is_none(layers: Layers) -> str:
    os.setxattr(layers.upper / "new", "trusted.overlay.redirect", b"../../etc")
    return "upper/new: its redirect leads nowhere: ../../etc"


def _left_by_a_crash(layers: Layers) -> str:
    write(layers.work, {"work/#1/deep/file": "1"})
    return "work/work/#1: was left by a crash"


def _left_volatile(layers: Layers) -> str:
    write(layers.work, {"work/incompat/volatile/": ""})
    return "work/work/incompat: a volatile mount was not ended cleanly: what was written last may be missing"


def _unannounced(layers: Layers) -> str:
    DIALECTS["xattr-whiteouts"].delete(layers.upper / "d/file")
    os.removexattr(layers.upper / "d", "trusted.overlay.opaque")
    return "upper/d/file: deletes its name, which its directory does not announce"


def _unused_index(layers: Layers) -> str:
    write(layers.work, {"index/abc": "1"})
    os.setxattr(layers.work / "index/abc", "trusted.overlay.nlink", b"U-1")
    return "work/index/abc: no name is left of this file"


FAULTS = (
    _opaque_with_device,
    _opaque_with_marker,
    _marker_of_nothing,
    _redirect_to_nothing,
    _redirect_that_is_none,
    _left_by_a_crash,
    _left_volatile,
    _unannounced,
    _unused_index,
)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_found_and_mended(layers: Layers, fault: Callable[[Layers], str]) -> None:
    """One line each, status 1; after ``--repair`` there is none left, and the layer can be mounted."""
    expected = fault(layers)
    found = layers.look()
    assert (found.returncode, found.stdout, found.stderr) == (1, f"{layers.base}/{expected}\n", "")
    mended = layers.look("--repair")
    assert (mended.returncode, mended.stdout, mended.stderr) == (0, "", "")
    assert layers.look().returncode == 0
    with unionfs.Union(lower=layers.lower, upper=layers.upper, workdir=layers.work) as union:
        shown = Looker(union).tree()
    moved = {} if "redirect" in fault.__name__ else {"new/file": "0"}
    file = {} if fault is _unannounced else {"d/file": "0"}
    assert shown == {"d/": "", **file, "file": "0", "made/": "", "new/": "", **moved}


def test_all_faults_at_once(layers: Layers) -> None:
    """Each is found beside the others, and all are mended in one run."""
    expected = {f"{layers.base}/{fault(layers)}" for fault in FAULTS if fault is not _redirect_to_nothing}
    assert expected <= set(layers.look().stdout.splitlines())
    assert layers.look("--repair").returncode == 0


def test_data_that_is_missing_cannot_be_mended(layers: Layers) -> None:
    """Nobody can know it: the finding stays, and so does the file."""
    with (layers.upper / "lost").open("wb") as file:
        file.truncate(5)
    os.setxattr(layers.upper / "lost", "trusted.overlay.metacopy", b"")
    for words in ((), ("--repair",)):
        done = layers.look(*words)
        assert (done.returncode, done.stdout) == (1, f"{layers.upper}/lost: its data is in none of the layers\n")


def test_every_layer_is_looked_at(layers: Layers) -> None:
    """Those below are checked as well, each with what is below it."""
    write(layers.lower, {".wh.": "", "made/.wh..wh..opq": "", "made/.wh.x": ""})
    done = layers.look()
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 2
    assert layers.look("--repair").returncode == 0
    assert sorted(os.listdir(layers.lower / "made")) == [".wh..wh..opq"]


@requires("fuse")
def test_a_layer_in_use(layers: Layers) -> None:
    """It can be looked at, work in progress being no fault; mending it is refused."""
    with union_mount(layers.base, [layers.lower], layers.upper, layers.work) as point:
        (point / "file").write_text("1")
        (layers.work / "work/#ff").touch()
        assert layers.look().stdout == ""
        refused = layers.look("--repair")
        (layers.work / "work/#ff").unlink()
    assert refused.returncode == 1
    assert "is in use as the upper layer or workdir of another mount" in refused.stderr


def test_the_workdir_that_was_made_unasked(tmp_path: Path) -> None:
    """It is looked at without being named."""
    (tmp_path / "upper").mkdir()
    write(tmp_path, {".upper.unionfs-work/work/#1": "left"})
    done = run(*COMMAND, "check", tmp_path / "upper", check=False)
    assert done.stdout == f"{tmp_path}/.upper.unionfs-work/work/#1: was left by a crash\n"
    assert run(*COMMAND, "check", "--repair", tmp_path / "upper").stdout == ""


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [([], 2, "check takes"), (["--mend", "."], 2, "'--mend'"), (["/missing"], 1, "/missing: no such layer")],
)
def test_what_the_command_refuses(words: list[str], status: int, text: str) -> None:
    """One line that says why."""
    done = run(*COMMAND, "check", *words, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert text in done.stderr
