"""A copy of a file whose owner a lower layer remembers: it has that owner really, where that can be."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.crash.operations import WAYS, open_union
from tests.support.probes import requires
from unionfs import idmap
from unionfs.idmap import Override

if TYPE_CHECKING:
    from pathlib import Path

_MODE = 0o100640


@requires("root", "user-xattrs")
def test_what_is_given_really_is_no_longer_remembered(tmp_path: Path) -> None:
    for name in ("lower0", "lower1", "upper", "work"):
        (tmp_path / name).mkdir()
    file = tmp_path / "lower1/file"
    file.write_text("data")
    for path, override in ((file, Override(7, 8, _MODE)), (tmp_path / "lower1", Override(0, 0, 0o40755))):
        os.setxattr(path, idmap.CONTAINERS_OVERRIDE, override.encode())
    with open_union(tmp_path, WAYS["namespace"]) as union:
        union.truncate("/file", 1)
    copy = tmp_path / "upper/file"
    assert (copy.stat().st_uid, copy.stat().st_gid, copy.stat().st_mode) == (7, 8, _MODE)
    assert idmap.CONTAINERS_OVERRIDE.decode() not in os.listxattr(copy)
