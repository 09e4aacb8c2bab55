"""What a run found, to be asked for samples, ratios and means; how a value is written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks import stats
from benchmarks.registry import Row
from benchmarks.runner import Key, Outcome
from benchmarks.tracing import Counted

FUSE_REFERENCE = "fuse-overlayfs"
KERNEL_REFERENCE = "overlayfs"


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

    def counted(self, row: str, peer: str) -> Counted:
        """What a row asked of a peer in the round that counts; nothing without that round."""
        return self.outcome.counted.get(Key(row, peer), Counted())

    def at_best(self, peer: str) -> Result:
        """The same run with a server of that peer that takes no time from reading a request to its answer."""
        samples = {
            key: [value - self.counted(*key).served_s for value in values] if key.peer == peer else values
            for key, values in self.outcome.samples.items()
        }
        return self._replace(outcome=self.outcome._replace(samples=samples))

    def ratio(self, row: str, peer: str, reference: str) -> stats.Ratio | None:
        """How many times the reference's value the peer needed."""
        return stats.ratio(self.samples(row, peer), self.samples(row, reference))

    def geomean(self, peer: str, reference: str) -> tuple[float, int] | None:
        """The geometric mean of the ratios of all rows that are times, and how many there were."""
        ratios = [self.ratio(row.name, peer, reference) for row in self.rows if row.unit == "s"]
        found = [value.median for value in ratios if value]
        mean = stats.geometric_mean(found)
        return (mean, len(found)) if mean else None


def figure(value: float, unit: str) -> str:
    """A value with its unit, to three digits."""
    if unit == "s":
        return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms" if value >= 1e-3 else f"{value * 1e6:.3g} µs"
    return (f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}").strip()
