"""Group 1: looking at everything. find, stat and grep over the whole tree, cold and warm."""

from __future__ import annotations

from benchmarks.registry import Row, workload
from benchmarks.site import Site
from benchmarks.trees import NEEDLE


@workload("find", "walk", Row("find-cold", "cold"), Row("find-warm", "warm"))
def find(site: Site) -> None:
    """Names alone: directories are read, files are not looked at."""
    command = ("find", str(site.root / "tree"), "-type", "f")
    site.cool()
    site.measure("find-cold", *command, lines=site.stack().files)
    site.measure("find-warm", *command, lines=site.stack().files)


@workload("stat", "walk", Row("stat-cold", "cold"), Row("stat-warm", "warm"))
def stat(site: Site) -> None:
    """Size, date, mode and owner of every file."""
    command = ("find", str(site.root / "tree"), "-type", "f", "-printf", "%s %T@ %m %u\n")
    site.cool()
    site.measure("stat-cold", *command, lines=site.stack().files)
    site.measure("stat-warm", *command, lines=site.stack().files)


@workload("grep", "walk", Row("grep-cold", "cold"), Row("grep-warm1", "warm"), Row("grep-warm2", "warm"))
def grep(site: Site) -> None:
    """Every byte of every file. The second warm run shows what the first one still had to ask."""
    command = ("grep", "-rl", NEEDLE.decode().strip(), str(site.root / "tree"))
    site.cool()
    site.measure("grep-cold", *command, lines=site.stack().needles)
    site.measure("grep-warm1", *command, lines=site.stack().needles)
    site.measure("grep-warm2", *command, lines=site.stack().needles)
