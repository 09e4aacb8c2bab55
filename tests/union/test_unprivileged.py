"""A union in the hands of an ordinary user, over layers of their own and of others."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import unionfs
from unionfs import ondisk
from unionfs.union.check import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOBODY = 65534


def as_nobody(function: Callable[[], None]) -> None:
    """Call ``function`` in a process without privilege; fail with its traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        with open(writing, "w") as report:
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setgid(NOBODY)
                    os.setuid(NOBODY)
                function()
            except BaseException:
                report.write(traceback.format_exc())
        os._exit(0)
    os.close(writing)
    with open(reading) as report:
        said = report.read()
    os.waitpid(child, 0)
    assert said == ""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user can enter, with a lower layer of ours and an upper of theirs."""
    made = Path(tempfile.mkdtemp())
    made.chmod(0o755)
    lower = made / "lower"
    for name, text in {"a/x": "x", "a/sub/y": "y", "secret": "secret", "run": "#!"}.items():
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).write_text(text)
    (lower / "secret").chmod(0o600)
    (lower / "run").chmod(0o6755)
    (lower / "link").symlink_to("a/x")
    (made / "theirs").mkdir()
    (made / "theirs" / "upper").mkdir()
    if os.geteuid() == 0:
        for path in (made / "theirs", made / "theirs" / "upper"):
            os.chown(path, NOBODY, NOBODY)
    yield made
    shutil.rmtree(made)


def test_whoever_may_read_may_change_a_copy(place: Path) -> None:
    """Files and directories of other owners: the copies belong to who makes them, and are never set-id."""

    def work() -> None:
        with unionfs.Union(lower=place / "lower", upper=place / "theirs" / "upper") as union:
            assert union._stack.upper is not None
            assert union._stack.upper.dialect is not ondisk.OVERLAY, "trusted.* is for root alone"
            union.write_text("a/x", "changed")
            union.unlink("a/sub/y")
            union.rename("a", "moved")
            union.mkdir("a")
            union.rename("link", "a/link")
            union.chmod("run", 0o755)
            assert union.stat("run").st_uid == os.getuid()
            assert stat.S_IMODE(union.stat("run").st_mode) == 0o755
        with unionfs.Union(lower=place / "lower", upper=place / "theirs" / "upper") as union:
            assert union.read_text("moved/x") == "changed"
            assert (union.listdir("moved/sub"), union.listdir("a")) == ([], ["link"])
            assert [str(change) for change in union.changes()] == [
                "C /a",
                "A /a/link",
                "D /a/sub",
                "D /a/x",
                "D /link",
                "A /moved",
                "A /moved/sub",
                "A /moved/x",
                "C /run",
            ]
        upper = os.fsencode(place / "theirs" / "upper")
        assert check(upper, None, [os.fsencode(place / "lower")]) == []

    as_nobody(work)
    assert (place / "lower" / "a" / "x").read_text() == "x"


@pytest.mark.skipif(os.geteuid() != 0, reason="not run as root: there is nothing that this user may not read")
def test_what_may_not_be_read_may_not_be_changed(place: Path) -> None:
    """But it may be deleted: that takes nothing from the layer."""

    def work() -> None:
        with unionfs.Union(lower=place / "lower", upper=place / "theirs" / "upper") as union:
            for call in (union.read_text, lambda path: union.open(path, "a"), lambda path: union.chmod(path, 0o644)):
                with pytest.raises(PermissionError):
                    call("secret")
            union.unlink("secret")
            assert not union.exists("secret")

    as_nobody(work)
    assert (place / "lower" / "secret").read_text() == "secret"


def test_set_id_bits_are_not_carried_over(place: Path) -> None:
    """A copy of a set-id program of somebody else would run as whoever made the copy."""

    def work() -> None:
        with unionfs.Union(lower=place / "lower", upper=place / "theirs" / "upper") as union:
            union.utime("run", ns=(1, 2))
            if os.geteuid() != os.stat(place / "lower" / "run").st_uid:
                assert stat.S_IMODE(union.stat("run").st_mode) == 0o755

    as_nobody(work)


def test_directories_that_may_not_be_searched(place: Path) -> None:
    """The owner of a directory without permissions can remove it with all that is in it, once they are there."""

    def work() -> None:
        with unionfs.Union(lower=place / "lower", upper=place / "theirs" / "upper") as union:
            union.makedirs("own/deep")
            union.chmod("own/deep", 0)
            if os.geteuid() != 0:
                with pytest.raises(PermissionError):
                    union.listdir("own/deep")
            union.chmod("own/deep", 0o700)
            union.rmtree("own")

    as_nobody(work)


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_an_upper_of_somebody_else_will_do(place: Path, mode: int) -> None:
    """Who may not set its times or attributes copies all the same: they are hints, or change."""
    upper = place / "upper"
    upper.mkdir()
    upper.chmod(mode)

    def work() -> None:
        with unionfs.Union(lower=place / "lower", upper=upper, workdir=place / "theirs/upper") as union:
            union.write_text("run", "new")
            union.write_text("a/x", "new")
            assert (union.read_text("run"), union.read_text("a/x")) == ("new", "new")

    as_nobody(work)


@pytest.fixture
def locked(place: Path) -> Path:
    """The same, with a lower layer of theirs whose directories they may not write to."""
    lower = place / "theirs" / "lower"
    (lower / "locked" / "sub").mkdir(parents=True)
    (lower / "locked" / "file").write_text("old")
    (lower / "empty").mkdir()
    for path in (lower, lower / "empty", lower / "locked", lower / "locked" / "sub", lower / "locked" / "file"):
        os.chown(path, NOBODY if os.geteuid() == 0 else -1, -1)
    for path in (lower / "locked" / "sub", lower / "locked"):
        path.chmod(0o555)
    return place / "theirs"


def _modes(union: unionfs.Union, *paths: str) -> list[int]:
    return [stat.S_IMODE(union.stat(path).st_mode) for path in paths]


@pytest.mark.parametrize("mode", [0o444, 0o200, 0])
def test_what_is_in_a_directory_that_may_not_be_written_changes(locked: Path, mode: int) -> None:
    """Its owner may change a file in it, or a directory: that this copies them up is no business of the user's."""

    def work() -> None:
        with unionfs.Union(lower=locked / "lower", upper=locked / "upper") as union:
            union.chmod("locked/file", mode)
            union.utime("locked/sub", ns=(1, 2))
            ino = union.stat("locked/file").st_ino
            assert _modes(union, "locked", "locked/sub", "locked/file") == [0o555, 0o555, mode]
        with unionfs.Union(lower=locked / "lower", upper=locked / "upper") as union:
            assert union.stat("locked/file").st_ino == ino
            assert union.stat("locked/sub").st_mtime_ns == 2
            assert _modes(union, "locked", "locked/sub", "locked/file") == [0o555, 0o555, mode]
            union.chmod("locked/file", 0o600)
            assert union.read_text("locked/file") == "old"
        assert stat.S_IMODE((locked / "upper" / "locked").stat().st_mode) == 0o555

    as_nobody(work)


@pytest.mark.parametrize("name", ["empty", "new"])
@pytest.mark.parametrize("mode", [0, 0o111, 0o555])
def test_a_directory_without_rights_is_removed_and_replaced(locked: Path, name: str, mode: int) -> None:
    """rmdir(2) and rename(2) ask for rights on the directory above alone."""

    def work() -> None:
        with unionfs.Union(lower=locked / "lower", upper=locked / "upper") as union:
            union.mkdir("other")
            if name == "new":
                union.mkdir(name)
            union.chmod(name, mode)
            union.rmdir(name)
            assert not union.exists(name)
            union.mkdir(name, mode)
            union.rename("other", name)
            assert _modes(union, name) == [0o755]
            union.chmod(name, mode)
        with unionfs.Union(lower=locked / "lower", upper=locked / "upper") as union:
            assert _modes(union, name) == [mode]
            union.rmdir(name)
        upper = os.fsencode(locked / "upper")
        assert check(upper, None, [os.fsencode(locked / "lower")]) == []

    as_nobody(work)


def test_a_directory_that_may_be_read_but_not_searched(place: Path) -> None:
    """Its owner sees its names, and no more than these."""

    def work() -> None:
        with unionfs.Union(lower=place / "lower", upper=place / "theirs" / "upper") as union:
            union.mkdir("own")
            union.touch("own/file")
            union.chmod("own", 0o600)
            assert union.listdir("own") == ["file"]

    as_nobody(work)


@pytest.mark.parametrize("mode", [0, 0o555, 0o2555])
def test_a_removed_directory_that_is_open_keeps_its_mode(locked: Path, mode: int) -> None:
    """Though what it hides has to be taken out of it, and directories in it be moved."""

    def work() -> None:
        with unionfs.Union(lower=locked / "lower", upper=locked / "upper") as union:
            _empty(union, "locked")
            (locked / "upper/locked/.wh.nested/below").mkdir(parents=True)  # an unknown marker, which hides nothing
            union.chmod("locked", mode)
            node = union._node("locked", follow=False)
            node.lookups += 1
            union.rmdir("locked")
            assert stat.S_IMODE(union._stack.view.stat(node).st_mode) == mode
            assert union._stack.upper is not None
            assert os.listdir(union._stack.upper.work) == ["#whiteout"]

    as_nobody(work)


def test_rights_are_lent_where_there_is_no_room_for_a_note(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To look at a file, or to remove a directory, takes none."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def work() -> None:
        with unionfs.Union(lower=place / "lower", upper=place / "theirs" / "upper") as union:
            union.chmod("run", 0o111)
            union.mkdir("new")
            union.chmod("new", 0)
        with unionfs.Union(lower=place / "lower", upper=place / "theirs" / "upper") as union:
            monkeypatch.setattr(os, "symlink", refuse)
            assert stat.S_IMODE(union.stat("run").st_mode) == 0o111
            union.rmdir("new")

    as_nobody(work)


def _empty(union: unionfs.Union, path: str) -> None:
    """Delete all that a directory shows, which leaves whiteouts in it."""
    union.chmod(path, 0o755)
    for name in union.listdir(path):
        union.rmtree(f"{path}/{name}") if union.is_dir(f"{path}/{name}") else union.unlink(f"{path}/{name}")
