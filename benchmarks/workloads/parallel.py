"""Group 6: the bytes again, eight processes at once, and eight walks."""

from __future__ import annotations

import sys

from benchmarks.registry import Row, workload
from benchmarks.site import Site
from benchmarks.workloads.io import INSERTS, LARGE


@workload("par-find", "parallel", Row("par-find-cold", "cold"), Row("par-find-warm", "warm"))
def par_find(site: Site) -> None:
    """Everyone looks at every file."""
    command = ("find", str(site.root / "tree"), "-type", "f", "-printf", "%s\n")
    for row in ("par-find-cold", "par-find-warm"):
        if row == "par-find-cold":
            site.cool()
        site.measure(row, *command, copies=site.scale.processes, lines=site.stack().files)


@workload("par-read", "parallel", Row("par-seq-read", "stream"), Row("par-rand-read", "warm"), stack="data")
def par_read(site: Site) -> None:
    """Everyone reads the same large file, cold, then random blocks of it."""
    site.cool()
    copies = site.scale.processes
    site.measure("par-seq-read", "dd", f"if={site.root / LARGE}", "of=/dev/null", "bs=1M", copies=copies)
    count = str(site.scale.random_ops)
    site.measure("par-rand-read", site.assets.load, "randread", str(site.root / LARGE), count, copies=copies)


@workload("par-write", "parallel", Row("par-seq-write", "stream"), Row("par-rand-write", "stream"), stack="data")
def par_write(site: Site) -> None:
    """Everyone writes a file of their own, then random blocks of it."""
    site.step("mkdir", str(site.new))
    copies, mine = site.scale.processes, str(site.new / "file{i}")
    blocks = str(site.scale.data_bytes // 4096 // copies)
    site.measure("par-seq-write", "dd", "if=/dev/zero", f"of={mine}", "bs=4096", f"count={blocks}", copies=copies)
    count = str(site.scale.random_ops // copies)
    site.measure("par-rand-write", site.assets.load, "randwrite", mine, count, copies=copies)


@workload("par-sync", "parallel", Row("par-fsync", "meta"), Row("par-sqlite", "meta"), stack="data")
def par_sync(site: Site) -> None:
    """Everyone appends with fsync to a file, and inserts into a database, of their own."""
    site.step("mkdir", str(site.new))
    copies, scale = site.scale.processes, site.scale
    count = str(max(1, scale.fsync_ops // copies))
    site.measure("par-fsync", site.assets.load, "fsync", str(site.new / "log{i}"), count, copies=copies)
    rows = str(max(1, scale.sqlite_rows // copies))
    base = str(site.new / "facts{i}.db")
    site.measure("par-sqlite", sys.executable, "-S", "-c", INSERTS, base, rows, copies=copies)


@workload("par-mmap", "parallel", Row("par-mmap-read", "cold"), stack="data")
def par_mmap(site: Site) -> None:
    """Everyone maps the same large file, cold."""
    site.cool()
    command = (site.assets.load, "mmapread", str(site.root / LARGE))
    site.measure("par-mmap-read", *command, copies=site.scale.processes)
