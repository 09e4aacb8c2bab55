"""A copy of a file whose owner a lower layer remembers: it has that owner really, where that can be."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from tests.crash.operations import WAYS, flagged, open_union, refuse_as_a_namespace
from tests.support.probes import requires
from unionfs import idmap
from unionfs.idmap import Override
from unionfs.syscalls import files
from unionfs.union.owners import MappedView

if TYPE_CHECKING:
    from pathlib import Path

_MODE = 0o100640


@pytest.fixture
def remembering(tmp_path: Path) -> Path:
    """A stack in which the lowest layer remembers owners."""
    for name in ("lower0", "lower1/dir", "upper", "work"):
        (tmp_path / name).mkdir(parents=True)
    lower, file = tmp_path / "lower1", tmp_path / "lower1/file"
    file.write_text("data")
    kept = {lower: Override(0, 0, 0o40755), lower / "dir": Override(7, 8, 0o40750), file: Override(7, 8, _MODE)}
    for path, override in kept.items():
        os.setxattr(path, idmap.CONTAINERS_OVERRIDE, override.encode())
    return tmp_path


@requires("root", "user-xattrs")
def test_a_directory_is_read_as_its_layer_has_it(remembering: Path) -> None:
    """Before it is copied, and where a copy of it stands in an upper that remembers nothing."""
    with open_union(remembering, WAYS["namespace"]) as union:
        for mode in (0o40750, 0o40711):
            assert (union.stat("/dir").st_uid, union.stat("/dir").st_gid, union.stat("/dir").st_mode) == (7, 8, mode)
            union.chmod("/dir", 0o711)


@requires("root", "user-xattrs")
def test_what_is_given_really_is_no_longer_remembered(remembering: Path) -> None:
    with open_union(remembering, WAYS["namespace"]) as union:
        union.truncate("/file", 1)
    copy = remembering / "upper/file"
    assert (copy.stat().st_uid, copy.stat().st_gid, copy.stat().st_mode) == (7, 8, _MODE)
    assert idmap.CONTAINERS_OVERRIDE.decode() not in os.listxattr(copy)


@requires("root", "user-xattrs")
def test_a_whiteout_of_a_program_is_remembered(remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a device, which cannot be made in a user namespace."""
    refuse_as_a_namespace(monkeypatch)
    with open_union(remembering, WAYS["namespace"]) as union:
        flagged("/file", "/moved", files.RENAME_WHITEOUT)(union)
        left = union.lstat("/file")
    assert (stat.S_ISCHR(left.st_mode), left.st_rdev, left.st_uid) == (True, os.makedev(0, (1 << 18) - 1), 0)
    assert stat.S_ISREG((remembering / "upper/file").lstat().st_mode)


@requires("root", "user-xattrs")
def test_where_there_is_no_nobody_none_is_looked_for(remembering: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that read as nobody's are strangers' then: to try to open each would be for nothing."""
    monkeypatch.delattr("unionfs.union.owners._exists")
    (remembering / "lower0/file").touch()
    os.chown(remembering / "lower0/file", idmap.OVERFLOW_ID, idmap.OVERFLOW_ID)
    with open_union(remembering, WAYS["namespace"]) as union:
        view, node = union._stack.view, union._node("/file", follow=False)
        assert isinstance(view, MappedView)
        shown = view.shown(node, view.stat(node))
    assert (shown.st_uid, shown.st_gid) == (0, 0)
