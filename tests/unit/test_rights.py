"""Rights that are lent are given back, whatever fails meanwhile."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest

from unionfs.layers import rights

if TYPE_CHECKING:
    from pathlib import Path


def test_what_fails_to_be_given_back_keeps_no_other_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And its note stays, for whoever opens the layer next; nothing is left open."""
    names = [b"first", b"second", b"third"]
    for name in names:
        (tmp_path / os.fsdecode(name)).touch(mode=0o444)
    directory = os.open(tmp_path, os.O_RDONLY)
    before, noted = set(os.listdir("/proc/self/fd")), {os.stat(name, dir_fd=directory).st_ino for name in names}
    broken, chmod = os.stat(b"second", dir_fd=directory).st_ino, os.chmod

    def failing(path: bytes, mode: int) -> None:
        if mode == 0o444 and os.stat(path).st_ino == broken:
            raise OSError(errno.EIO, "")
        chmod(path, mode)

    monkeypatch.setattr(os, "chmod", failing)
    with pytest.raises(OSError, match="5") as raised:
        rights.lend(
            lambda: None,
            *((directory, name) for name in names),
            note=lambda opened, _mode: lambda: noted.remove(os.fstat(opened).st_ino),
        )
    assert raised.value.errno == errno.EIO
    modes = [stat.S_IMODE(os.stat(name, dir_fd=directory).st_mode) for name in names]
    assert modes == [0o444, 0o744, 0o444]
    assert noted == {broken}
    assert set(os.listdir("/proc/self/fd")) == before
    os.close(directory)
