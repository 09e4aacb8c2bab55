"""A server that is an ordinary user's lends itself rights on its own files; if it dies meanwhile, they are taken back.

As in ``test_killed_everywhere``, it dies before each of its system calls. The next one to open the stack must leave
each file in the mode that it had, or that the operation gives it.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.probes import requires
from unionfs import Union

from . import faults
from .operations import restore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .operations import Operation

pytestmark = [requires("root"), pytest.mark.timeout(120)]

NOBODY = 65534
_UNREADABLE, _LOCKED = 0o311, 0o555

OPERATIONS: dict[str, Operation] = {
    "remove a directory of whiteouts": lambda union: union.rmdir("/emptied"),
    "copy a file up": lambda union: union.utime("/locked/file", ns=(1, 2)),
    "copy a directory up": lambda union: union.utime("/locked/sub", ns=(1, 2)),
    "move a directory over one of whiteouts": lambda union: union.rename("/new", "/emptied"),
    "look at a copy": lambda union: union.chmod("/copied", 0o701),
}


@pytest.fixture
def base() -> Iterator[Path]:
    """Layers of somebody without privilege, with directories that he may not write to."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    for directory in ("lower0", "lower1/locked/sub", "lower1/emptied", "upper", "work"):
        (base / directory).mkdir(parents=True)
    for file in ("lower1/locked/file", "lower1/emptied/file", "lower1/copied"):
        (base / file).write_text(file)
    (base / "stack").mkdir()
    for path in (base / "lower1", base / "upper", base / "work", base / "stack", *(base / "lower1").rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    for path in (base / "lower1/locked/sub", base / "lower1/locked"):
        path.chmod(_LOCKED)
    faults.run(_as_nobody(base, base, _prepare), 0)
    yield base
    shutil.rmtree(base)


def _prepare(union: Union) -> None:
    union.unlink("/emptied/file")
    union.chmod("/emptied", _UNREADABLE)
    union.mkdir("/new")
    union.chmod("/copied", 0o100)


def _as_nobody(layers: Path, stack: Path, operation: Operation) -> Callable[[Callable[[], None]], None]:
    """Return what runs an operation in a stack, as a user without privilege."""

    def act(begin: Callable[[], None]) -> None:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        with Union(lower=[layers / "lower1"], upper=stack / "upper", workdir=stack / "work") as union:
            begin()
            operation(union)

    return act


def _modes(upper: Path) -> dict[str, int]:
    return {str(path.relative_to(upper)): stat.S_IMODE(path.lstat().st_mode) for path in upper.rglob("*")}


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_while_rights_are_lent(base: Path, name: str) -> None:
    stack, act = base / "stack", _as_nobody(base, base / "stack", OPERATIONS[name])
    restore(base, stack)
    before = _modes(stack / "upper")
    complete, calls = faults.run(act, 0)
    assert complete
    assert "symlink" in calls[calls.index(faults.BEGIN) :], "a note of what is lent"
    after = _modes(stack / "upper")
    for last in range(calls.index(faults.BEGIN) + 2, len(calls) + 1):
        restore(base, stack)
        faults.run(act, last)
        faults.run(_as_nobody(base, stack, lambda union: None), 0)
        for path, mode in _modes(stack / "upper").items():
            where = f"{path}: {mode:o}, died before call {last}, {calls[last - 1]}"
            assert mode in (before.get(path), after.get(path)), where
        assert os.listdir(stack / "work/work") == [], "the next one to open the stack sweeps the workdir"
