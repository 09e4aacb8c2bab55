"""What a server keeps: memory at its start and for each file that the kernel knows, descriptors for none of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support.mounts import prepare, run, union_mount
from tests.support.probes import requires

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [requires("fuse", "root"), pytest.mark.timeout(120)]

_MOST_AT_START_BYTES = 20 << 20
_MOST_PER_FILE_BYTES = 600
_DIRECTORIES, _FILES_EACH = 400, 25
_FILES = _DIRECTORIES * _FILES_EACH


class Kept(NamedTuple):
    """What a process has at one instant."""

    resident_bytes: int
    descriptors: int


def _kept(process: int) -> Kept:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return Kept(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir(f"/proc/{process}/fd")))


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Path]:
    lowers, upper, work = prepare(tmp_path)
    for directory in range(_DIRECTORIES):
        place = lowers[0] / f"directory-{directory}"
        place.mkdir()
        for number in range(_FILES_EACH):
            (place / f"file-{number}").touch()
    with union_mount(tmp_path, lowers, upper, work) as merged:
        yield merged


def test_what_is_kept_for_files_that_are_known(mount: Path) -> None:
    """Each one was looked at, so the server has to know it until the kernel forgets it.

    Directories stay open, up to a bound that tests/union/test_bounds.py holds, and /dev/cpu_dma_latency for a while.
    """
    process = json.loads(os.getxattr(mount, "user.unionfs.config"))["pid"]
    before = _kept(process)
    run("find", mount, "-type", "f", "-printf", "%s")
    after = _kept(process)
    assert json.loads(os.getxattr(mount, "user.unionfs.stats"))["nodes"] == _FILES + _DIRECTORIES + 1
    assert before.resident_bytes <= _MOST_AT_START_BYTES
    assert after.resident_bytes - before.resident_bytes <= _MOST_PER_FILE_BYTES * _FILES
    assert after.descriptors - before.descriptors <= _DIRECTORIES + 1
