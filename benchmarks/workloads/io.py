"""Group 5: the bytes of single files. Large reads and writes, random access, fsync, SQLite, mappings."""

from __future__ import annotations

import sys

from benchmarks.proc import StepFailed
from benchmarks.registry import Row, workload
from benchmarks.scale import MIB
from benchmarks.site import Site

LARGE = "data/large"
INSERTS = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("CREATE TABLE facts (number INTEGER PRIMARY KEY, text TEXT)")
for number in range(int(sys.argv[2])):
    database.execute("INSERT INTO facts VALUES (?, ?)", (number, "x" * 100))
assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
"""


@workload(
    "seq-read",
    "io",
    Row("seq-read-1m", "stream"),
    Row("seq-read-4k", "stream"),
    Row("seq-read-warm", "warm"),
    stack="data",
)
def seq_read(site: Site) -> None:
    """Read a file of the base from its beginning to its end."""
    for row, block in (("seq-read-1m", "bs=1M"), ("seq-read-4k", "bs=4k"), ("seq-read-warm", "bs=1M")):
        if row != "seq-read-warm":
            site.cool()
        site.measure(row, "dd", f"if={site.root / LARGE}", "of=/dev/null", block)


@workload("seq-write", "io", Row("seq-write-1m", "stream"), Row("seq-write-4k", "stream"), stack="data")
def seq_write(site: Site) -> None:
    """Write a new file of the same size."""
    site.step("mkdir", str(site.new))
    size_bytes = site.scale.data_bytes
    for row, block_bytes in (("seq-write-1m", MIB), ("seq-write-4k", 4096)):
        target = site.new / row
        count = size_bytes // block_bytes
        site.measure(row, "dd", "if=/dev/zero", f"of={target}", f"bs={block_bytes}", f"count={count}")
        expect_size(site, str(target), size_bytes)
        site.step("rm", str(target))


def expect_size(site: Site, path: str, size_bytes: int) -> None:
    """Raise :class:`StepFailed` unless the file has that size."""
    found = int(site.step("stat", "-c", "%s", path))
    if found != size_bytes:
        raise StepFailed(f"{path}: {found} bytes instead of {size_bytes}")


@workload("rand-read", "io", Row("rand-read-cold", "cold"), Row("rand-read-warm", "warm"), stack="data")
def rand_read(site: Site) -> None:
    """Blocks of 4 KiB all over a file of the base; warm is after the whole file was read."""
    command = (site.assets.load, "randread", str(site.root / LARGE), str(site.scale.random_ops))
    site.cool()
    site.measure("rand-read-cold", *command, inner=True)
    site.step("dd", f"if={site.root / LARGE}", "of=/dev/null", "bs=1M")
    site.measure("rand-read-warm", *command, inner=True)


@workload("rand-write", "io", Row("rand-write", "stream"), stack="data")
def rand_write(site: Site) -> None:
    """Blocks of 4 KiB all over a file that is already in the writable layer."""
    copy_large(site)
    command = (site.assets.load, "randwrite", str(site.new / "large"), str(site.scale.random_ops))
    site.measure("rand-write", *command, inner=True)
    expect_size(site, str(site.new / "large"), site.scale.data_bytes)


def copy_large(site: Site) -> None:
    """Put a copy of the large file into the writable layer, and have it written back before anything is measured."""
    site.step("mkdir", str(site.new))
    site.step("cp", str(site.root / LARGE), str(site.new))
    site.step("sync", "-f", str(site.base))


@workload("fsync", "io", Row("fsync-per-write", "meta"), stack="data")
def fsync(site: Site) -> None:
    """Append 4 KiB, fsync, and again."""
    site.step("mkdir", str(site.new))
    target = str(site.new / "log")
    site.measure("fsync-per-write", site.assets.load, "fsync", target, str(site.scale.fsync_ops), inner=True)
    expect_size(site, target, 4096 * site.scale.fsync_ops)


@workload("sqlite", "io", Row("sqlite-insert", "meta"), stack="data")
def sqlite(site: Site) -> None:
    """One row per transaction, with SQLite's own durable default."""
    site.step("mkdir", str(site.new))
    rows = str(site.scale.sqlite_rows)
    site.measure("sqlite-insert", sys.executable, "-S", "-c", INSERTS, str(site.new / "facts.db"), rows)


@workload(
    "mmap",
    "io",
    Row("mmap-read-cold", "cold"),
    Row("mmap-read-warm", "warm"),
    Row("mmap-write", "stream"),
    stack="data",
)
def mmap(site: Site) -> None:
    """A shared mapping of a file of the base, read; one of a new file, written."""
    read = (site.assets.load, "mmapread", str(site.root / LARGE))
    site.cool()
    site.measure("mmap-read-cold", *read, inner=True)
    site.measure("mmap-read-warm", *read, inner=True)
    copy_large(site)
    site.measure("mmap-write", site.assets.load, "mmapwrite", str(site.new / "large"), inner=True)
