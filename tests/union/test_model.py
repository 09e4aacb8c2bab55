"""Random operations on a union and on a plain directory that starts out the same: the same outcomes, the same tree.

The arguments come from a random generator that hypothesis seeds, as in tests/stateful: few names, so that they meet.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.stateful import layers as random_layers
from tests.support import mounts
from tests.support.probes import requires

from . import plain
from .conftest import Layers

if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.ondisk import Dialect

NAMES = ("a", "b", "c\udcff", "d d")
#: None leads above the root, where a plain directory is not a world of its own.
TARGETS = ("a", "b", "a/b", "nowhere", "d d/a")


class Plain:
    """The same verbs on a plain directory: the model."""

    def __init__(self, root: Path) -> None:
        self._root = os.fspath(root)

    def __getattr__(self, name: str) -> Any:
        """Return the function of ``os`` with its paths put below the root."""
        function = getattr(os, name)
        paths = {"rename": 2, "link": 2}.get(name, 1)

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "symlink":
                return os.symlink(arguments[0], self._root + arguments[1])
            if name == "link":
                options["follow_symlinks"] = False
            return function(*(self._root + path for path in arguments[:paths]), *arguments[paths:], **options)

        return call

    def open(self, path: str, mode: str) -> Any:
        """Without O_CREAT for a file that is there: in sticky directories that may be forbidden, proc_sys_fs(5)."""

        def opener(name: str, flags: int) -> int:
            return os.open(name, flags if flags & os.O_EXCL or not os.path.exists(name) else flags & ~os.O_CREAT, 0o666)

        return open(self._root + path, mode, opener=opener)

    def rmtree(self, path: str) -> None:
        """shutil's own opens a FIFO, and waits."""
        if not stat.S_ISDIR(os.lstat(self._root + path).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        shutil.rmtree(self._root + path)


def outcome(api: Any, name: str, *arguments: Any) -> Any:
    """Perform one operation; return its result or its errno."""
    try:
        if name in ("rb", "wb", "ab", "xb", "r+b"):
            return _use_file(api, arguments[0], name, arguments[1])
        result = getattr(api, name)(*arguments)
    except OSError as error:
        unsure = name == "removexattr" and error.errno == errno.EPERM  # of a file that takes none, but has none as well
        return errno.ENODATA if unsure else error.errno
    if isinstance(result, os.stat_result):
        return result.st_mode, result.st_size if stat.S_ISREG(result.st_mode) else 0
    return sorted(result) if isinstance(result, list) else result


def _use_file(api: Any, path: str, mode: str, data: bytes) -> Any:
    if _is_fifo(api, path):
        return None  # it would wait for its other end
    with api.open(path, mode) as file:
        return file.read() if mode == "rb" else (file.write(data), file.tell())


def _is_fifo(api: Any, path: str) -> bool:
    try:
        return stat.S_ISFIFO(api.stat(path).st_mode)
    except OSError:
        return False


def choose(random: Random, standing: list[str]) -> tuple[Any, ...]:
    """Choose an operation and its arguments."""
    old = random.choice(standing) if standing and random.random() < 0.85 else "/" + random.choice(NAMES)
    base = random.choice(["", *standing])
    new = f"{base}/{random.choice(NAMES)}"
    data = random.choice((b"", b"x", b"hello", b"long" * 2000))
    table: list[tuple[Any, ...]] = [
        ("rb", old, b""), ("wb", random.choice((old, new)), data), ("ab", old, data), ("xb", new, data),
        ("r+b", old, data),
        ("mkdir", new, 0o755), ("mkdir", new, 0o755), ("rmdir", old), ("unlink", old), ("unlink", old), ("rmtree", old),
        ("rename", old, new), ("rename", old, new), ("rename", old, new), ("rename", old, old),
        ("rename", old, base + "/a"),
        ("link", old, new), ("symlink", random.choice(TARGETS), new), ("truncate", old, random.choice((0, 3, 5000))),
        ("chmod", old, random.choice((0o600, 0o755, 0o4711, 0o2775))), ("listdir", old), ("stat", old), ("lstat", old),
        ("readlink", old), ("setxattr", old, "user.one", data[:100]), ("getxattr", old, "user.one"),
        ("removexattr", old, "user.one"),
    ]  # fmt: skip
    return random.choice(table)


class Model:
    """A union with random lower layers, and the plain directory that it must behave like."""

    def __init__(self, base: Path, number: int) -> None:
        self.random = Random(number)
        self.base = base
        self.layers = Layers(base)
        self.told: list[str] = [f"seed {number}"]
        self.start_ns = time.time_ns()
        with patch.object(random_layers, "TARGETS", tuple(map(os.fsencode, TARGETS))):
            random_layers.build(self.layers.lowers, number)
        for name in ("plain", "lowest"):
            (base / name).mkdir()
            plain.flatten(self.layers.lowers, base / name)
        self.plain = Plain(base / "plain")
        self.union = self.layers.union()

    def step(self) -> None:
        """Perform one operation on both."""
        chosen = choose(self.random, sorted(plain.of_directory(self.base / "plain")))
        self.told.append(repr(chosen))
        ours, model = outcome(self.union, *chosen), outcome(self.plain, *chosen)
        assert ours == model, self.say(f"union {ours}, plain directory {model}")

    def say(self, problem: str) -> str:
        """Return what was done, and what is wrong."""
        return "\n".join([*self.told, problem])

    def compare(self) -> None:
        """See that the trees are the same, but for the times of what was written since the start."""
        lines = plain.differences(self.timeless(plain.of_union(self.union)), self.timeless(self.wanted()))
        assert lines == [], self.say("\n".join(lines))

    def wanted(self) -> dict[str, plain.Facts]:
        """Return what the union ought to show."""
        return plain.of_directory(self.base / "plain")

    def timeless(self, tree: dict[str, plain.Facts]) -> dict[str, plain.Facts]:
        """Return ``tree`` with one time for all that was written since the start."""
        hour_ns = 3600 * 10**9
        return {
            path: facts._replace(
                mtime_ns=1 if 0 <= facts.mtime_ns - self.start_ns + hour_ns < 2 * hour_ns else facts.mtime_ns
            )
            for path, facts in tree.items()
        }

    def reopen(self) -> None:
        """Nothing may depend on what the union remembers."""
        self.union.close()
        self.union = self.layers.union()

    def judge_changes(self) -> None:
        """See that what the union says of its changes is what differs from the lower layers."""
        before, after = self.timeless(plain.of_directory(self.base / "lowest")), self.timeless(self.wanted())
        changes = {change.path: change.kind for change in self.union.changes()}
        directories = {"/", *(path for path, facts in after.items() if facts.kind == stat.S_IFDIR)}
        deleted = {path for path in before if path not in after and os.path.dirname(path) in directories}
        assert {path for path, kind in changes.items() if kind == "A"} == after.keys() - before.keys(), self.say("A")
        assert {path for path, kind in changes.items() if kind == "D"} == deleted, self.say("D")
        # Changed through another of its names, a file stands in the writable layer under that name alone.
        single = [path for path in before if path in after and len(before[path].names) < 2]
        differing = {path for path in single if before[path]._replace(names=()) != after[path]._replace(names=())}
        assert differing <= {path for path, kind in changes.items() if kind == "C"}, self.say(
            f"C {differing} {changes}"
        )


def run(base: Path, number: int, steps: int) -> None:
    """Do one run, with comparisons on the way, and judge what it leaves."""
    model = Model(base, number)
    try:
        for done in range(steps):
            if done % 10 == 0:
                model.compare()
            if done % 25 == 24:
                model.reopen()
            model.step()
        model.compare()
        model.judge_changes()
        model.reopen()
        model.compare()
        model.judge_changes()
    finally:
        model.union.close()
    model.layers.examine()


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs: it has room for large attributes, and no disk to wait for."""
    mounts.run("mount", "-t", "tmpfs", "-o", "mode=0755", "layers", tmp_path)
    yield tmp_path
    mounts.run("umount", tmp_path)


@requires("root")
@settings(
    max_examples=12, phases=[Phase.generate], deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
@given(number=st.integers(0, 1 << 32))
def test_union_behaves_as_a_plain_directory(scratch: Path, dialect: Dialect, number: int) -> None:
    """Whatever is done to it, in each dialect; the seed alone decides what that is."""
    with tempfile.TemporaryDirectory(dir=scratch) as base:
        run(Path(base), number, 60)
