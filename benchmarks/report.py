"""The outcome of a run as JSON and as Markdown; the arithmetic is in :mod:`benchmarks.stats`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from statistics import median
from typing import Any

from benchmarks import bars, stats
from benchmarks.registry import BARS, Row
from benchmarks.result import FUSE_REFERENCE, KERNEL_REFERENCE, Result, figure
from benchmarks.runner import Key

NOTHING = "-"


def as_json(result: Result) -> str:
    """Everything that was measured, with nothing rounded or left out."""
    return (
        json.dumps(
            {
                "machine": result.machine,
                "absent": result.absent,
                "rows": {row.name: _row_json(result, row) for row in result.rows},
                "failed": _reasons(result.outcome.failed),
                "skipped": _reasons(result.outcome.skipped),
            },
            indent=1,
        )
        + "\n"
    )


def _reasons(table: dict[Key, str]) -> list[dict[str, str]]:
    return [{"workload": key.row, "peer": key.peer, "reason": reason} for key, reason in table.items()]


def _row_json(result: Result, row: Row) -> dict[str, Any]:
    counted = {peer: result.counted(row.name, peer) for peer in result.peers}
    return {
        "unit": row.unit,
        "bar": BARS.get(row.bar),
        "samples": {peer: result.samples(row.name, peer) for peer in result.peers if result.samples(row.name, peer)},
        "requests": {peer: found.requests for peer, found in counted.items() if found.requests},
        "served_s": {peer: found.served_s for peer, found in counted.items() if found.served_s},
    }


def as_markdown(result: Result) -> str:
    """The tables for people."""
    sections = {
        "# Benchmark": _machine(result),
        "## Medians": _medians(result),
        f"## Times as fast as {FUSE_REFERENCE} (smallest to largest of the rounds)": _ratios(
            result, FUSE_REFERENCE, faster=True
        ),
        f"## Relative to the kernel's {KERNEL_REFERENCE}, which is 1 (smallest to largest of the rounds)": _ratios(
            result, KERNEL_REFERENCE, faster=False
        ),
        "## Bars that were missed": bars.as_markdown(result),
        "## FUSE requests": _requests(result),
        "## Left out": _left_out(result),
    }
    return "\n\n".join(f"{title}\n\n{text}" for title, text in sections.items() if text) + "\n"


def _machine(result: Result) -> str:
    return "\n".join(f"- {name}: {value}" for name, value in result.machine.items())


def _table(head: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    names = list(head)
    rule = ["---", *("---:" for _ in names[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, rule, *lines))


def _medians(result: Result) -> str:
    def cell(row: Row, peer: str) -> str:
        samples = result.samples(row.name, peer)
        return figure(median(samples), row.unit) if samples else NOTHING

    lines = ([row.name, *(cell(row, peer) for peer in result.peers)] for row in result.rows)
    return _table(["workload", *result.peers], lines)


def _ratios(result: Result, reference: str, *, faster: bool) -> str:
    if reference not in result.peers:
        return f"{reference} did not take part."
    peers = [peer for peer in result.peers if peer != reference]

    def cell(row: Row, peer: str) -> str:
        ratio = result.ratio(row.name, peer, reference)
        return _spread(stats.inverse(ratio) if faster else ratio) if ratio else NOTHING

    def mean(peer: str) -> str:
        found = result.geomean(peer, reference)
        return f"**{1 / found[0] if faster else found[0]:.2f}** of {found[1]}" if found else NOTHING

    compared = [row for row in result.rows if any(result.ratio(row.name, peer, reference) for peer in peers)]
    lines = [[row.name, *(cell(row, peer) for peer in peers)] for row in compared]
    return _table(["workload", *peers], [*lines, ["geometric mean of times", *map(mean, peers)]])


def _spread(value: stats.Ratio) -> str:
    return f"{value.median:.2f} ({value.low:.2f} to {value.high:.2f})"


def _requests(result: Result) -> str:
    def asked(row: Row, peer: str) -> dict[str, int]:
        return result.counted(row.name, peer).requests

    def cell(row: Row, peer: str) -> str:
        counts = asked(row, peer)
        most = ", ".join(f"{name.lower()} {count:,}" for name, count in list(counts.items())[:3])
        return f"{sum(counts.values()):,} ({most})" if counts else NOTHING

    peers = [peer for peer in result.peers if any(asked(row, peer) for row in result.rows)]
    lines = ([row.name, *(cell(row, peer) for peer in peers)] for row in result.rows)
    return _table(["workload", *peers], lines) if peers else ""


def _left_out(result: Result) -> str:
    absent = [f"- {peer}: {reason}" for peer, reason in result.absent.items()]
    failed = [f"- {peer}, {rows} failed: {reason}" for peer, reason, rows in _grouped(result.outcome.failed)]
    skipped = [f"- {peer}, {rows}: {reason}" for peer, reason, rows in _grouped(result.outcome.skipped)]
    return "\n".join([*absent, *failed, *skipped]) or "Nothing."


def _grouped(table: dict[Key, str]) -> list[tuple[str, str, str]]:
    """Peer, reason, and the workloads that the peer has the same reason for."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key, reason in table.items():
        groups.setdefault((key.peer, reason), []).append(key.row)
    return [(peer, reason, ", ".join(rows)) for (peer, reason), rows in groups.items()]
