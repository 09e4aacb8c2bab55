"""The state machine: hypothesis draws operations, both sides perform them, outcomes and trees are compared.

What an operation is depends on the seed of the run and on its place in it alone. Hypothesis chooses the seed, and finds
out which steps a failure needs; left to choose the arguments as well, it repeats the simplest ones most of the time.

On the way both are mounted anew, now and then with what one of them has written as one more lower layer of both. At the
end of each run both are unmounted, and the kernel's overlayfs shows the directories that ours has left.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

from hypothesis import note
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.support.mounts import overlayfs_mount, prepare, run
from tests.support.trees import assert_same_tree, digest_of_layer
from unionfs.errors import ConversionImpossible
from unionfs.union.convert import convert

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
PAUSE_EVERY = 50
BUSY_LIMIT_S = 10


@contextmanager
def oracle(base: Path, lowers: Sequence[Path], upper: Path, work: Path, options: str = "") -> Iterator[Path]:
    """The kernel's overlayfs with all that brings it nearer to POSIX.

    With ``index`` it refuses an upper whose last mount is still there: that of another mount namespace, made meanwhile
    by whoever starts a container on this machine, lives on for a moment.
    """
    deadline = time.monotonic() + BUSY_LIMIT_S
    with ExitStack() as stack:
        while True:
            try:
                point = stack.enter_context(overlayfs_mount(base, lowers, upper, work, ORACLE_OPTIONS + options))
                break
            except AssertionError as error:
                if "busy" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield point


def unlimited(chosen: Operation) -> Operation:
    """Ask everything."""
    return chosen


class Way(NamedTuple):
    """How ours is mounted, and the kernel's overlayfs to compare it with.

    ``limit`` turns an operation that ours cannot be asked into one that it can; ``dialects`` are those that it reads
    layers in; ``keeps_numbers`` says whether inode numbers are the same after a remount, ``dates_opened`` whether
    theirs dates what is opened to write.
    """

    ours: Mount
    theirs: Mount = oracle
    limit: Callable[[Operation], Operation] = unlimited
    dialects: tuple[str | None, ...] = (None, "userxattr", "oci")
    keeps_numbers: bool = True
    dates_opened: bool = False


class Side(NamedTuple):
    """The directories of one of the two mounts, and how it is mounted."""

    base: Path
    mount: Mount
    lowers: Sequence[Path]
    upper: Path
    work: Path

    @classmethod
    def over(cls, base: Path, mount: Mount, lowers: Sequence[Path]) -> Side:
        """Make an upper and a workdir over ``lowers``."""
        _, upper, work = prepare(base, 0)
        return cls(base, mount, lowers, upper, work)

    def mounted(self, mount: Mount | None = None) -> AbstractContextManager[Path]:
        """Mount these directories, the usual way or another."""
        return (mount or self.mount)(self.base, self.lowers, self.upper, self.work)


class Comparison(RuleBasedStateMachine):
    """Ours against theirs; subclasses set the way and the file systems that hold the layers."""

    way: Way
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
        self.digests: dict[Path, str] = {}
        self.sides: tuple[Side, ...] = ()
        self.actors: tuple[Actor, ...] = ()

    @initialize(seed=st.integers(0, 1 << 64))
    def mount(self, seed: int) -> None:
        """Build the layers, the lower ones on the file systems ``elsewhere`` in turn, and mount them twice."""
        self.seed = seed
        places = islice(cycle(self.elsewhere or (self.base,)), LAYERS)
        lowers = [Path(tempfile.mkdtemp(dir=place, prefix=self.base.name)) for place in places]
        layers.build(lowers, seed)
        self._stack_up(lowers, lowers)
        self._enter()

    def _stack_up(self, *lowers: Sequence[Path]) -> None:
        """Make both sides, each with its lower layers, which must stay as they are from now on."""
        generation = f"{len(lowers[0])}"
        kinds = ("ours", self.way.ours), ("theirs", self.way.theirs)
        self.sides = tuple(
            Side.over(self.base / name / generation, mount, below)
            for (name, mount), below in zip(kinds, lowers, strict=True)
        )
        for layer in {*lowers[0], *lowers[1]} - self.digests.keys():
            self.digests[layer] = digest_of_layer(layer)

    def _enter(self) -> None:
        self.mounted_at = self.steps
        self.points = [self.mounts.enter_context(side.mounted()) for side in self.sides]
        self.actors = tuple(Actor(point, dates_opened=self.way.dates_opened) for point in self.points)

    def _leave(self) -> None:
        """Compare everything and unmount both; what ours leaves shows the same tree in the kernel's overlayfs, as far
        as that can read the layers below.
        """
        self.compare_trees()
        expected = shown(self.points[1])
        self._unmount()
        if self.sides[0].lowers != self.sides[1].lowers:
            return
        with self.sides[0].mounted(self.way.theirs) as point:
            assert_same_tree(shown(point), expected)

    def _unmount(self) -> None:
        for actor in self.actors:
            actor.leave()
        self.actors = ()
        self.mounts.close()

    def teardown(self) -> None:
        """Compare all that is left, and see that no lower layer has changed."""
        try:
            if self.actors and self.agree:
                self._leave()
                for layer, before in self.digests.items():
                    assert digest_of_layer(layer) == before, f"{layer}: a lower layer changed"
        finally:
            self._unmount()
            for directory in (*self.digests, self.base):
                shutil.rmtree(directory, ignore_errors=directory != self.base)

    @rule(perform=st.integers(0, 15).map(bool))
    def step(self, perform: bool) -> None:
        """Perform one operation on both sides and compare what came of it, or leave it out."""
        self.steps += 1
        if not perform:
            return
        random = Random(f"{self.seed} {self.steps}")
        chosen = self.way.limit(choose(Situation(random, list(self.actors[1].paths()))))
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
        return self.steps > self.mounted_at + 25

    def pause(self) -> None:
        """Do what a run by chance does now and then."""
        (self.retire, self.remount)[self.steps // PAUSE_EVERY % 2]()

    @precondition(_some_time_has_passed)
    @rule()
    def remount(self) -> None:
        """Unmount both, mount both: nothing may depend on what a server remembers."""
        self.tell("remount")
        before = numbers(self.points[0])
        self._unmount()
        self._enter()
        if self.way.keeps_numbers:
            after = numbers(self.points[0])
            changed = {path: (before.get(path), after.get(path)) for path in dict(before.items() ^ after.items())}
            assert not changed, f"st_ino and st_nlink before and after a remount: {changed}"

    @precondition(_some_time_has_passed)
    @rule()
    def retire(self) -> None:
        """Put what one of the two has written below new writable layers of both, in a dialect of its own for ours."""
        self._leave()
        random = Random(f"{self.seed} {self.steps} retire")
        side, dialect = random.choice(self.sides), random.choice(self.way.dialects)
        self.tell(f"retire {side.base.parent.name} as {dialect}")
        shutil.rmtree(side.work)  # its index has links to files of the layer
        copy = side.upper if dialect is None else in_dialect(side.upper, dialect)
        self._stack_up([copy, *self.sides[0].lowers], [side.upper, *self.sides[1].lowers])
        self._enter()


def numbers(root: Path) -> dict[bytes, tuple[int, int]]:
    """Return the inode number of everything that is there, and the number of links of what is no directory."""
    found = {}
    for directory, directories, names in os.walk(os.fsencode(root)):
        for name in directories + names:
            state = os.lstat(os.path.join(directory, name))
            own = 0 if stat.S_ISDIR(state.st_mode) else state.st_nlink
            found[os.path.join(directory, name)] = state.st_ino, own
    return found


def in_dialect(layer: Path, dialect: str) -> Path:
    """Return a copy of a layer in another dialect, or the layer itself where that would take what the others hold."""
    copy = layer.with_name("converted")
    run("cp", "-a", layer, copy)
    try:
        convert(os.fsencode(copy), dialect)
    except ConversionImpossible:
        shutil.rmtree(copy)
        return layer
    return copy


def machine(scratch: Path, way: Way, elsewhere: Sequence[Path] = ()) -> type[Comparison]:
    """Return a state machine that compares in this way; the layers are below ``scratch``, the lower ones on the file
    systems ``elsewhere`` if there are any.
    """
    return type("Machine", (Comparison,), {"scratch": scratch, "elsewhere": elsewhere, "way": way})


def run_by_chance(kind: type[Comparison], seed: int, steps: Collection[int], told: list[str]) -> None:
    """Perform the numbered ``steps`` of the run that ``seed`` stands for, without hypothesis; ``told`` lists them."""
    run = kind()
    run.tell = told.append
    try:
        run.mount(seed)
        for number in range(1, max(steps) + 1):
            if number % PAUSE_EVERY == 0:
                run.pause()
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
