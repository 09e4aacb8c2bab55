"""The state machine: hypothesis draws operations, both sides perform them, outcomes and trees are compared.

What an operation is depends on the seed of the run and on its place in it alone. Hypothesis chooses the seed, and finds
out which steps a failure needs; left to choose the arguments as well, it repeats the simplest ones most of the time.

At the end of each run both are unmounted, and the kernel's overlayfs shows the directories that ours has left.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.support.mounts import overlayfs_mount, prepare
from tests.support.trees import assert_same_tree, digest_of_layer

from . import layers
from .actor import Actor, shown
from .differences import reason_for
from .operations import Situation, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from contextlib import AbstractContextManager

    from .operations import Operation

    #: From a base directory, lowers, upper and workdir to the mountpoint.
    Mount = Callable[[Path, Sequence[Path], Path, Path], AbstractContextManager[Path]]

ORACLE_OPTIONS = "redirect_dir=on,index=on,xino=on"
LAYERS = 3
#: How many operations pass between two comparisons of the whole trees.
COMPARE_EVERY = 15
REMOUNT_EVERY = 70
BUSY_LIMIT_S = 10


@contextmanager
def oracle(base: Path, lowers: Sequence[Path], upper: Path, work: Path) -> Iterator[Path]:
    """The kernel's overlayfs with all that brings it nearer to POSIX.

    With ``index`` it refuses an upper whose last mount is still there: that of another mount namespace, made meanwhile
    by whoever starts a container on this machine, lives on for a moment.
    """
    deadline = time.monotonic() + BUSY_LIMIT_S
    with ExitStack() as stack:
        while True:
            try:
                point = stack.enter_context(overlayfs_mount(base, lowers, upper, work, ORACLE_OPTIONS))
                break
            except AssertionError as error:
                if "busy" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield point


class Side(NamedTuple):
    """The directories of one of the two mounts, and how it is mounted."""

    base: Path
    mount: Mount
    lowers: Sequence[Path]
    upper: Path
    work: Path
    before: Sequence[str]

    @classmethod
    def build(cls, base: Path, mount: Mount, seed: int, elsewhere: Sequence[Path]) -> Side:
        """Make the layers of ``seed``; the lower ones on the file systems ``elsewhere``, in turn, if there are any."""
        lowers, upper, work = prepare(base, LAYERS)
        if elsewhere:
            places = islice(cycle(elsewhere), LAYERS)
            lowers = [Path(tempfile.mkdtemp(dir=place, prefix=base.name)) for place in places]
        layers.build(lowers, seed)
        return cls(base, mount, lowers, upper, work, list(map(digest_of_layer, lowers)))

    def mounted(self, mount: Mount | None = None) -> AbstractContextManager[Path]:
        """Mount these directories, the usual way or another."""
        return (mount or self.mount)(self.base, self.lowers, self.upper, self.work)


class Comparison(RuleBasedStateMachine):
    """``ours`` against ``theirs``; subclasses set how each is mounted and the file system that holds the layers."""

    ours: Mount
    theirs: Mount = staticmethod(oracle)
    #: Turns an operation that one side cannot be asked into one that it can.
    limit: Callable[[Operation], Operation]
    scratch: Path
    elsewhere: Sequence[Path] = ()

    def __init__(self) -> None:
        super().__init__()
        self.mounts = ExitStack()
        self.steps = 0
        self.mounted_at = 0
        self.tell: Callable[[str], None] = note
        self.agree = True
        self.base = Path(tempfile.mkdtemp(dir=self.scratch))
        self.base.chmod(0o755)
        self.sides: tuple[Side, ...] = ()
        self.actors: tuple[Actor, ...] = ()

    @initialize(seed=st.integers(0, 1 << 64))
    def mount(self, seed: int) -> None:
        """Build the same layers twice and mount them."""
        self.seed = seed
        kinds = {"ours": type(self).ours, "theirs": type(self).theirs}
        self.sides = tuple(Side.build(self.base / name, kind, seed, self.elsewhere) for name, kind in kinds.items())
        self._enter()

    def _enter(self) -> None:
        self.mounted_at = self.steps
        self.points = [self.mounts.enter_context(side.mounted()) for side in self.sides]
        self.actors = tuple(map(Actor, self.points))

    def _leave(self) -> None:
        for actor in self.actors:
            actor.leave()
        self.actors = ()
        self.mounts.close()

    def teardown(self) -> None:
        """Compare all that is left, also as the kernel shows what ours wrote."""
        try:
            if self.actors and self.agree:
                self.compare_trees()
                expected = shown(self.points[1])
                self._leave()
                self._judge(expected)
        finally:
            with self.mounts:
                for actor in self.actors:
                    actor.leave()
            for directory in (self.base, *(lower for side in self.sides for lower in side.lowers)):
                shutil.rmtree(directory, ignore_errors=directory != self.base)

    def _judge(self, expected: Any) -> None:
        with self.sides[0].mounted(oracle) as point:
            assert_same_tree(shown(point), expected)
        for side in self.sides:
            assert list(map(digest_of_layer, side.lowers)) == side.before, f"{side.base.name}: a lower layer changed"

    @rule(perform=st.integers(0, 15).map(bool))
    def step(self, perform: bool) -> None:
        """Perform one operation on both sides and compare what came of it, or leave it out."""
        self.steps += 1
        if not perform:
            return
        random = Random(f"{self.seed} {self.steps}")
        chosen = type(self).limit(choose(Situation(random, list(self.actors[1].paths()))))
        self.tell(f" {chosen.name}{chosen.arguments} as user {chosen.who}")
        ours, theirs = (getattr(actor, chosen.name)(*chosen.arguments, who=chosen.who) for actor in self.actors)
        self.agree = ours == theirs or reason_for(chosen, ours, theirs) is not None
        assert self.agree, f"{chosen}: ours {ours}, theirs {theirs}"
        if ours != theirs and isinstance(chosen.arguments[0], int):
            for actor in self.actors:
                actor.forget(chosen.arguments[0])
        if self.steps % COMPARE_EVERY == 0:
            self.compare_trees()

    def compare_trees(self) -> None:
        """Compare everything that the two mounts show."""
        assert_same_tree(*map(shown, self.points))

    def _some_time_has_passed(self) -> bool:
        return self.steps > self.mounted_at + 10

    def remount_is_due(self, number: int) -> bool:
        """Tell where a run by chance remounts."""
        return number % REMOUNT_EVERY == 0

    @precondition(_some_time_has_passed)
    @rule()
    def remount(self) -> None:
        """Unmount both, mount both: nothing may depend on what a server remembers."""
        self.tell("remount")
        self._leave()
        self._enter()


def unlimited(chosen: Operation) -> Operation:
    """Ask everything."""
    return chosen


def machine(
    scratch: Path,
    ours: Mount,
    limit: Callable[[Operation], Operation] = unlimited,
    elsewhere: Sequence[Path] = (),
) -> type[Comparison]:
    """Return a state machine that compares a way to mount with the oracle; the layers are below ``scratch``, the lower
    ones on the file systems ``elsewhere`` if there are any.
    """
    parts = {"scratch": scratch, "elsewhere": elsewhere, "ours": staticmethod(ours), "limit": staticmethod(limit)}
    return type("Machine", (Comparison,), parts)


def run_by_chance(kind: type[Comparison], seed: int, steps: Collection[int], told: list[str]) -> None:
    """Perform the numbered ``steps`` of the run that ``seed`` stands for, without hypothesis; ``told`` lists them."""
    run = kind()
    run.tell = told.append
    try:
        run.mount(seed)
        for number in range(1, max(steps) + 1):
            if run.remount_is_due(number):
                run.remount()
            run.step(number in steps)
    finally:
        run.teardown()


def fewest_steps(fails: Callable[[list[int]], bool], steps: list[int]) -> list[int]:
    """Return a part of the failing ``steps`` that needs each of them: delta debugging, from halves to single ones."""
    size = len(steps)
    while size := size // 2 or int(size > 1):
        for start in range(len(steps) - 1, -1, -size):
            fewer = [step for place, step in enumerate(steps) if not start - size < place <= start]
            if fewer and fails(fewer):
                steps = fewer
    return steps


without_redirects: Mount = partial(overlayfs_mount, options="redirect_dir=off,index=on")
