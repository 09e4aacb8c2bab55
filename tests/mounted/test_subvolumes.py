"""Subvolumes of btrfs: one mount, as openat2(2) sees it, but a st_dev and inode numbers of its own in each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import disk_mount, prepare, run, union_mount
from tests.support.probes import requires

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = requires("root", "fuse", "loop", "mkfs.btrfs")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A btrfs with two layers, each a subvolume with subvolumes in it, which hold files of the same inode numbers."""
    with disk_mount(tmp_path / "disk", 256 << 20, "mkfs.btrfs", "-q") as disk:
        for layer in ("top", "bottom"):
            for subvolume in (layer, f"{layer}/both", f"{layer}/only-{layer}", f"{layer}/only-{layer}/inner"):
                run("btrfs", "subvolume", "create", disk / subvolume)
                _fill(disk / subvolume, f"{layer}-" if subvolume.endswith("both") else "")
        yield disk


def _fill(place: Path, prefix: str) -> None:
    """Put a file with two names into a directory, and another one into a directory of it."""
    (place / f"{prefix}file").write_text(str(place))
    (place / f"{prefix}twin").hardlink_to(place / f"{prefix}file")
    (place / f"{prefix}directory").mkdir()
    (place / f"{prefix}directory/below").write_text(str(place))


def _numbers(point: Path, *, backwards: bool = False) -> dict[str, int]:
    """Return the inode numbers of all that is in a mount, as readdir(3) tells them and then stat(2) as well."""
    listed: dict[str, int] = {}
    waiting = [point]
    while waiting:
        with os.scandir(waiting.pop()) as listing:
            entries = sorted(listing, key=lambda entry: entry.name, reverse=backwards)
        listed |= {os.path.relpath(entry.path, point): entry.inode() for entry in entries}
        waiting += [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    assert {name: os.lstat(point / name).st_ino for name in listed} == listed
    return listed


@pytest.mark.parametrize("place", ["same file system", "another"])
def test_numbers_are_unique_and_stay(tmp_path: Path, disk: Path, place: str) -> None:
    """Whoever is met first, after a copy-up, and in the next mount."""
    lowers = [disk / "top", disk / "bottom"]
    _, upper, work = prepare(disk / "changes" if place == "same file system" else tmp_path, 0)
    with union_mount(tmp_path, lowers, upper, work) as point:
        before = _numbers(point)
        twins = [name for name in before if name.endswith("twin")]
        assert len(set(before.values())) == len(before) - len(twins)
        assert all(before[name] == before[name.replace("twin", "file")] for name in twins)
        for name in before:
            os.chmod(point / name, 0o700)
        assert _numbers(point) == before
    with union_mount(tmp_path, lowers, upper, work) as point:
        assert _numbers(point, backwards=True) == before


def test_files_of_different_subvolumes_are_no_links_of_one_another(tmp_path: Path, disk: Path) -> None:
    """Though their inode numbers are the same; those of one subvolume stay links when they are copied up."""
    lowers = [disk / "top", disk / "bottom"]
    _, upper, work = prepare(tmp_path, 0)
    with union_mount(tmp_path, lowers, upper, work) as point:
        places = [point, *(point / name for name in ("only-top", "only-top/inner", "only-bottom", "only-bottom/inner"))]
        contents = {place: (place / "file").read_text() for place in places}
        assert len(set(contents.values())) == len(places)
        for place, content in contents.items():
            with (place / "twin").open("a") as file:
                file.write("!")
            assert (place / "file").read_text() == content + "!"
            assert (place / "file").stat().st_nlink == 2


def test_a_subvolume_of_the_upper_has_nothing_to_do_with_the_index_of_links(tmp_path: Path, disk: Path) -> None:
    """Not even a file with two names and the inode number of one that is in the index."""
    _, upper, work = prepare(disk / "changes", 0)
    run("btrfs", "subvolume", "create", upper / "nested")
    with union_mount(tmp_path, [disk / "top"], upper, work) as point:
        (point / "file").write_text("indexed")
    (entry,) = (work / "index").iterdir()
    files = [upper / f"nested/{number}" for number in range(500)]
    for file in files:
        file.write_text(file.name)
        (upper / f"nested/{file.name}-twin").hardlink_to(file)
    (same,) = (file.name for file in files if file.stat().st_ino == entry.stat().st_ino)
    with union_mount(tmp_path, [disk / "top"], upper, work) as point:
        assert (point / "nested" / same).stat().st_ino != (point / "file").stat().st_ino
        assert ((point / "nested" / same).stat().st_nlink, (point / "nested" / same).read_text()) == (2, same)
        assert (point / "twin").read_text() == "indexed"
