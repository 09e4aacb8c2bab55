"""The picture of a run: how many times as fast as fuse-overlayfs each peer is. Needs matplotlib (extra ``bench``)."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks import stats
from benchmarks.registry import Row
from benchmarks.result import FUSE_REFERENCE, Result


def missing() -> str | None:
    """Why there is no picture; None when there can be one."""
    return None if find_spec("matplotlib") else "no plot: matplotlib is not installed: pip install 'unionfs[bench]'"


def draw(result: Result, path: Path) -> None:
    """Write a PNG with one group of points per row, on a logarithmic scale."""
    import_module("matplotlib").use("Agg")
    pyplot = import_module("matplotlib.pyplot")
    rows = [row for row in result.rows if row.unit == "s" and result.samples(row.name, FUSE_REFERENCE)]
    figure, axes = pyplot.subplots(figsize=(10, 2 + 0.32 * len(rows)), layout="constrained")
    for peer in result.peers:
        if peer != FUSE_REFERENCE:
            _points(axes, result, rows, peer)
    axes.axvline(1, color="black", linewidth=1, label=FUSE_REFERENCE)
    axes.set_xscale("log")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.set_ylim(len(rows), -1)
    axes.grid(alpha=0.3)
    axes.set_xlabel(f"times as fast as {FUSE_REFERENCE}: median of the rounds, smallest to largest")
    axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _points(axes: Any, result: Result, rows: list[Row], peer: str) -> None:
    found = [(place, result.ratio(row.name, peer, FUSE_REFERENCE)) for place, row in enumerate(rows)]
    values = [(place, stats.inverse(ratio)) for place, ratio in found if ratio]
    if values:
        places, middle = [place for place, _ in values], [value.median for _, value in values]
        below = [value.median - value.low for _, value in values]
        above = [value.high - value.median for _, value in values]
        axes.errorbar(middle, places, xerr=[below, above], fmt="o", markersize=4, linewidth=1, label=peer)
