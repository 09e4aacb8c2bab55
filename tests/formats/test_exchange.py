"""What one implementation writes, the other shows as the same tree: generations of layers, written by either.

Each generation mounts an empty upper over all earlier ones, works through a script, and unmounts. Then every
implementation must show the same tree, and still does with a read-only mount of all the layers.
"""

from __future__ import annotations

import itertools
import os
import shutil
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.mounts import overlayfs_mount, run, union_mount
from tests.support.probes import requires
from tests.support.trees import assert_same_tree, snapshot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tests.support.trees import Tree

pytestmark = requires("root", "fuse", "overlayfs", "trusted-xattrs")

MOUNTS = {"kernel": overlayfs_mount, "ours": union_mount}
OPTIONS = {"kernel": "redirect_dir=on,index=on,metacopy=on,xino=on", "ours": "metacopy=on"}
READ_ONLY = {"kernel": "redirect_dir=follow,metacopy=on", "ours": ""}

BUSY_ATTEMPTS = 10

Step = tuple[str, ...]

BASE: tuple[Step, ...] = (
    ("mkdir", "a/b/c", "d/e/f", "g/h", "shared", "empty"),
    *(("write", f"{place}/file", place) for place in ("a", "a/b", "a/b/c", "d", "d/e", "d/e/f", "g", "g/h")),
    ("write", "top", "top"),
    ("write", "other", "other"),
    ("link", "shared/one", "shared/two"),
    ("symlink", "a/link", "b/file"),
)

#: Two generations each: what is done to the base, and what is done to the result.
SCRIPTS: dict[str, tuple[tuple[Step, ...], tuple[Step, ...]]] = {
    "rename": ((("mv", "a", "x"),), (("mv", "x", "y"), ("rm", "y/b/file"))),
    "rename-within": ((("mv", "a/b", "a/z"),), (("mv", "a/z/c", "a/z/cc"), ("mv", "a", "aa"))),
    "nested": (
        (("mv", "a/b/c", "a/b/cc"), ("mv", "a/b", "a/bb"), ("mv", "a", "aa")),
        (("mv", "aa/bb", "bb"), ("write", "bb/cc/new", "1"), ("mv", "bb/cc", "aa/c")),
    ),
    "into-another": ((("mv", "a", "d/a"), ("mv", "d", "g/d")), (("mv", "g/d/a/b", "b"), ("mv", "g", "gg"))),
    "over-an-empty-one": ((("mv", "a", "empty"),), (("mkdir", "a"), ("write", "a/new", "1"))),
    "and-back": ((("mv", "a", "x"),), (("mv", "x", "a"), ("write", "a/b/file", "changed"))),
    "exchange": ((("exchange", "a", "d"),), (("exchange", "a/e", "d/b"), ("rm", "a/file"))),
    "exchange-file-and-directory": ((("exchange", "top", "a"),), (("mv", "top", "t"), ("chmod", "t/b/file", "600"))),
    "replaced-names": (
        (("mv", "a", "x"), ("mkdir", "a"), ("write", "a/file", "new")),
        (("rm", "a"), ("mv", "x/b", "a"), ("mv", "d", "x/b")),
    ),
    "deleted-and-made": (
        (("rm", "a"), ("rm", "top"), ("mkdir", "a/b"), ("write", "top", "new")),
        (("rm", "a/b"), ("rm", "d/e"), ("mkdir", "d/e"), ("write", "d/e/new", "1")),
    ),
    "kinds": (
        (("rm", "a"), ("write", "a", "a file"), ("rm", "top"), ("mkdir", "top/in")),
        (("rm", "a"), ("symlink", "a", "d"), ("rm", "top"), ("fifo", "top")),
    ),
    "attributes": (
        (("chmod", "a/file", "4711"), ("chown", "a/b/file", "1000"), ("set", "d/file", "user.x=1"), ("chmod", "d", "700")),
        (("chmod", "a/file", "600"), ("touch", "a/b/file"), ("set", "d/file", "user.y=2"), ("chown", "g", "7")),
    ),
    "attributes-and-renames": (
        (("chmod", "a/file", "600"), ("mv", "a/file", "a/moved"), ("chmod", "d/e/file", "600"), ("mv", "d", "dd")),
        (("mv", "a/moved", "moved"), ("mv", "dd/e", "e"), ("chown", "e/file", "7"), ("mv", "e/file", "a/file")),
    ),
    "attributes-then-data": (
        (("chmod", "a/file", "600"), ("chown", "d/file", "7"), ("chmod", "g/file", "600")),
        (("append", "a/file", "more"), ("write", "d/file", "new"), ("mv", "g", "gg"), ("append", "gg/file", "more")),
    ),
    "links": (
        (("append", "shared/one", "more"), ("link", "top", "a/top")),
        (("rm", "shared/two"), ("chmod", "a/top", "600"), ("link", "a/top", "d/top")),
    ),
    "links-of-copied-attributes": (
        (("chmod", "top", "600"), ("link", "top", "a/top")),
        (("rm", "top"), ("mv", "a", "aa"), ("append", "aa/top", "more")),
    ),
}


def _step(root: Path, verb: str, *words: str) -> None:
    """Do one step of a script below ``root``."""
    place = root / words[0]
    if verb == "mkdir":
        for word in words:
            (root / word).mkdir(parents=True, exist_ok=True)
    elif verb == "link":
        _link(place, root / words[1])
    elif verb == "rm":
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    elif verb == "exchange":
        _exchange(place, root / words[1])
    else:
        SIMPLE[verb](root, place, *words[1:])


def _link(old: Path, new: Path) -> None:
    if not old.exists():
        old.write_text("linked")
    new.hardlink_to(old)


def _exchange(one: Path, other: Path) -> None:
    run("python3", "-c", _EXCHANGE, one, other)


_EXCHANGE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.renameat2(-100, os.fsencode(sys.argv[1]), -100, os.fsencode(sys.argv[2]), 2):
    sys.exit(os.strerror(ctypes.get_errno()))
"""


def _append(_root: Path, place: Path, text: str) -> None:
    with place.open("a") as file:
        file.write(text)


def _set(_root: Path, place: Path, word: str) -> None:
    name, _, value = word.partition("=")
    os.setxattr(place, name, value.encode())


SIMPLE: dict[str, Callable[..., object]] = {
    "write": lambda _root, place, text: place.write_text(text),
    "append": _append,
    "mv": lambda root, place, to: place.rename(root / to),
    "symlink": lambda _root, place, to: place.symlink_to(to),
    "fifo": lambda _root, place: os.mkfifo(place),
    "chmod": lambda _root, place, mode: place.chmod(int(mode, 8)),
    "chown": lambda _root, place, uid: os.chown(place, int(uid), int(uid)),
    "touch": lambda _root, place: os.utime(place, ns=(10**18, 10**18)),
    "set": _set,
}


@contextmanager
def _mount(
    which: str, base: Path, lowers: Sequence[Path], upper: Path | None = None, work: Path | None = None, options: str = ""
) -> Iterator[Path]:
    """Mount, once more if the kernel still takes a layer for used: another's mount namespace may have copied the mount."""
    for attempt in range(BUSY_ATTEMPTS):
        with ExitStack() as stack:
            try:
                point = stack.enter_context(MOUNTS[which](base, lowers, upper, work, options))
            except AssertionError as error:
                if "busy" not in str(error) or attempt + 1 == BUSY_ATTEMPTS:
                    raise
                time.sleep(0.2)
                continue
            yield point
            return


class Generations(NamedTuple):
    """Layers made one above the other, topmost first."""

    base: Path
    layers: list[Path]

    def add(self, writer: str, script: Sequence[Step]) -> None:
        """Let ``writer`` work through ``script`` in a new layer above all others."""
        layer, work = self.base / f"layer{len(self.layers)}", self.base / f"work{len(self.layers)}"
        layer.mkdir()
        work.mkdir()
        with _mount(writer, self.base, self.layers, layer, work, OPTIONS[writer]) as point:
            for step in script:
                _step(point, *step)
        self.layers.insert(0, layer)

    def as_upper(self, reader: str) -> Tree:
        """Return the tree with the last layer as the writable one, as ``reader`` shows it."""
        work = self.base / f"work{len(self.layers) - 1}"
        with _mount(reader, self.base, self.layers[1:], self.layers[0], work, OPTIONS[reader]) as point:
            return snapshot(point)

    def as_lowers(self, reader: str) -> Tree:
        """Return the tree of a read-only mount of all the layers, as ``reader`` shows it."""
        with _mount(reader, self.base, self.layers, options=READ_ONLY[reader]) as point:
            return snapshot(point)


def _plain(place: Path, name: str) -> Tree:
    """Return what a plain directory holds after the same steps."""
    for step in (*BASE, *itertools.chain.from_iterable(SCRIPTS[name])):
        _step(place, *step)
    return snapshot(place)


@pytest.fixture
def base(tmp_path: Path) -> Generations:
    """The lowest layer, which no overlay has written."""
    bottom = tmp_path / "bottom"
    bottom.mkdir()
    for step in BASE:
        _step(bottom, *step)
    return Generations(tmp_path, [bottom])


#: What differs between two directories that were filled one after the other, and when layers of links are stacked.
LINKS = ("mtime_ns", "links")


@pytest.mark.parametrize("writers", itertools.product(MOUNTS, repeat=2), ids=" then ".join)
@pytest.mark.parametrize("name", SCRIPTS)
def test_generations(tmp_path: Path, base: Generations, name: str, writers: tuple[str, str]) -> None:
    """Whoever wrote the layers, both show one tree, and it is the one that a plain directory would hold."""
    for writer, script in zip(writers, SCRIPTS[name], strict=True):
        base.add(writer, script)
    kernel, ours = base.as_upper("kernel"), base.as_upper("ours")
    assert_same_tree(kernel, ours)
    (tmp_path / "plain").mkdir()
    assert_same_tree(_plain(tmp_path / "plain", name), ours, ignore=LINKS)
    assert_same_tree(base.as_lowers("kernel"), base.as_lowers("ours"))
    if not name.startswith("links"):  # what holds links together, the kernel's index, is no part of a layer
        assert_same_tree(ours, base.as_lowers("ours"), ignore=LINKS)
