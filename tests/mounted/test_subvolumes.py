"""Subvolumes of btrfs: one mount, as openat2(2) sees it, but a st_dev and inode numbers of its own in each."""

from __future__ import annotations

import os
from fcntl import ioctl
from pathlib import Path
from struct import pack
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import disk_mount, prepare, run, union_mount
from tests.support.probes import requires
from unionfs import Union
from unionfs.union.nodes import DirNode

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = requires("root", "fuse", "loop", "mkfs.btrfs")

_CREATE = 0x5000940E  # BTRFS_IOC_SUBVOL_CREATE with a struct btrfs_ioctl_vol_args
_MANY = 600
"""Subvolumes: more than twice as many as the kernel tells of at once."""


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


def _looked_up(layer: Path) -> dict[str, set[str]]:
    """Return which names of each directory of a layer have to be looked up for their numbers, if there are any; what is
    told without has to be what stat(2) says.
    """
    found: dict[str, set[str]] = {}
    with Union(lower=[layer]) as union:
        view = union._stack.view
        for place in [layer, *(path for path in layer.rglob("*") if path.is_dir())]:
            path = f"/{os.path.relpath(place, layer)}"
            base = union.stat(path).st_ino ^ place.stat().st_ino
            node = union._node(path, follow=False)
            assert isinstance(node, DirNode)
            rows = [(os.fsdecode(name), ino) for name, _kind, ino in view.names(node)]
            assert all(ino in (0, (place / name).stat().st_ino ^ base) for name, ino in rows)
            found[path] = {name for name, ino in rows if not ino}
    return {path: names for path, names in found.items() if names}


def _make_plain(place: Path) -> None:
    """Make a directory whose number is greater than that of any subvolume."""
    (place / "plain").mkdir()
    for _ in range(2 * _MANY):
        (place / "plain").rmdir()
        (place / "plain").mkdir()


def test_what_is_no_subvolume_need_not_be_looked_up(disk: Path) -> None:
    """Where a layer has some, in one of them, and where there is none."""
    for place in ("bottom", "bottom/directory", "bottom/only-bottom", "bottom/only-bottom/inner"):
        _make_plain(disk / place)
    found = _looked_up(disk / "bottom")
    assert {name for names in found.values() for name in names} >= {"both", "only-bottom", "inner"}
    assert not [names for names in found.values() if "plain" in names]
    assert _looked_up(disk / "bottom/only-bottom/inner") == {"/.": {"directory"}}, "as in a snapshot"


def test_what_stands_for_a_subvolume_in_a_snapshot_is_looked_up(tmp_path: Path, disk: Path) -> None:
    """An empty directory, which readdir(3) tells by the number that the subvolume has, and stat(2) as number 2."""
    _make_plain(disk / "bottom")
    run("btrfs", "subvolume", "snapshot", disk / "bottom", disk / "snapshot")
    assert (disk / "snapshot/both").stat().st_ino == 2
    found = _looked_up(disk / "snapshot")["/."]
    assert found >= {"both", "only-bottom"}
    assert "plain" not in found
    with union_mount(tmp_path, [disk / "snapshot"]) as point:
        _numbers(point)


def test_many_subvolumes_are_all_known(disk: Path) -> None:
    """The kernel tells of 255 at once."""
    place = disk / "bottom/directory"
    directory = os.open(place, os.O_RDONLY)
    try:
        for number in range(_MANY):
            ioctl(directory, _CREATE, bytearray(pack("=q4088s", 0, b"%d" % number)))
    finally:
        os.close(directory)
    _make_plain(place)
    assert _looked_up(place)["/."] == {str(number) for number in range(_MANY)}
