"""Each thing that can be wrong with a writable layer is found, and mended without a loss."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.support.probes import requires
from unionfs import errors
from unionfs.union.check import check, repair

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.union.conftest import Layers


def arguments(layers: Layers) -> tuple[bytes, bytes, list[bytes]]:
    return os.fsencode(layers.upper), os.fsencode(layers.work), [os.fsencode(lower) for lower in layers.lowers]


def found(layers: Layers) -> dict[str, str]:
    """Return the problems by path, from the directory of the whole stack."""
    base = f"{layers.upper.parent}/"
    return {finding.path.removeprefix(base): finding.problem for finding in check(*arguments(layers))}


def test_what_a_union_leaves_is_sound(layers: Layers, dialect: object) -> None:
    """After changes of every kind, also while it is in use."""
    layers.write({"0/a/x": "", "1/a/y": "", "2/b/c": ""})
    os.link(layers.lowers[1] / "a" / "y", layers.lowers[1] / "same")
    with layers.union() as union:
        union.rmtree("b")
        union.mkdir("b")
        union.rename("a", "moved")
        union.write_text("same", "changed")
        assert {path: text for path, text in found(layers).items() if "incompat" not in path} == {}
    assert found(layers) == {}


@requires("user-xattrs")
def test_each_problem_is_found_and_mended(layers: Layers) -> None:
    """And only what is wrong is touched."""
    layers.write({"0/real/in": "", "1/d/low": "", "upper/keep": "keep", "upper/d/own": "own"})
    layers.write({"upper/o/.wh..wh..opq": "", "upper/o/.wh.gone": "", "upper/o/stays": "", "upper/.wh.": ""})
    layers.write({"upper/x": "x", "upper/.wh.x": "", "upper/.wh.real": "", "upper/dir/": "", "upper/.wh.dir": ""})
    prefix = "trusted" if os.geteuid() == 0 else "user"  # root does not follow what an owner may have written
    os.setxattr(layers.upper / "d", f"{prefix}.overlay.redirect", b"/no/such")
    (layers.work / "work" / "#1" / "sub").mkdir(parents=True)
    (layers.work / "work" / "#2").write_text("half")
    (layers.work / "index").mkdir()
    (layers.work / "index" / "00fb").write_text("lost")
    os.setxattr(layers.work / "index" / "00fb", "user.overlay.nlink", b"U-1")
    assert found(layers) == {
        "upper/.wh.": "a whiteout of no name",
        "upper/.wh.x": "a whiteout beside a file of the name that it deletes",
        "upper/d": "its redirect leads nowhere: /no/such",
        "upper/o/.wh.gone": "a whiteout in an opaque directory, which has nothing to hide",
        "work/index/00fb": "no name is left of this file",
        "work/work/#1": "was left by a crash",
        "work/work/#2": "was left by a crash",
    }
    with layers.union(volatile=False) as union:
        before = {path: sorted(names) for path, _, names in union.walk("/")}
    (layers.work / "work" / "#3").touch()
    assert repair(*arguments(layers)) == []
    assert found(layers) == {}
    with layers.union(volatile=False) as union:
        after = {path: sorted(names) for path, _, names in union.walk("/")}
        assert after == before
        assert after == {"/": ["keep", "x"], "/d": ["own"], "/dir": [], "/o": ["stays"]}


@requires("root")
def test_whiteouts_of_overlayfs_in_opaque_directories(layers: Layers) -> None:
    """The kernel calls such a layer corrupt (containers/fuse-overlayfs#306)."""
    (layers.upper / "o").mkdir()
    os.setxattr(layers.upper / "o", "trusted.overlay.opaque", b"y")
    os.mknod(layers.upper / "o" / "gone", stat.S_IFCHR, 0)
    os.mknod(layers.upper / "fine", stat.S_IFCHR, 0)
    os.mknod(layers.upper / "o" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert list(found(layers)) == ["upper/o/gone"]
    assert repair(*arguments(layers)) == []
    assert sorted(os.listdir(layers.upper / "o")) == ["null"]
    assert os.listdir(layers.upper) == ["fine", "o"] or os.listdir(layers.upper) == ["o", "fine"]


def test_the_sign_of_a_crash_goes_when_that_is_asked_for(layers: Layers) -> None:
    """Looking leaves it alone; mending means that somebody has read what may be missing, and wants to go on."""
    (layers.work / "work" / "incompat" / "volatile").mkdir(parents=True)
    (found,) = check(*arguments(layers))
    assert "volatile" in str(found)
    assert repair(*arguments(layers)) == []
    assert not (layers.work / "work" / "incompat").exists()


def test_nothing_is_mended_under_a_mount(layers: Layers) -> None:
    """Looking is allowed."""
    with layers.union(volatile=False):
        assert check(*arguments(layers)) == []
        with pytest.raises(errors.LayerInUse):
            repair(*arguments(layers))


def test_a_layer_that_is_not_there(layers: Layers) -> None:
    """Said as for a mount."""
    with pytest.raises(errors.LayerMissing):
        check(os.fsencode(layers.upper / "none"))


@requires("user-xattrs")
def test_a_redirect_is_taken_away_last(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash in between shows nothing of what lies below the directory's name."""
    layers.write({"0/d/low": "", "upper/d/own": ""})
    prefix = "trusted" if os.geteuid() == 0 else "user"
    os.setxattr(layers.upper / "d", f"{prefix}.overlay.redirect", b"/no/such")

    changes: list[Callable[..., None]] = [os.setxattr, os.removexattr]

    def once(path: bytes, attribute: bytes, *value: bytes) -> None:
        if not changes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        changes.pop(0 if value else 1)(path, attribute, *value)
        changes.clear()

    with monkeypatch.context() as patched:
        patched.setattr(os, "setxattr", once)
        patched.setattr(os, "removexattr", once)
        with pytest.raises(OSError, match="Input"):
            repair(*arguments(layers))
    with layers.union() as union:
        assert union.listdir("d") == ["own"]
    assert repair(*arguments(layers)) == []
