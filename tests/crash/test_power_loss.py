"""Power is lost just after a copy-up has been named: the file is the old one or the new one on each file system.

The writable layer stands on a file system in an image. After the copy-up something else is synced, which takes the
rename to disk; then the image is copied as it is, which is what a disk would hold that had lost power, and the file
system in the copy replays its journal. What is in memory alone is not in the copy. ``test_can_fail`` leaves out what
the union does for the data.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import run
from tests.support.probes import need, requires
from unionfs import Union
from unionfs.layers import writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Sync = Callable[[Path], None]

pytestmark = [requires("root", "loop"), pytest.mark.timeout(120)]

CONTENT = bytes(range(256)) * 80
_IMAGE_BYTES = 400 << 20  # less is no XFS

MAKERS: dict[str, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "ext4 that commits inode by inode": ("mkfs.ext4", "-q", "-F", "-O", "fast_commit"),
    "ext4 without a journal": ("mkfs.ext4", "-q", "-F", "-O", "^has_journal"),
    "xfs": ("mkfs.xfs", "-q"),
    "btrfs": ("mkfs.btrfs", "-q"),
}
#: Without a journal the file system is to be repaired first; that is left out.
JOURNALS = [name for name in MAKERS if "without" not in name]


@contextmanager
def _mounted(image: Path, point: Path) -> Iterator[Path]:
    run("mount", "-o", "loop", image, point)
    try:
        yield point
    finally:
        run("umount", point)


def _copy_disk(image: Path, copy: Path) -> None:
    """Copy an image as it is at one instant: once more if it was written to meanwhile."""
    changed = -1
    while changed != image.stat().st_mtime_ns:
        changed = image.stat().st_mtime_ns
        run("cp", image, copy)


def _sync_directory(upper: Path) -> None:
    _sync(os.open(upper, os.O_RDONLY))


def _sync_another(upper: Path) -> None:
    descriptor = os.open(upper / "other", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"other")
    _sync(descriptor)


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)
    os.close(descriptor)


def _lose_power(base: Path, maker: str, sync: Sync, *, cloned: bool) -> bytes | None:
    """Return what a file's data is once the power is back; None if it has no copy in the writable layer.

    With ``cloned`` the lower layer is on the same file system, which may then share the data.
    """
    need(MAKERS[maker][0])
    image, copy, point = base / "image", base / "copy", base / "disk"
    lower = point / "lower" if cloned else base / "lower"
    with image.open("wb") as stream:
        stream.truncate(_IMAGE_BYTES)
    run(*MAKERS[maker], image)
    point.mkdir()
    with _mounted(image, point):
        for directory in (lower, point / "upper", point / "work"):
            directory.mkdir()
        (lower / "file").write_bytes(CONTENT)
        with Union(lower=[lower], upper=point / "upper", workdir=point / "work") as union:
            union.chmod("/file", 0o640)
            sync(point / "upper")
            _copy_disk(image, copy)
    with _mounted(copy, point):
        file = point / "upper/file"
        return file.read_bytes() if file.exists() else None


@pytest.mark.parametrize("sync", [_sync_directory, _sync_another])
@pytest.mark.parametrize("cloned", [False, True])
@pytest.mark.parametrize("maker", JOURNALS)
def test_the_copy_is_whole_or_not_there(tmp_path: Path, maker: str, sync: Sync, *, cloned: bool) -> None:
    left = _lose_power(tmp_path, maker, sync, cloned=cloned)
    assert left == CONTENT or (left is None and sync is _sync_another)


@pytest.mark.parametrize("maker", JOURNALS)
def test_can_fail(tmp_path: Path, maker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several times, for somebody may sync all file systems meanwhile."""
    monkeypatch.setattr(writable, "choose_write_out", lambda directory: writable.leave)
    left = []
    for attempt in range(5):
        base = tmp_path / str(attempt)
        base.mkdir()
        left.append(_lose_power(base, maker, _sync_directory, cloned=False))
        if left[-1] in (b"", bytes(len(CONTENT))):
            return
    pytest.fail(f"nothing was lost: {[content == CONTENT for content in left]}")


@pytest.mark.parametrize("maker", MAKERS)
def test_a_commit_for_each_file_only_where_it_is_needed(tmp_path: Path, maker: str) -> None:
    need(MAKERS[maker][0])
    image, point = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as stream:
        stream.truncate(_IMAGE_BYTES)
    run(*MAKERS[maker], image)
    point.mkdir()
    with _mounted(image, point):
        directory = os.open(point, os.O_RDONLY)
        try:
            commits = writable.choose_write_out(directory) is os.fsync
        finally:
            os.close(directory)
    assert commits == ("without" in maker or maker == "btrfs")
