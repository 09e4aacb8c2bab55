"""Scripts of changes, each in a directory of its own: what is there, and two generations of what is done to it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from tests.support.mounts import run

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable
    from pathlib import Path

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
        (
            ("chmod", "a/file", "4711"),
            ("chown", "a/b/file", "1000"),
            ("set", "d/file", "user.x=1"),
            ("chmod", "d", "700"),
        ),
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
    "moved-files": (
        (("mv", "a/file", "a/moved"), ("mv", "top", "d/top"), ("mv", "a/b/file", "a/b/c/file")),
        (("mv", "a/moved", "a/file"), ("mv", "d/top", "other"), ("write", "top", "new")),
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


#: Those that rename no directory with lower parts, which not every implementation can.
STILL = ("deleted-and-made", "kinds", "attributes", "moved-files", "links")


def prepare(root: Path, names: Iterable[str] = SCRIPTS, skip: Container[str] = ()) -> None:
    """Make what the scripts ``names`` start from below ``root``, without the steps whose verb is in ``skip``."""
    for name in names:
        (root / name).mkdir()
        _run(root / name, BASE, skip)


def work(root: Path, generation: int, names: Iterable[str] = SCRIPTS, skip: Container[str] = ()) -> None:
    """Do the steps of one generation of the scripts below ``root``."""
    for name in names:
        _run(root / name, SCRIPTS[name][generation], skip)


def _run(place: Path, steps: Iterable[Step], skip: Container[str]) -> None:
    for verb, *words in steps:
        if verb not in skip:
            _step(place, verb, *words)
