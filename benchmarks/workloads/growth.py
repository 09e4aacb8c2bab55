"""Group 8: what grows with the stack. Layers, entries of a directory, depth; memory and descriptors of the server."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks import proc, system
from benchmarks.registry import Row, workload
from benchmarks.scale import FULL, MIB
from benchmarks.site import Site

LOOKUPS = 2_000
MANY_ENTRIES = 1_000_000
IDLE_S = 1.0


def paths(site: Site, names: tuple[str, ...], count: int) -> Path:
    """A list of names for the program of loops, repeated until there are ``count`` of them."""
    path = site.base / "names"
    path.write_text("\n".join(names[number % len(names)] for number in range(count)))
    return path


def timed_stat(site: Site, row: str, names: tuple[str, ...], count: int) -> None:
    """The time of one stat of one of the names, in seconds, over ``count`` of them."""
    list_of_names = paths(site, names, count)
    site.measure(row, site.assets.load, "stat", str(list_of_names), cwd=site.root, inner=True, per=count)


def grow_layers(site: Site, count: int) -> None:
    """Lookups of names that only the lowest layer has, cold and again, and the listing of what all layers have."""
    stack = site.stack()
    site.cool()
    timed_stat(site, f"layers-{count}-lookup", stack.names, len(stack.names))
    timed_stat(site, f"layers-{count}-again", stack.names, LOOKUPS)
    site.fresh(cold=True)
    site.measure(f"layers-{count}-list", site.assets.load, "list", "common", cwd=site.root, inner=True)
    site.expect_files(site.root / "common", stack.files)


def grow_entries(site: Site, count: int) -> None:
    """List one directory: names alone cold and warm, and then with their attributes."""
    many = str(site.root / "many")
    site.cool()
    site.measure(f"entries-{count}-cold", site.assets.load, "list", many, inner=True)
    site.measure(f"entries-{count}-warm", site.assets.load, "list", many, inner=True)
    site.measure(f"entries-{count}-stat", "find", many, "-type", "f", "-printf", "%s\n", lines=count)


def grow_depth(site: Site, count: int) -> None:
    """Stat a file at the bottom, cold and again."""
    names = site.stack().names
    site.cool()
    timed_stat(site, f"depth-{count}-cold", names, 1)
    timed_stat(site, f"depth-{count}-warm", names, LOOKUPS)


def enter_layers(count: int) -> None:
    """Enter the workload for one number of layers."""
    name = f"layers-{count}"
    rows = (Row(f"{name}-lookup", "cold"), Row(f"{name}-again", "warm"), Row(f"{name}-list", "cold"))
    entry = workload(name, "growth", *rows, stack=f"layers:{count}", fits=lambda scale: count in scale.layer_counts)
    entry(lambda site: grow_layers(site, count))


def enter_entries(count: int) -> None:
    """Enter the workload for one size of a directory."""
    name = f"entries-{count}"
    rows = (Row(f"{name}-cold", "cold"), Row(f"{name}-warm", "warm"), Row(f"{name}-stat"))
    rounds = 1 if count >= MANY_ENTRIES else sys.maxsize
    entry = workload(
        name, "growth", *rows, stack=f"entries:{count}", fits=lambda scale: count in scale.dir_entries, rounds=rounds
    )
    entry(lambda site: grow_entries(site, count))


def enter_depth(count: int) -> None:
    """Enter the workload for one depth."""
    name = f"depth-{count}"
    rows = (Row(f"{name}-cold", "cold"), Row(f"{name}-warm", "warm"))
    entry = workload(name, "growth", *rows, stack=f"depth:{count}", fits=lambda scale: count in scale.depths)
    entry(lambda site: grow_depth(site, count))


def enter_sizes() -> None:
    """Enter one workload per size; a scale takes those that are among its own."""
    for count in FULL.layer_counts:
        enter_layers(count)
    for count in FULL.dir_entries:
        enter_entries(count)
    for count in FULL.depths:
        enter_depth(count)


SERVER_ROWS = (
    Row("memory-at-start", unit="MiB", limit=20),
    Row("memory-per-file", unit="B", limit=600),
    Row("descriptors-per-1000-files", unit="", limit=100),
    Row("idle-processor", unit="ms/s", limit=0),
)


@workload("server", "growth", *SERVER_ROWS, stack="known")
def server(site: Site) -> None:
    """Memory and descriptors of the server before and after it was shown every file, and what it uses when idle."""
    pids = site.mounted[0].pids()
    if not pids:
        raise proc.Skip("has no server")
    site.step("stat", str(site.root))
    before, descriptors = system.resident_bytes(pids), system.descriptors(pids)
    site.note("memory-at-start", before / MIB)
    site.step("find", str(site.root / "tree"), "-printf", "%s")
    files = site.stack().files
    site.note("memory-per-file", (system.resident_bytes(pids) - before) / files)
    site.note("descriptors-per-1000-files", (system.descriptors(pids) - descriptors) * 1000 / files)
    time.sleep(IDLE_S / 2)
    used = system.cpu_s(pids)
    time.sleep(IDLE_S)
    site.note("idle-processor", (system.cpu_s(pids) - used) * 1000 / IDLE_S)


enter_sizes()
