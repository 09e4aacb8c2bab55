"""Group 7: a large file of the base is copied up because one byte of it changes, with reflinks and without."""

from __future__ import annotations

import os

from benchmarks import proc
from benchmarks.registry import Row, workload
from benchmarks.site import Site
from benchmarks.workloads.io import LARGE, expect_size


def copy_up(site: Site, system: str) -> None:
    """Change one byte, and have it on the disk."""
    if os.geteuid():
        raise proc.Skip("a loop device needs root")
    if site.peer.name == "plain":
        raise proc.Skip("has no copy-up")
    site.assets.program(f"mkfs.{system}", {"xfs": "xfsprogs", "btrfs": "btrfs-progs"}.get(system, "e2fsprogs"))
    stack = site.stacks.get(f"image:{system}")
    site.mount(stack)
    os.sync()
    target, middle = site.root / LARGE, site.scale.copyup_bytes // 2
    command = ("dd", "if=/dev/zero", f"of={target}", "bs=1", "count=1", f"seek={middle}", "conv=notrunc,fsync")
    site.measure(f"copyup-{system}", *command)
    expect_size(site, str(target), site.scale.copyup_bytes)
    differing = site.step("sh", "-c", 'cmp -l "$1" "$2" | wc -l', "sh", str(target), str(stack.layers[-1] / LARGE))
    if int(differing) != 1:
        raise proc.StepFailed(f"{int(differing)} bytes differ from the lower file after one was written")


def enter(system: str) -> None:
    """Enter the workload for one file system."""
    entry = workload(f"copyup-{system}", "copyup", Row(f"copyup-{system}"), mounted=False, copies_up=True)
    entry(lambda site: copy_up(site, system))


for name in ("xfs", "btrfs", "ext4"):
    enter(name)
