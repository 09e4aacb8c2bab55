"""The order of the run: rounds of workloads of peers, and what becomes of a peer that fails.

Every round goes through all workloads, every workload through all peers one after the other (A B C A B C), so that
what is compared was measured close together in time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks import proc
from benchmarks.peers import Peer
from benchmarks.registry import Workload
from benchmarks.site import Setting, Site
from benchmarks.tracing import Counted, Counter


class Key(NamedTuple):
    """Which row of which peer."""

    row: str
    peer: str


class Outcome(NamedTuple):
    """All that a run found: values by row and peer in the order of rounds, failures and skips by workload and peer."""

    samples: dict[Key, list[float]]
    counted: dict[Key, Counted]
    failed: dict[Key, str]
    skipped: dict[Key, str]


class Runner:
    """Goes through the rounds; the outcome is good to be reported at any time, also after an interruption."""

    def __init__(
        self, peers: Sequence[Peer], workloads: Sequence[Workload], setting: Setting, tell: Callable[[str, float], None]
    ) -> None:
        pairs = itertools.product(workloads, peers)
        self.pairs = [(entry, peer) for entry, peer in pairs if not peer.only or entry.name in peer.only]
        self.setting = setting
        self.tell = tell
        self.outcome = Outcome({}, {}, {}, {})
        self.rounds_done = 0

    def run(self, rounds: int, deadline: float | None) -> None:
        """All rounds, or as many cells as begin before the deadline (seconds of the monotonic clock)."""
        cells = [(number, *pair) for number in range(rounds) for pair in self.pairs if number < pair[0].rounds]
        for done, (number, entry, peer) in enumerate(cells):
            if deadline is not None and time.monotonic() > deadline:
                return
            self.rounds_done = number
            self.tell(f"round {number + 1}/{rounds}: {entry.name} on {peer.name}", done / len(cells))
            self._cell(entry, peer)
        self.rounds_done = rounds

    def count(self, counter: Counter, peers: Sequence[Peer]) -> None:
        """One more round that is not timed: what every row asks of the servers of some peers."""
        pairs = [(entry, peer) for entry, peer in self.pairs if peer in peers]
        for done, (entry, peer) in enumerate(pairs):
            self.tell(f"counting: {entry.name} on {peer.name}", done / len(pairs))
            site = self._work(entry, peer, counter)
            found = {Key(row, peer.name): counted for row, counted in site.counted.items() if counted.requests}
            self.outcome.counted.update(found)

    def _cell(self, entry: Workload, peer: Peer) -> None:
        """One workload on one peer; rows that were measured before something failed are kept."""
        site = self._work(entry, peer)
        for row, value in site.values.items():
            self.outcome.samples.setdefault(Key(row, peer.name), []).append(value)

    def _work(self, entry: Workload, peer: Peer, counter: Counter | None = None) -> Site:
        key = Key(entry.name, peer.name)
        site = Site(peer, entry, self.setting, counter)
        if key in self.outcome.failed or key in self.outcome.skipped:
            return site
        try:
            _perform(site)
        except proc.Skip as reason:
            self.outcome.skipped[key] = str(reason)
        except proc.StepFailed as reason:
            self.outcome.failed[key] = str(reason)
        return site


def _perform(site: Site) -> None:
    """Mount, work, unmount; whatever happens in between, the mounts are gone at the end."""
    if site.entry.copies_up and not site.peer.copies_up:
        raise proc.Skip("has no copy-up")
    try:
        if site.entry.mounted:
            site.mount()
        site.entry.body(site)
    except proc.StepFailed:
        site.abort()
        raise
    finally:
        site.close()
