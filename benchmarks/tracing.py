"""Exact counts of FUSE requests of any server, from the kernel's trace events ``fuse:fuse_request_send``.

The events of one connection are collected in a trace instance of our own (Documentation/trace/ftrace.rst), in a round
that is not timed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import system

TRACEFS = Path("/sys/kernel/tracing")
EVENT = "events/fuse/fuse_request_send"
BUFFER_KIB = "16384"


class Tracer:
    """A trace instance, there from the construction until :meth:`close`."""

    def __init__(self) -> None:
        self.base = TRACEFS / "instances" / "unionfs-benchmark"
        self.base.mkdir(exist_ok=True)
        (self.base / "buffer_size_kb").write_text(BUFFER_KIB)

    @staticmethod
    def missing() -> str | None:
        """Why requests cannot be counted on this machine; None when they can."""
        if (TRACEFS / EVENT / "filter").is_file():
            return None
        return f"no {TRACEFS / EVENT}: it takes root, tracefs and a kernel with trace events of FUSE"

    @contextmanager
    def counting(self, root: Path, into: dict[str, int]) -> Iterator[None]:
        """Count the requests on the mount at ``root`` by name while the block runs; none without FUSE."""
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
        counts = Counter[str]()
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
