"""Exact counts of FUSE requests, taken in a round that is not timed.

From the kernel's trace events ``fuse:fuse_request_send`` for any server, collected in a trace instance of our own
(Documentation/trace/ftrace.rst); where there are none, from what a server says that it counted.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from benchmarks import system
from benchmarks.peers import Peer

TRACEFS = Path("/sys/kernel/tracing")
EVENT = "events/fuse/fuse_request_send"
BUFFER_KIB = "16384"


class Counter(ABC):
    """A way to count requests."""

    @abstractmethod
    def counting(self, peer: Peer, root: Path, into: dict[str, int]) -> AbstractContextManager[None]:
        """Count the requests on the mount at ``root`` by name while the block runs; none without FUSE."""

    @abstractmethod
    def close(self) -> None:
        """Give back what counting needed."""


class Asker(Counter):
    """Asks the servers that count; its own question is among the answers: two readings of an attribute."""

    @contextmanager
    def counting(self, peer: Peer, root: Path, into: dict[str, int]) -> Iterator[None]:
        """The difference between what the server had counted after the block and before."""
        before = Tally(peer.counters(root))
        yield
        into.update((Tally(peer.counters(root)) - before).most_common())

    def close(self) -> None:
        """Nothing to give back."""


class Tracer(Counter):
    """A trace instance, there from the construction until :meth:`close`."""

    def __init__(self) -> None:
        self.base = TRACEFS / "instances" / f"unionfs-benchmark-{os.getpid()}"
        self.base.mkdir()
        (self.base / "buffer_size_kb").write_text(BUFFER_KIB)

    @staticmethod
    def works() -> bool:
        """Whether this machine lets us: that takes root, tracefs, and a kernel with trace events of FUSE."""
        return os.access(TRACEFS / EVENT / "filter", os.W_OK)

    @contextmanager
    def counting(self, peer: Peer, root: Path, into: dict[str, int]) -> Iterator[None]:
        """The events of the connection while the block ran."""
        number = system.connection(root)
        if number is None:
            yield
            return
        (self.base / "trace").write_text("")
        (self.base / EVENT / "filter").write_text(f"connection == {number}")
        (self.base / EVENT / "enable").write_text("1")
        try:
            yield
        finally:
            (self.base / EVENT / "enable").write_text("0")
        into.update(self._counts())

    def _counts(self) -> dict[str, int]:
        counts = Tally[str]()
        with (self.base / "trace").open() as lines:
            for line in lines:
                counts.update(re.findall(r"opcode \d+ \(FUSE_(\w+)\)", line))
        counts.update({"lost": lost} if (lost := self._lost()) else {})
        return dict(counts.most_common())

    def _lost(self) -> int:
        """Events that did not fit into the buffer: the counts are too low by these."""
        stats = "".join(path.read_text() for path in self.base.glob("per_cpu/cpu*/stats"))
        return sum(int(number) for number in re.findall(r"^(?:overrun|dropped events): (\d+)", stats, re.MULTILINE))

    def close(self) -> None:
        """Give the buffers back."""
        self.base.rmdir()


def counter_of_this_machine() -> Counter:
    """The most exact counter that there is."""
    return Tracer() if Tracer.works() else Asker()
