"""The table of workloads: what exists, in which group, which rows each of them fills. Nothing is run here."""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.scale import Scale

if TYPE_CHECKING:
    from benchmarks.site import Site

    Body = Callable[[Site], None]


class Row(NamedTuple):
    """One line of the result, and what the project asks of it.

    ``bar`` names an entry of :data:`BARS`, ``limit`` is the most that the value may be, ``faster_than`` a peer and how
    many times as fast as it ours must be.
    """

    name: str
    bar: str = ""
    unit: str = "s"
    limit: float | None = None
    faster_than: tuple[str, float] = ("fuse-overlayfs", 1.2)


def always(_scale: Scale) -> bool:
    """A workload that is part of every run."""
    return True


class Workload(NamedTuple):
    """A piece of work: the function that does it on a site, and the rows that it measures.

    ``stack`` names the tree it works on, ``changes`` the parts of that tree (besides ``new``) that it may change.
    ``copies_up`` is true when it changes or removes what a lower layer holds, which mergerfs cannot do; ``mounted`` is
    false when it mounts for itself; ``fits`` tells whether it belongs into a run of some scale; ``rounds`` is the most
    rounds that it is part of, for work that takes minutes.
    """

    name: str
    group: str
    rows: tuple[Row, ...]
    body: Body
    stack: str = "tree"
    changes: tuple[str, ...] = ()
    copies_up: bool = False
    mounted: bool = True
    fits: Callable[[Scale], bool] = always
    rounds: int = sys.maxsize


# Time relative to the kernel's overlayfs that is still good, by kind of row.
BARS = {"warm": 1.15, "stream": 1.15, "cold": 1.5, "meta": 2.5}

WORKLOADS: dict[str, Workload] = {}


def workload(
    name: str,
    group: str,
    *rows: Row,
    stack: str = "tree",
    changes: tuple[str, ...] = (),
    copies_up: bool = False,
    mounted: bool = True,
    fits: Callable[[Scale], bool] = always,
    rounds: int = sys.maxsize,
) -> Callable[[Body], Body]:
    """Enter the decorated function into the table."""

    def enter(body: Body) -> Body:
        add(Workload(name, group, rows, body, stack, changes, copies_up, mounted, fits, rounds))
        return body

    return enter


def add(entry: Workload) -> None:
    """Enter a workload; a name or a row that is there already is an error of the programmer."""
    taken = {row.name for other in WORKLOADS.values() for row in other.rows}
    double = [row.name for row in entry.rows if row.name in taken]
    if double or entry.name in WORKLOADS:
        raise ValueError(f"workload {entry.name}: there already ({', '.join(double)})")
    WORKLOADS[entry.name] = entry


def select(patterns: Iterable[str], workloads: Iterable[Workload]) -> list[Workload]:
    """The workloads whose group, name or row (or its beginning) matches a pattern with ``*`` and ``?``.

    All of them without a pattern; raises LookupError when nothing matches.
    """
    wanted = list(patterns)
    chosen = [entry for entry in workloads if not wanted or any(_matches(entry, pattern) for pattern in wanted)]
    if not chosen:
        raise LookupError(f"no workload is called {', '.join(wanted)}: see --list")
    return chosen


def _matches(entry: Workload, pattern: str) -> bool:
    names = [entry.group, entry.name, *(row.name for row in entry.rows)]
    return any(fnmatch.fnmatch(name, pattern) or name.startswith(pattern + "-") for name in names)
