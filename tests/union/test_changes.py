"""What counts as added, changed and deleted, in every dialect, from a stack in use and from its directories alone."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Any

import pytest

from unionfs import Union
from unionfs.union.changes import Change, changes_of
from unionfs.union.stack import Config

if TYPE_CHECKING:
    from pathlib import Path

    from tests.union.conftest import Layers
    from unionfs.ondisk import Dialect


@pytest.fixture
def filled(layers: Layers, dialect: Dialect) -> Layers:
    """A tree over three layers."""
    layers.write({"0/a/x": "0x", "1/a/y": "1y", "2/a/sub/z": "2z", "2/file": "file", "1/b/c/d": "d", "2/b-": "sorts"})
    return layers


#: Calls of methods, and what the union then says.
CASES: dict[str, tuple[list[tuple[Any, ...]], list[str]]] = {
    "nothing": ([("read_text", "file")], []),
    "a new file": ([("touch", "a/new")], ["C /a", "A /a/new"]),
    "new directories": ([("makedirs", "n/m")], ["A /n", "A /n/m"]),
    "a changed file": ([("write_text", "b/c/d", "D")], ["C /b", "C /b/c", "C /b/c/d"]),
    "the same content again": ([("write_text", "file", "file")], ["C /file"]),
    "mode of a file": ([("chmod", "a/sub/z", 0o600)], ["C /a", "C /a/sub", "C /a/sub/z"]),
    "mode of a directory": ([("chmod", "a/sub", 0o700)], ["C /a", "C /a/sub"]),
    "time of a directory": ([("utime", "a", (0, 2))], ["C /a"]),
    "attribute of a directory": ([("setxattr", "a/sub", "user.x", b"")], ["C /a", "C /a/sub"]),
    "a deleted file": ([("unlink", "a/y")], ["C /a", "D /a/y"]),
    "a deleted tree": ([("rmtree", "b")], ["D /b"]),
    "made and removed": ([("touch", "new"), ("unlink", "new")], []),
    "made and removed further down": ([("touch", "a/new"), ("unlink", "a/new")], ["C /a"]),
    "a directory made anew": (
        [("rmtree", "a"), ("mkdir", "a"), ("touch", "a/y"), ("touch", "a/new")],
        ["C /a", "A /a/new", "D /a/sub", "D /a/x", "C /a/y"],
    ),
    "a directory for a file": (
        [("unlink", "file"), ("mkdir", "file"), ("touch", "file/in")],
        ["C /file", "A /file/in"],
    ),
    "a file for a directory": ([("rmtree", "b"), ("touch", "b")], ["C /b"]),
    "a renamed file": ([("rename", "file", "moved")], ["D /file", "A /moved"]),
    "a renamed directory": (
        [("rename", "a", "moved")],
        ["D /a", "A /moved", "A /moved/sub", "A /moved/sub/z", "A /moved/x", "A /moved/y"],
    ),
    "renamed and changed": (
        [("rename", "a", "moved"), ("unlink", "moved/x"), ("touch", "moved/new")],
        ["D /a", "A /moved", "A /moved/new", "A /moved/sub", "A /moved/sub/z", "A /moved/y"],
    ),
    "a directory in the place of another": (
        [("rmtree", "b"), ("rename", "a", "b")],
        ["D /a", "C /b", "D /b/c", "A /b/sub", "A /b/sub/z", "A /b/x", "A /b/y"],
    ),
    "there and back": (
        [("rename", "a", "moved"), ("rename", "moved", "a")],
        [],
    ),
    "a link": ([("symlink", "file", "link")], ["A /link"]),
    "a further name": ([("link", "file", "same")], ["C /file", "A /same"]),
    "order": (
        [("write_text", "b-", ""), ("touch", "b/n"), ("touch", "b/c/n")],
        ["C /b", "C /b-", "C /b/c", "A /b/c/n", "A /b/n"],
    ),
    "a name of any bytes": ([("touch", b"n\xff\n")], ["A /n\udcff\n"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_changes(filled: Layers, dialect: Dialect, case: str) -> None:
    """Said by the union itself, by one opened anew, and by a look at the directories, while it is in use and after."""
    calls, expected = CASES[case]
    if case == "there and back" and not dialect.redirects:
        expected = ["C /a", "C /a/sub", "C /a/sub/z", "C /a/x", "C /a/y"]  # all of it was copied
    config = Config(
        [os.fsencode(lower) for lower in filled.lowers], os.fsencode(filled.upper), os.fsencode(filled.work)
    )
    with filled.union() as union:
        for name, *arguments in calls:
            getattr(union, name)(*arguments)
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


def test_an_error_that_is_about_no_path_is_told_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_view: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("unionfs.union.changes.changes", fail)
    with Union(lower=tmp_path) as union, pytest.raises(OSError, match="Input/output error") as caught:
        union.changes()
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, None)
