"""Exact counts of FUSE requests, and how long a server worked for its answers, in a round that is not timed.

From the kernel's trace events ``fuse:fuse_request_send`` and ``raw_syscalls`` for any server, collected in a trace
instance of our own (Documentation/trace/ftrace.rst); where there are none, from what a server says that it counted.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import system
from benchmarks.peers import Mounted, Peer

TRACEFS = Path("/sys/kernel/tracing")
SENT, ENTER, EXIT = (
    f"events/{name}" for name in ("fuse/fuse_request_send", "raw_syscalls/sys_enter", "raw_syscalls/sys_exit")
)
BUFFER_KIB = "32768"
#: The numbers of readv(2) and writev(2), by which requests come and answers go, on the machines where these are known.
CALLS = {"x86_64": (19, 20), "aarch64": (65, 66)}


@dataclass
class Counted:
    """What a row asked: FUSE requests by name, and the seconds that threads worked from reading one to its answer.

    ``served_s`` is zero where that was not observed, and holds nothing of what a thread other than the reader did.
    """

    requests: dict[str, int] = field(default_factory=dict)
    served_s: float = 0.0


class Counter(ABC):
    """A way to count requests."""

    @abstractmethod
    def counting(self, peer: Peer, mounted: Mounted, into: Counted) -> AbstractContextManager[None]:
        """Count what is asked of a mount while the block runs; nothing without FUSE."""

    @abstractmethod
    def close(self) -> None:
        """Give back what counting needed."""


class Asker(Counter):
    """Asks the servers that count; its own question is among the answers: two readings of an attribute."""

    @contextmanager
    def counting(self, peer: Peer, mounted: Mounted, into: Counted) -> Iterator[None]:
        """The difference between what the server had counted after the block and before."""
        before = Tally(peer.counters(mounted.root))
        yield
        into.requests.update((Tally(peer.counters(mounted.root)) - before).most_common())

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
        return all(os.access(TRACEFS / event / "filter", os.W_OK) for event in (SENT, ENTER, EXIT))

    @contextmanager
    def counting(self, peer: Peer, mounted: Mounted, into: Counted) -> Iterator[None]:
        """The events of the connection and of its server while the block ran."""
        number = system.connection(mounted.root)
        if number is None:
            yield
            return
        filters = {SENT: f"connection == {number}", **_filters(mounted.pids())}
        (self.base / "trace").write_text("")
        for event, condition in filters.items():
            (self.base / event / "filter").write_text(condition)
            (self.base / event / "enable").write_text("1")
        try:
            yield
        finally:
            for event in filters:
                (self.base / event / "enable").write_text("0")
        self._read(into)

    def _read(self, into: Counted) -> None:
        with (self.base / "trace").open() as trace:
            lines = trace.readlines()
        counts = Tally[str](name for line in lines for name in re.findall(r"opcode \d+ \(FUSE_(\w+)\)", line))
        counts.update({"lost": lost} if (lost := self._lost()) else {})
        into.requests.update(counts.most_common())
        into.served_s = served_s(lines)

    def _lost(self) -> int:
        """Events that did not fit into the buffer: the counts are too low by these."""
        stats = "".join(path.read_text() for path in self.base.glob("per_cpu/cpu*/stats"))
        return sum(int(number) for number in re.findall(r"^(?:overrun|dropped events): (\d+)", stats, re.MULTILINE))

    def close(self) -> None:
        """Give the buffers back."""
        self.base.rmdir()


def _filters(servers: Iterable[int]) -> dict[str, str]:
    """Which system calls tell when the first threads of servers have read a request, and when they answer it."""
    calls = CALLS.get(os.uname().machine)
    who = " || ".join(f"common_pid == {pid}" for pid in servers)
    if calls is None or not who:
        return {}
    read, write = calls
    return {EXIT: f"({who}) && id == {read} && ret > 0", ENTER: f"({who}) && (id == {read} || id == {write})"}


def served_s(lines: Iterable[str]) -> float:
    """Seconds between each request that was read and what its reader did next: the answer, or the next request."""
    begun: dict[str, float] = {}
    seconds = 0.0
    for line in lines:
        if event := re.match(r".*-(\d+) +\[\d+\] .* ([\d.]+): sys_(enter|exit): ", line):
            thread, moment, kind = event[1], float(event[2]), event[3]
            if kind == "exit":
                begun[thread] = moment
            elif thread in begun:
                seconds += moment - begun.pop(thread)
    return seconds


def counter_of_this_machine() -> Counter:
    """The most exact counter that there is."""
    return Tracer() if Tracer.works() else Asker()
