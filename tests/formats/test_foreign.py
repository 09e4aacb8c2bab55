"""Writing into an upper that somebody else has written, in a dialect that is not the one that is written now."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

import unionfs
from tests.support.mounts import disk_mount, overlayfs_mount, prepare, union_mount
from tests.support.probes import requires

from .dialects import DIALECTS, Looker, write

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = requires("root", "fuse", "trusted-xattrs", "user-xattrs")

NAMES = [f"{place}{name}" for place in ("", "d/") for name in ("a", "b", "c", "e", "f")]


def _work(root: Path) -> None:
    """Use every deleted name of the root and of ``d`` again, in all ways, and remove what holds only deletions."""
    for place in (root, root / "d"):
        (place / "a").write_text("1")
        (place / "b").mkdir()
        (place / "b/new").write_text("1")
        (place / "moved-file").rename(place / "c")
        (place / "moved").rename(place / "e")
        (place / "f").symlink_to("a")
        (place / "f").unlink()
        (place / "e/file").rename(place / "f")
    (root / "holds").rmdir()
    (root / "holds").mkdir()
    (root / "emptied").rmdir()
    (root / "d2").rename(root / "emptied")
    (root / "d2").mkdir()
    (root / "hides").rename(root / "d2/hides")


@pytest.mark.parametrize(
    ("found", "written"), list(itertools.product(DIALECTS, ("overlay", "userxattr", "oci"))), ids=lambda name: name
)
def test_names_that_another_dialect_deletes(tmp_path: Path, found: str, written: str) -> None:
    """They can be made again by any means, and what is deleted stays deleted, also after a remount."""
    (lower,), upper, work = prepare(tmp_path)
    dialect = DIALECTS[found]
    moving = {f"{place}{name}": "0" for place in ("", "d/") for name in ("moved-file", "moved/file")}
    write(lower, {**dict.fromkeys((f"{name}/old" for name in NAMES), "0"), **moving})
    write(lower, {"holds/x": "0", "emptied/x": "0", "d2/gone": "0", "d2/file": "0", "hides/old": "0"})
    write(upper, {"d/": "", "holds/": "", "emptied/": "", "d2/": "", "hides/": ""})
    for name in (*NAMES, "holds/x", "emptied/x", "d2/gone"):
        dialect.delete(upper / name)
    dialect.hide(upper / "hides")
    shown = {
        **{f"{place}{name}/": "" for place in ("", "d/") for name in ("b", "e")},
        **{f"{place}{name}": "1" for place in ("", "d/") for name in ("a", "b/new")},
        **{f"{place}{name}": "0" for place in ("", "d/") for name in ("c", "f")},
        **dict.fromkeys(("d/", "holds/", "emptied/", "d2/", "d2/hides/"), ""),
        "emptied/file": "0",
    }
    with union_mount(tmp_path, [lower], upper, work, f"whiteouts={written}") as point:
        _work(point)
        assert Looker(point).tree() == shown
    with union_mount(tmp_path, [lower], upper, work, f"whiteouts={written}") as point:
        assert Looker(point).tree() == shown
    with unionfs.Union(lower=[upper, lower]) as union:
        assert Looker(union).tree() == shown
    assert os.listdir(work / "work") == []


@requires("overlayfs")
def test_link_counts_that_the_kernel_left_in_the_middle_of_a_copy_up(tmp_path: Path) -> None:
    """They are relative to the lower file, which has all its names still; ovl_link_up() of fs/overlayfs/copy_up.c."""
    (lower,), upper, work = prepare(tmp_path)
    (lower / "a").write_text("1")
    for name in ("b", "c"):
        (lower / name).hardlink_to(lower / "a")
    with overlayfs_mount(tmp_path, [lower], upper, work, "index=on") as mounted:
        (mounted / "a").chmod(0o600)
    (entry,) = (work / "index").iterdir()
    os.setxattr(entry, "trusted.overlay.nlink", b"L+0")
    (upper / "a").unlink()  # it comes after that
    for left in (3, 2):
        with union_mount(tmp_path, [lower], upper, work) as mounted:
            assert [file.stat().st_nlink for file in mounted.iterdir()] == [left] * left
            (mounted / "b").unlink(missing_ok=True)
    with overlayfs_mount(tmp_path, [lower], upper, work, "index=on") as mounted:
        assert [(file.name, file.stat().st_nlink) for file in sorted(mounted.iterdir())] == [("a", 2), ("c", 2)]


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """An XFS, whose symbolic links have room for 1,023 bytes."""
    with disk_mount(tmp_path / "xfs", 320 << 20, "mkfs.xfs", "-q") as place:
        yield place


@requires("loop", "mkfs.xfs")
def test_a_name_far_down_of_a_lower_file_with_several(xfs: Path, tmp_path: Path) -> None:
    """It can be removed, however little room there is to write its path down, and the other one knows."""
    (lower,), upper, work = prepare(xfs)
    (lower / "near").write_text("1")
    near = os.open(lower, os.O_RDONLY)
    _go_down(lower)
    os.link("near", "far", src_dir_fd=near)
    os.close(near)
    with union_mount(tmp_path, [lower], upper, work) as mounted:
        _go_down(mounted)
        os.unlink("far")
        os.chdir("/")
        assert (mounted / "near").stat().st_nlink == 1


def _go_down(place: Path) -> None:
    """Change into a directory whose path has more than 1,023 bytes, making it where it is not there."""
    os.chdir(place)
    for _ in range(6):
        if not os.path.isdir("d" * 200):
            os.mkdir("d" * 200)
        os.chdir("d" * 200)
