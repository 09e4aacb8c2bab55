"""Which bars of the project a run missed, by how much, and what is the least that it could have been."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from benchmarks.registry import BARS, Row
from benchmarks.result import FUSE_REFERENCE, KERNEL_REFERENCE, Result, figure

OURS = "unionmount"
GEOMEAN_FASTER = 3.0
LIMIT = """

At best: what it would be if the server took no time from reading a request to its answer; the rest are the client, the
kernel and waking. What was tried stands in docs/performance.md."""


def as_markdown(result: Result) -> str:
    """One line for each missed bar, with its limit where the round that counts has found it; empty without ours."""
    ours = [peer for peer in result.peers if peer.startswith(OURS)]
    lines = [line for peer in ours for line in missed(result, peer)]
    explained = LIMIT if any("at best" in line for line in lines) else ""
    return "\n".join(lines) + explained if lines else "None." if ours else ""


def missed(result: Result, peer: str) -> list[str]:
    """One line for each bar of the project that a peer missed, with what was found."""
    best = result.at_best(peer)
    lines = [line for row in result.rows for line in _missed_by(result, best, row, peer)]
    found, bound = (_times(run.geomean(peer, FUSE_REFERENCE)) for run in (result, best))
    if found and found < GEOMEAN_FASTER:
        lines.append(_slow(peer, "geometric mean", (found, bound), (FUSE_REFERENCE, GEOMEAN_FASTER)))
    return lines


def _missed_by(result: Result, best: Result, row: Row, peer: str) -> Iterator[str]:
    name, bar = row.faster_than
    found, bound = (_times(run.ratio(row.name, peer, name)) for run in (result, best))
    if row.unit == "s" and found and found < bar:
        yield _slow(peer, row.name, (found, bound), row.faster_than)
    kernel, least = (run.ratio(row.name, peer, KERNEL_REFERENCE) for run in (result, best))
    if row.bar in BARS and kernel and kernel.median > BARS[row.bar]:
        text = f"- {peer}, {row.name}: {kernel.median:.2f} times {KERNEL_REFERENCE}, not {BARS[row.bar]}"
        yield text + _at_best(kernel.median, least and least.median)
    samples = result.samples(row.name, peer)
    if samples and row.limit is not None and median(samples) > row.limit:
        yield f"- {peer}, {row.name}: {figure(median(samples), row.unit)}, not {figure(row.limit, row.unit)}"


def _times(ratio: tuple[float, ...] | None) -> float | None:
    """How many times as fast as the reference, from the ratio of times or the mean of such."""
    return 1 / ratio[0] if ratio else None


def _slow(peer: str, what: str, found: tuple[float, float | None], bar: tuple[str, float]) -> str:
    return f"- {peer}, {what}: {found[0]:.2f} times as fast as {bar[0]}, not {bar[1]}" + _at_best(*found)


def _at_best(found: float, bound: float | None) -> str:
    return f"; at best {bound:.2f}" if bound and bound != found else ""
