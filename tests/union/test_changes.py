"""What counts as added, changed and deleted, in every dialect, from a stack in use and from its directories alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from unionfs.union.changes import Change, changes_of
from unionfs.union.stack import Config

if TYPE_CHECKING:
    from collections.abc import Callable

    import unionfs
    from tests.union.conftest import Layers
    from unionfs.ondisk import Dialect


@pytest.fixture
def filled(layers: Layers, dialect: Dialect) -> Layers:
    """A tree over three layers."""
    layers.write({"0/a/x": "0x", "1/a/y": "1y", "2/a/sub/z": "2z", "2/file": "file", "1/b/c/d": "d", "2/b-": "sorts"})
    return layers


def rewrite(union: unionfs.Union) -> None:
    union.write_text("file", "file")


CASES: dict[str, tuple[Callable[[unionfs.Union], object], list[str]]] = {
    "nothing": (lambda union: union.read_text("file"), []),
    "a new file": (lambda union: union.touch("a/new"), ["C /a", "A /a/new"]),
    "new directories": (lambda union: union.makedirs("n/m"), ["A /n", "A /n/m"]),
    "a changed file": (lambda union: union.write_text("b/c/d", "D"), ["C /b", "C /b/c", "C /b/c/d"]),
    "the same content again": (rewrite, ["C /file"]),
    "mode of a file": (lambda union: union.chmod("a/sub/z", 0o600), ["C /a", "C /a/sub", "C /a/sub/z"]),
    "mode of a directory": (lambda union: union.chmod("a/sub", 0o700), ["C /a", "C /a/sub"]),
    "time of a directory": (lambda union: union.utime("a", ns=(1, 2)), ["C /a"]),
    "attribute of a directory": (lambda union: union.setxattr("a/sub", "user.x", b""), ["C /a", "C /a/sub"]),
    "a deleted file": (lambda union: union.unlink("a/y"), ["C /a", "D /a/y"]),
    "a deleted tree": (lambda union: union.rmtree("b"), ["D /b"]),
    "made and removed": (lambda union: (union.touch("new"), union.unlink("new")), []),
    "made and removed further down": (lambda union: (union.touch("a/new"), union.unlink("a/new")), ["C /a"]),
    "a directory made anew": (
        lambda union: (union.rmtree("a"), union.mkdir("a"), union.touch("a/y"), union.touch("a/new")),
        ["C /a", "A /a/new", "D /a/sub", "D /a/x", "C /a/y"],
    ),
    "a directory for a file": (
        lambda union: (union.unlink("file"), union.mkdir("file"), union.touch("file/in")),
        ["C /file", "A /file/in"],
    ),
    "a file for a directory": (lambda union: (union.rmtree("b"), union.touch("b")), ["C /b"]),
    "a renamed file": (lambda union: union.rename("file", "moved"), ["D /file", "A /moved"]),
    "a renamed directory": (
        lambda union: union.rename("a", "moved"),
        ["D /a", "A /moved", "A /moved/sub", "A /moved/sub/z", "A /moved/x", "A /moved/y"],
    ),
    "renamed and changed": (
        lambda union: (union.rename("a", "moved"), union.unlink("moved/x"), union.touch("moved/new")),
        ["D /a", "A /moved", "A /moved/new", "A /moved/sub", "A /moved/sub/z", "A /moved/y"],
    ),
    "a directory in the place of another": (
        lambda union: (union.rmtree("b"), union.rename("a", "b")),
        ["D /a", "C /b", "D /b/c", "A /b/sub", "A /b/sub/z", "A /b/x", "A /b/y"],
    ),
    "there and back": (
        lambda union: (union.rename("a", "moved"), union.rename("moved", "a")),
        [],
    ),
    "a link": (lambda union: union.symlink("file", "link"), ["A /link"]),
    "a further name": (lambda union: union.link("file", "same"), ["C /file", "A /same"]),
    "order": (
        lambda union: (union.write_text("b-", ""), union.touch("b/n"), union.touch("b/c/n")),
        ["C /b", "C /b-", "C /b/c", "A /b/c/n", "A /b/n"],
    ),
    "a name of any bytes": (lambda union: union.touch(b"n\xff\n"), ["A /n\udcff\n"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_changes(filled: Layers, dialect: Dialect, case: str) -> None:
    """Said by the union itself, by one opened anew, and by a look at the directories, while it is in use and after."""
    change, expected = CASES[case]
    if case == "there and back" and not dialect.redirects:
        expected = ["C /a", "C /a/sub", "C /a/sub/z", "C /a/x", "C /a/y"]  # all of it was copied
    config = Config(
        [os.fsencode(lower) for lower in filled.lowers], os.fsencode(filled.upper), os.fsencode(filled.work)
    )
    with filled.union() as union:
        change(union)
        assert list(map(str, union.changes())) == expected
        assert list(map(str, changes_of(config))) == expected
        assert union.read_text("b-") is not None, "the union goes on"
    assert list(map(str, changes_of(config))) == expected
    with filled.union() as union:
        assert list(map(str, union.changes())) == expected


def test_a_change_is_a_pair(filled: Layers) -> None:
    """To be taken apart."""
    with filled.union() as union:
        union.touch("new")
        ((kind, path),) = union.changes()
    assert (kind, path) == Change("A", "/new")


def test_what_others_wrote_is_read(layers: Layers) -> None:
    """Whiteouts and opaque directories of container images, fuse-overlayfs, and xattr whiteouts, as an upper layer."""
    layers.write({"0/a/x": "x", "1/a/y": "y", "2/b/z": "z", "1/c": "c", "2/e": "", "2/f/g": "g", "upper/a/.wh.x": ""})
    layers.write({"upper/.wh.c": "", "upper/b/.wh..wh..opq": "", "upper/f/": "", "upper/e": ""})
    os.setxattr(layers.upper / "f", "user.fuseoverlayfs.opaque", b"y")
    os.setxattr(layers.upper, "user.overlay.opaque", b"x")
    os.setxattr(layers.upper / "e", "user.overlay.whiteout", b"")
    with layers.union() as union:
        assert list(map(str, union.changes())) == ["C /a", "D /a/x", "C /b", "D /b/z", "D /c", "D /e", "C /f", "D /f/g"]
        assert sorted(union.listdir("/")) == ["a", "b", "f"]
        assert (union.exists("e"), union.exists("c"), union.listdir("f")) == (False, False, [])
    (layers.upper / "e").unlink()
