"""A union remembers a bounded number of files and keeps a bounded number of directories open, whatever it walks."""

from __future__ import annotations

import os
import resource
from typing import TYPE_CHECKING

import pytest

from unionfs.layers.layer import DescriptorCache
from unionfs.union import paths

if TYPE_CHECKING:
    import unionfs
    from tests.union.conftest import Layers

FEW = 50


@pytest.fixture
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds that are soon reached."""
    monkeypatch.setattr(paths, "_REMEMBERED_NODES", FEW)
    monkeypatch.setattr("unionfs.union.stack._MOST_DIRECTORIES", 20)


@pytest.fixture
def wide(layers: Layers) -> Layers:
    """Many files and directories in two layers."""
    for number in range(60):
        layers.write({f"{number % 2}/d{number}/{index}": str(index) for index in range(10)})
        layers.write({f"1/d{number}/deep/e/f": ""})
    return layers


def known(union: unionfs.Union) -> int:
    """Return how many nodes the union has."""
    return len(union._stack.view.nodes.by_id)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def removed_but_open() -> dict[str, str]:
    """Return the directories that are held open although they are gone: descriptors and paths."""
    opened = [f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd")]
    return {path: os.readlink(path) for path in opened if os.path.isdir(path) and os.stat(path).st_nlink == 0}


@pytest.mark.usefixtures("forgetful")
def test_changes_of_many_directories(wide: Layers) -> None:
    """Side by side, each changed, and more of them than may be open at once."""
    for number in range(60):
        wide.write({f"upper/d{number}/new": ""})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with wide.union() as union:
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 40, hard))
        try:
            assert len([change for change in union.changes() if change.kind == "A"]) == 60
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("forgetful")
def test_reading_everything(wide: Layers) -> None:
    """Twice, with attributes and content."""
    before = open_descriptors()
    with wide.union() as union:
        for _ in range(2):
            count = 0
            for directory, _directories, names in union.walk("/"):
                for name in names:
                    union.read_bytes(f"{directory}/{name}")
                    count += 1
                assert known(union) <= FEW + 20
                assert open_descriptors() <= before + 40
            assert count == 60 * 11
    assert open_descriptors() == before


@pytest.mark.usefixtures("forgetful")
def test_changing_everything(wide: Layers, dialect: object) -> None:
    """Written, renamed, moved with all that is in it, removed, made."""
    before = open_descriptors()
    with wide.union() as union:
        for number in range(60):
            union.write_text(f"d{number}/1", "changed")
            union.unlink(f"d{number}/2")
            union.rename(f"d{number}", f"m{number}")
            union.makedirs(f"m{number}/new/er")
            union.touch(f"m{number}/new/er/file")
        assert known(union) <= FEW + 20
        assert open_descriptors() <= before + 40
        for number in range(0, 60, 2):
            union.rmtree(f"m{number}")
        assert known(union) <= FEW + 20
        assert sum(len(names) for _, _, names in union.walk("/")) == 30 * 11
    assert open_descriptors() == before


def test_removed_directories_are_closed(wide: Layers) -> None:
    """Whatever room their names take on the disk is free again."""
    before = removed_but_open()
    with wide.union() as union:
        union.makedirs("new/deep")
        union.touch("new/deep/file")
        union.write_text("d1/deep/e/f", "copied up")
        union.makedirs("other")
        union.rename("other", "new/deep/replaced")
        union.mkdir("new/deep/other")
        union.rename("new/deep/other", "new/deep/replaced")
        for directory in ("new", "d1"):
            union.rmtree(directory)
        assert removed_but_open() == before


@pytest.mark.usefixtures("forgetful")
def test_asking_for_changes(wide: Layers) -> None:
    """Of a whole tree that was renamed."""
    with wide.union() as union:
        union.mkdir("all")
        for number in range(60):
            union.rename(f"d{number}", f"all/d{number}")
        assert len(list(union.changes())) == 60 + 1 + 60 * 14
        assert known(union) <= FEW + 20


def test_the_cache_is_what_bounds_descriptors() -> None:
    """The test of the test: with no bound there would be more."""
    assert DescriptorCache().limit > 100
