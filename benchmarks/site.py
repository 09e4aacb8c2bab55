"""What a workload sees: one stack, mounted by one peer for one round, and the ways to prepare, measure and check.

Runs in the benchmark's process, which never touches the mount itself: that is left to children with a time limit.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks import proc, system
from benchmarks.peers import Mounted, Peer, Place
from benchmarks.tracing import Counted, Counter

if TYPE_CHECKING:
    from benchmarks.assets import Assets
    from benchmarks.registry import Workload
    from benchmarks.scale import Scale
    from benchmarks.stacks import Stack, Stacks


SERIAL = itertools.count()


class Setting(NamedTuple):
    """What all sites of a run share."""

    base: Path
    scale: Scale
    stacks: Stacks
    assets: Assets


class Site:
    """One workload's place of work on one peer, for one round."""

    def __init__(self, peer: Peer, entry: Workload, setting: Setting, counter: Counter | None = None) -> None:
        self.peer = peer
        self.entry = entry
        self.base = setting.base
        self.scale = setting.scale
        self.stacks = setting.stacks
        self.assets = setting.assets
        self.counter = counter
        self.values: dict[str, float] = {}
        self.counted: dict[str, Counted] = {}
        self.mounted: list[Mounted] = []
        self.used: list[Path] = []
        self.lukewarm = False

    @property
    def root(self) -> Path:
        """Where the merged tree is seen."""
        return self.mounted[0].root

    @property
    def new(self) -> Path:
        """A directory that exists in no layer, for everything that a workload creates."""
        return self.root / "new"

    def stack(self) -> Stack:
        """The stack that the workload named."""
        return self.stacks.get(self.entry.stack)

    def place(self, stack: Stack) -> Place:
        """Fresh writable directories beside the layers, and a fresh mount point outside of them."""
        name = f"{self.peer.name}-{next(SERIAL)}"
        scratch = stack.base / f"scratch-{name}"
        place = Place(
            stack.layers,
            scratch / "upper",
            scratch / "work",
            self.base / "mnt" / name,
            self.base / f"{self.peer.name}.log",
            self.entry.changes,
        )
        for path in (place.upper, place.work, place.root):
            path.mkdir(parents=True)
        self.used.append(scratch)
        return place

    def mount(self, stack: Stack | None = None) -> Mounted:
        """Mount a stack (the workload's own by default) once more, over an empty upper directory."""
        mounted = self.peer.mount(self.place(stack or self.stack()))
        self.mounted.append(mounted)
        return mounted

    def fresh(self, stack: Stack | None = None, *, cold: bool = False) -> None:
        """Throw away the mounts there are and mount anew; ``cold`` also drops every cache of the machine."""
        self.close()
        self.mount(stack)
        if cold:
            self.cool()

    def cool(self) -> None:
        """Drop every cache of the machine; without the right to, what is measured next is done but not noted."""
        self.lukewarm = not system.may_drop_caches()
        if not self.lukewarm:
            system.drop_caches()

    def step(self, *argv: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> bytes:
        """Run a command that is not measured, and give back what it printed."""
        return proc.run(argv, limit_s=self.scale.limit_s, cwd=cwd, env=env).output

    def measure(
        self,
        row: str,
        *argv: str,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        copies: int = 1,
        inner: bool = False,
        per: int = 1,
        lines: int | None = None,
    ) -> None:
        """Run a command and note its time in seconds for a row, divided by ``per``.

        ``inner`` takes the number that the command prints instead: helpers that time a short loop themselves.
        ``lines`` is how many lines the command must print: another count is a wrong answer of the peer.
        """
        with self._counting(row, per):
            done = proc.run(argv, limit_s=self.scale.limit_s, cwd=cwd, env=env, copies=copies)
        printed = done.output.count(b"\n")
        if lines is not None and printed != lines * copies:
            raise proc.StepFailed(f"{row}: {printed} lines instead of {lines * copies}")
        if not self.lukewarm:
            self.note(row, (float(done.output) if inner else done.seconds) / per)
        self.lukewarm = False

    @contextmanager
    def _counting(self, row: str, per: int) -> Iterator[None]:
        if self.counter is None or not self.mounted:
            yield
            return
        counted = self.counted.setdefault(row, Counted())
        with self.counter.counting(self.peer, self.mounted[0], counted):
            yield
        counted.served_s /= per

    def note(self, row: str, value: float) -> None:
        """Note a value for a row; values of all rows are better when smaller."""
        if row not in {known.name for known in self.entry.rows}:
            raise ValueError(f"{self.entry.name} has no row {row}")
        self.values[row] = value

    def expect_files(self, directory: Path, count: int) -> None:
        """Raise :class:`proc.StepFailed` unless there are that many files below a directory."""
        found = self.step("find", str(directory), "-type", "f", "-printf", ".")
        if len(found) != count:
            raise proc.StepFailed(f"{len(found)} files instead of {count} in {directory.name}")

    def abort(self) -> None:
        """Free every client of the mounts of this site, after a hang."""
        for mounted in self.mounted:
            mounted.abort()

    def close(self) -> None:
        """Unmount everything and remove what was written."""
        with ExitStack() as last:
            while self.used:
                last.callback(self._remove, self.used.pop(0))
            while self.mounted:
                last.callback(self.mounted.pop(0).close)

    def _remove(self, scratch: Path) -> None:
        proc.run(["rm", "-rf", "--one-file-system", str(scratch)], limit_s=self.scale.limit_s * 4)
