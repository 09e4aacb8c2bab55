"""Writing into an upper that somebody else has written, in a dialect that is not the one that is written now."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest

import unionfs
from tests.support.mounts import prepare, union_mount
from tests.support.probes import requires

from .dialects import DIALECTS, Looker, write

if TYPE_CHECKING:
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
