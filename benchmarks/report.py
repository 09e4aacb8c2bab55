"""The outcome of a run as JSON and as Markdown; the arithmetic is in :mod:`benchmarks.stats`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks import stats
from benchmarks.registry import BARS, Row
from benchmarks.runner import Key, Outcome

FUSE_REFERENCE = "fuse-overlayfs"
KERNEL_REFERENCE = "overlayfs"
OURS = "unionmount"
GEOMEAN_FASTER = 3.0
NOTHING = "-"


class Result(NamedTuple):
    """A run: its rows in order, the peers that took part, what was found, and the machine it was found on."""

    rows: Sequence[Row]
    peers: Sequence[str]
    outcome: Outcome
    machine: dict[str, str]
    absent: dict[str, str]

    def samples(self, row: str, peer: str) -> list[float]:
        """The values of a row on a peer, one per round."""
        return self.outcome.samples.get(Key(row, peer), [])

    def ratio(self, row: str, peer: str, reference: str) -> stats.Ratio | None:
        """How many times the reference's value the peer needed."""
        return stats.ratio(self.samples(row, peer), self.samples(row, reference))

    def geomean(self, peer: str, reference: str) -> tuple[float, int] | None:
        """The geometric mean of the ratios of all rows that are times, and how many there were."""
        ratios = [self.ratio(row.name, peer, reference) for row in self.rows if row.unit == "s"]
        found = [value.median for value in ratios if value]
        mean = stats.geometric_mean(found)
        return (mean, len(found)) if mean else None


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
    requests = {peer: result.outcome.requests.get(Key(row.name, peer)) for peer in result.peers}
    return {
        "unit": row.unit,
        "bar": BARS.get(row.bar),
        "samples": {peer: result.samples(row.name, peer) for peer in result.peers if result.samples(row.name, peer)},
        "requests": {peer: counts for peer, counts in requests.items() if counts},
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
        "## Bars that were missed": _bars(result),
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


def figure(value: float, unit: str) -> str:
    """A value with its unit, to three digits."""
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
    return (f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}").strip()


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


def _bars(result: Result) -> str:
    ours = [peer for peer in result.peers if peer.startswith(OURS)]
    lines = [line for peer in ours for line in missed(result, peer)]
    return "\n".join(lines) if lines else "None." if ours else ""


def missed(result: Result, peer: str) -> list[str]:
    """One line for each bar of the project that a peer missed, with what was found."""
    lines = [line for row in result.rows for line in _missed_by(result, row, peer)]
    mean = result.geomean(peer, FUSE_REFERENCE)
    if mean and 1 / mean[0] < GEOMEAN_FASTER:
        lines.append(_slow(peer, "geometric mean", 1 / mean[0], (FUSE_REFERENCE, GEOMEAN_FASTER)))
    return lines


def _missed_by(result: Result, row: Row, peer: str) -> Iterator[str]:
    other = result.ratio(row.name, peer, row.faster_than[0])
    if row.unit == "s" and other and 1 / other.median < row.faster_than[1]:
        yield _slow(peer, row.name, 1 / other.median, row.faster_than)
    kernel = result.ratio(row.name, peer, KERNEL_REFERENCE)
    if row.bar in BARS and kernel and kernel.median > BARS[row.bar]:
        yield f"- {peer}, {row.name}: {kernel.median:.2f} times {KERNEL_REFERENCE}, not {BARS[row.bar]}"
    samples = result.samples(row.name, peer)
    if samples and row.limit is not None and median(samples) > row.limit:
        yield f"- {peer}, {row.name}: {figure(median(samples), row.unit)}, not {figure(row.limit, row.unit)}"


def _slow(peer: str, what: str, found: float, bar: tuple[str, float]) -> str:
    return f"- {peer}, {what}: {found:.2f} times as fast as {bar[0]}, not {bar[1]}"


def _requests(result: Result) -> str:
    requests = result.outcome.requests
    if not requests:
        return ""
    peers = [peer for peer in result.peers if any(key.peer == peer for key in requests)]

    def cell(row: Row, peer: str) -> str:
        counts = requests.get(Key(row.name, peer), {})
        most = ", ".join(f"{name.lower()} {count:,}" for name, count in list(counts.items())[:3])
        return f"{sum(counts.values()):,} ({most})" if counts else NOTHING

    counted = [row for row in result.rows if any(Key(row.name, peer) in requests for peer in peers)]
    return _table(["workload", *peers], ([row.name, *(cell(row, peer) for peer in peers)] for row in counted))


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
