"""Group 9: how long it takes to begin. From the command to the first answer; one short process in the stack."""

from __future__ import annotations

import time
from pathlib import Path

from benchmarks import proc, system
from benchmarks.peers import END_LIMIT_S, Place
from benchmarks.registry import Row, workload
from benchmarks.site import Site


@workload("start", "startup", Row("start-to-stat"), stack="system_root", mounted=False)
def start(site: Site) -> None:
    """From the command that mounts, as a user types it, to the first answered stat.

    It is done once before, as the workloads before this one may have dropped the program's files from memory.
    """
    for _ in range(2):  # what is noted last counts
        _start(site, site.place(site.stack()))


def _start(site: Site, place: Place) -> None:
    command = site.peer.start(place)
    if not command:
        raise proc.Skip("is not mounted by a command")
    servers: list[int] = []
    try:
        both = ("sh", "-c", '"$@" && stat -t "$ROOT/etc"', "sh", *command)
        site.measure("start-to-stat", *both, env={"ROOT": str(place.root)})
        servers = system.mentions(str(place.root))
    finally:
        system.unmount(place.root)
    expect_end(servers)


def expect_end(pids: list[int]) -> None:
    """Raise :class:`proc.StepFailed` when a server in the background outlives its mount."""
    deadline = time.monotonic() + END_LIMIT_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            raise proc.StepFailed("the server did not end after the unmount")
        time.sleep(0.01)


@workload("run-true", "startup", Row("run-true", faster_than=("podman", 3.0)), stack="system_root")
def run_true(site: Site) -> None:
    """Run ``true`` with the stack as its root: by bwrap over a ready mount, by ``unionmount run``, by podman."""
    command = site.peer.run_true(site.stack().layers, site.root)
    site.assets.program(command[0], "bubblewrap" if command[0] == "bwrap" else "")
    site.measure("run-true", *command)
