"""A mount of a block device, whose syncfs(2) and remount the kernel hands on: ``-o blkdev``."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import is_mounted, run
from tests.support.probes import kernel, requires
from unionfs.fuse import mounting
from unionfs.fuse.pipes import MOST_BYTES

from .command import mounted, servers, stack, unionmount
from .test_conventions import mount_line, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = requires("fuse", "root", "loop")


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    """A block device as small as they come."""
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 4096)
    name = run("losetup", "--find", "--show", image).stdout.strip()
    yield name
    run("losetup", "--detach", name)


def asked(point: Path) -> int:
    """How often the server was asked to write everything out."""
    requests: dict[str, int] = json.loads(os.getxattr(point, "user.unionfs.stats"))["requests"]
    return requests.get("SYNCFS", 0)


def test_it_is_told_as_what_it_is_and_known_as_ours(tmp_path: Path, device: str) -> None:
    point = tmp_path / "m"
    words = ("-o", f"{stack(tmp_path)},blkdev,fsname={device}", point)
    with mounted(point, *words):
        assert mount_line(point)[:2] == (device, "fuseblk.unionmount")
        assert "already" in unionmount(*words).stderr
        assert unionmount("explain", point / "file0").returncode == 0


@pytest.mark.skipif(kernel() < (6, 18), reason="Linux before 6.18 hands on no syncfs(2) for it")
def test_what_is_written_out_reaches_the_server(tmp_path: Path, device: str) -> None:
    point = tmp_path / "m"
    with mounted(point, "-o", f"{stack(tmp_path)},blkdev,fsname={device}", point):
        (point / "new").write_text("data")
        before = asked(point)
        run("sync", "--file-system", point / "new")
        assert asked(point) == before + 1
        run("mount", "-o", "remount,ro", point)
        assert asked(point) == before + 2


def test_a_server_that_is_asked_to_end_does(tmp_path: Path, device: str) -> None:
    """As the last mount of a block device goes, the kernel asks the server to write everything out, and waits."""
    point = tmp_path / "m"
    point.mkdir()
    assert unionmount("-o", f"{stack(tmp_path)},blkdev,fsname={device}", point).returncode == 0
    (server,) = servers(point)
    ended = os.pidfd_open(server.pid)
    os.kill(server.pid, signal.SIGTERM)
    wait_for(ended)
    assert not is_mounted(point)


def test_its_file_system_is_not_taken_for_the_device(tmp_path: Path, device: str) -> None:
    """Which has a setting of its own of how far is read ahead, and does not end with the mount."""
    point = tmp_path / "m"
    own = Path("/sys/block", os.path.basename(device), "queue/read_ahead_kb")
    before = own.read_text()
    with mounted(point, "-o", f"{stack(tmp_path)},blkdev,fsname={device}", point):
        mount = mounting.topmost(os.fsencode(point))
        assert mount is not None
        assert int(Path(os.fsdecode(mount.bdi), "read_ahead_kb").read_text()) << 10 == MOST_BYTES
        assert own.read_text() == before
    assert not os.path.exists(mount.bdi)


def test_what_is_no_block_device_is_named(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    done = unionmount("-o", f"{stack(tmp_path)},blkdev,fsname={tmp_path}/none", tmp_path / "m")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert f"{tmp_path}/none" in done.stderr
