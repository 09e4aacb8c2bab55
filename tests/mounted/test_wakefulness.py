"""Processors are kept from sleeping while requests come, and not longer: what the kernel says of the demands on it.

And the server goes before others, but nobody that it or a run starts.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from tests.support.mounts import prepare, union_mount
from tests.support.probes import requires

from .command import mounted, stack, unionmount

DEVICE = "/dev/cpu_dma_latency"


def _latency_us() -> int:
    """Return the lowest latency that anybody demands now (Documentation/power/pm_qos_interface.rst)."""
    with open(DEVICE, "rb", buffering=0) as stream:
        return int.from_bytes(stream.read(4), "little")


def _at_rest() -> bool:
    """Wait until nobody demands anything, and tell whether that came."""
    deadline = time.monotonic() + 10
    while _latency_us() == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    return _latency_us() > 0


def _awake_after_a_burst(mount: Path) -> bool:
    """Make requests one after another; where others want the processors as well there may be a lull among them."""
    for _ in range(100):
        os.getxattr(mount, "user.unionfs.config")  # a request each time
    return _latency_us() == 0


@requires("fuse", "root", "cpu-latency")
def test_processors_are_kept_awake_while_requests_come_and_no_longer(tmp_path: Path) -> None:
    lowers, upper, work = prepare(tmp_path, 1)
    assert _at_rest(), "somebody else on this machine keeps processors awake"
    with union_mount(tmp_path, lowers, upper, work) as mount:
        assert any(_awake_after_a_burst(mount) for _ in range(20))
        assert _at_rest()
        for _ in range(100):
            os.getxattr(mount, "user.unionfs.config")
    assert _at_rest(), "the demand ends with the mount"


@requires("fuse", "root")
def test_the_server_goes_ahead_of_who_mounts(tmp_path: Path) -> None:
    point = tmp_path / "mount"
    with mounted(point, "-o", stack(tmp_path), point):
        server = json.loads(os.getxattr(point, "user.unionfs.config"))["pid"]
        ahead = max(os.getpriority(os.PRIO_PROCESS, 0) - 10, -20)
        assert os.getpriority(os.PRIO_PROCESS, server) == ahead
        session = Path(f"/proc/{server}/autogroup")
        assert not session.exists() or session.read_text().endswith(f" nice {ahead}\n")


@requires("fuse", "root")
def test_what_is_run_does_not() -> None:
    done = unionmount("run", "--lower", "/", "--", "nice")
    assert (done.returncode, int(done.stdout)) == (0, os.getpriority(os.PRIO_PROCESS, 0))
