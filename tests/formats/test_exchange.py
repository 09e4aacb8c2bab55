"""What one implementation writes, the other shows as the same tree: generations of layers, written by either.

Each generation mounts an empty upper over all earlier ones, works through the scripts, and unmounts. Then every
implementation must show the same tree, and still does with a read-only mount of all the layers.
"""

from __future__ import annotations

import itertools
import os
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.mounts import fuse_overlayfs_mount, overlayfs_mount, union_mount
from tests.support.probes import requires
from tests.support.trees import assert_same_tree, snapshot
from unionfs.union.check import check

from . import scripts

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from tests.support.trees import Tree

pytestmark = requires("root", "fuse", "overlayfs", "trusted-xattrs", "user-xattrs")

MOUNTS = {"kernel": overlayfs_mount, "ours": union_mount, "fuse-overlayfs": fuse_overlayfs_mount}


class Way(NamedTuple):
    """A way to mount: who, with which options for a writable mount, and for one of lower layers alone."""

    who: str
    writable: str = ""
    readable: str = ""


KERNEL = Way("kernel", "redirect_dir=on,index=on,metacopy=on,xino=on", "redirect_dir=follow,metacopy=on")
KERNEL_USERXATTR = Way("kernel", "userxattr,xino=on", "userxattr")
KERNEL_PLAIN = Way("kernel", "redirect_dir=off,index=on,xino=on", "redirect_dir=follow")
OURS = Way("ours", "metacopy=on")
OURS_USERXATTR = Way("ours", "userxattr")
OURS_OCI = Way("ours", "whiteouts=oci")
FUSE_OVERLAYFS = Way("fuse-overlayfs")

BUSY_ATTEMPTS = 20
#: What differs between two directories that were filled one after the other, and when layers of links are stacked:
#: what holds those together, the index in a workdir, is no part of a layer.
LINKS = ("mtime_ns", "links")


@contextmanager
def _mount(
    which: str,
    base: Path,
    lowers: Sequence[Path],
    upper: Path | None = None,
    work: Path | None = None,
    options: str = "",
) -> Iterator[Path]:
    """Mount, once more if the kernel takes a layer for used: another mount namespace may have copied the last mount."""
    for attempt in range(BUSY_ATTEMPTS):
        with ExitStack() as stack:
            try:
                point = stack.enter_context(MOUNTS[which](base, lowers, upper, work, options))
            except AssertionError as error:
                if not ("busy" in str(error) or "already mounted" in str(error)) or attempt + 1 == BUSY_ATTEMPTS:
                    raise
                time.sleep(1)
                continue
            yield point
            return


class Generations:
    """Layers made one above the other, topmost first, by the scripts ``names``, without the verbs in ``skip``."""

    def __init__(self, base: Path, names: Iterable[str] = scripts.SCRIPTS, skip: Sequence[str] = ()) -> None:
        self.base = base
        self.chosen = (names, skip)
        self.layers = [base / "bottom"]
        self.layers[0].mkdir()
        scripts.prepare(self.layers[0], *self.chosen)

    def add(self, way: Way) -> None:
        """Let a writer work through the scripts in a new layer above all others."""
        number = len(self.layers)
        layer, work = self.base / f"layer{number}", self.base / f"work{number}"
        layer.mkdir()
        work.mkdir()
        with _mount(way.who, self.base, self.layers, layer, work, way.writable) as point:
            scripts.work(point, number - 1, *self.chosen)
        if way.who == "ours":
            found = check(os.fsencode(layer), os.fsencode(work), list(map(os.fsencode, self.layers)))
            assert list(map(str, found)) == []
        self.layers.insert(0, layer)

    def as_upper(self, way: Way) -> Tree:
        """Return the tree with the last layer as the writable one, as a reader shows it."""
        work = self.base / f"work{len(self.layers) - 1}"
        with _mount(way.who, self.base, self.layers[1:], self.layers[0], work, way.writable) as point:
            return snapshot(point)

    def as_lowers(self, way: Way) -> Tree:
        """Return the tree of a read-only mount of all the layers, as a reader shows it."""
        with _mount(way.who, self.base, self.layers, options=way.readable) as point:
            return snapshot(point)

    def plain(self) -> Tree:
        """Return what a plain directory holds after the same steps."""
        place = self.base / "plain"
        place.mkdir()
        scripts.prepare(place, *self.chosen)
        for number in range(len(self.layers) - 1):
            scripts.work(place, number, *self.chosen)
        return snapshot(place)


def _without_links(tree: Tree) -> Tree:
    """Return the tree but for the scripts that are about hard links, which stacking breaks."""
    return {path: entry for path, entry in tree.items() if not path.startswith(b"links")}


@pytest.mark.parametrize(
    "writers",
    list(itertools.product((KERNEL, OURS), repeat=2)),
    ids=lambda ways: " then ".join(way.who for way in ways),
)
def test_the_kernel_and_we(tmp_path: Path, writers: tuple[Way, Way]) -> None:
    """Whoever wrote the layers, both show one tree, and it is the one that a plain directory would hold."""
    made = Generations(tmp_path)
    for writer in writers:
        made.add(writer)
    kernel, ours = made.as_upper(KERNEL), made.as_upper(OURS)
    assert_same_tree(kernel, ours)
    assert_same_tree(made.plain(), ours, ignore=LINKS)
    lowers = made.as_lowers(OURS)
    assert_same_tree(made.as_lowers(KERNEL), lowers)
    assert_same_tree(_without_links(ours), _without_links(lowers), ignore=LINKS)


@pytest.mark.parametrize(
    "writers",
    list(itertools.product((KERNEL_USERXATTR, OURS_USERXATTR), repeat=2)),
    ids=lambda ways: " then ".join(way.who for way in ways),
)
def test_with_attributes_of_users(tmp_path: Path, writers: tuple[Way, Way]) -> None:
    """The same with ``userxattr``; there the kernel renames no directory that has lower parts."""
    made = Generations(tmp_path, scripts.STILL if KERNEL_USERXATTR in writers else scripts.SCRIPTS)
    for writer in writers:
        made.add(writer)
    ours = made.as_upper(OURS_USERXATTR)
    assert_same_tree(_without_links(made.plain()), _without_links(ours), ignore=LINKS)
    kernel, lowers = made.as_lowers(KERNEL_USERXATTR), made.as_lowers(OURS_USERXATTR)
    assert_same_tree(_without_links(kernel), _without_links(lowers))
    assert_same_tree(_without_links(ours), _without_links(lowers), ignore=LINKS)


@requires("fuse-overlayfs")
@pytest.mark.parametrize(
    "writer", [OURS_OCI, OURS_USERXATTR, Way("ours", "whiteouts=overlay")], ids=lambda way: way.writable
)
def test_fuse_overlayfs_reads_what_we_write(tmp_path: Path, writer: Way) -> None:
    """It knows no redirects and no files without data; all the rest, in every dialect."""
    made = Generations(tmp_path, scripts.STILL if "overlay" in writer.writable else scripts.SCRIPTS)
    made.add(writer)
    made.add(writer)
    lowers = made.as_lowers(OURS)
    assert_same_tree(_without_links(made.plain()), _without_links(lowers), ignore=LINKS)
    assert_same_tree(_without_links(made.as_lowers(FUSE_OVERLAYFS)), _without_links(lowers), ignore=LINKS)


@requires("fuse-overlayfs")
@pytest.mark.parametrize("second", [FUSE_OVERLAYFS, OURS, OURS_OCI], ids=lambda way: way.who + way.writable)
def test_we_read_what_fuse_overlayfs_writes(tmp_path: Path, second: Way) -> None:
    """With its own marks, and what we add to them in whichever dialect."""
    made = Generations(tmp_path, [name for name in scripts.STILL if name != "links"])
    made.add(FUSE_OVERLAYFS)
    assert_same_tree(made.as_upper(FUSE_OVERLAYFS), made.as_upper(OURS), ignore=("mtime_ns", "xattrs"))
    made.add(second)
    ours = made.as_upper(OURS)
    assert_same_tree(_without_links(made.plain()), _without_links(ours), ignore=LINKS)
    assert_same_tree(ours, made.as_lowers(OURS))
