"""Group 10: many stacks over the same layers that all read the same bytes, and what memory that takes."""

from __future__ import annotations

from benchmarks import proc, system
from benchmarks.registry import Row, workload
from benchmarks.scale import FULL, MIB
from benchmarks.site import Site
from benchmarks.workloads.io import LARGE


def share(site: Site, count: int) -> None:
    """Memory in use after all stacks have read everything, less what was in use before they were mounted."""
    site.cool()
    if site.lukewarm:
        raise proc.Skip("telling memory from caches needs root")
    before = system.used_bytes()
    for _ in range(count):
        site.mount()
    for mounted in site.mounted:
        site.step("dd", f"if={mounted.root / LARGE}", "of=/dev/null", "bs=1M")
    site.note(f"memory-{count}-stacks", (system.used_bytes() - before) / MIB)


def enter(count: int) -> None:
    """Enter the workload for one number of stacks."""
    row = Row(f"memory-{count}-stacks", unit="MiB")
    entry = workload(
        f"stacks-{count}", "sharing", row, stack="shared", mounted=False, fits=lambda scale: count in scale.stack_counts
    )
    entry(lambda site: share(site, count))


for number in FULL.stack_counts:
    enter(number)
