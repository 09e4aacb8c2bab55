"""Whenever the server dies, each file has its old or its new state, and nothing deleted comes back.

Each operation is first run to its end, which tells how many system calls it makes; then once for each of them, dying
just before it. After each death the stack is opened anew and must show the tree as it was before the operation or as it
is after it; and the kernel's overlayfs must see the same in the same directories.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import overlayfs_mount
from tests.support.probes import missing
from tests.support.trees import snapshot

from . import faults
from .operations import LEAVING, LEFT, OPERATIONS, WRITES, difference, open_union, restore, tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .operations import Operation, Tree

    Allowed = Callable[[Tree, Tree, Tree], bool]

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", OPERATIONS)
def test_killed_at_every_call(layers: Path, stack: Path, name: str) -> None:
    _die_everywhere(layers, stack, OPERATIONS[name])


@pytest.mark.parametrize("name", WRITES)
def test_killed_while_writing(layers: Path, stack: Path, name: str) -> None:
    _die_everywhere(layers, stack, WRITES[name])


@pytest.mark.parametrize("name", LEAVING)
def test_killed_while_leaving_a_whiteout(layers: Path, stack: Path, name: str) -> None:
    """Between the two steps the names may be exchanged, but what is moved stands at one of them, and all else stays."""
    names = [os.fsencode(path) for path in LEFT[name]]

    def meanwhile(left: Tree, before: Tree, after: Tree) -> bool:
        apart = [path for path in before.keys() | after.keys() | left.keys() if not path.startswith(tuple(names))]
        same = all(left.get(path) in (before.get(path), after.get(path)) for path in apart)
        return same and after[names[1]] in (left.get(names[0]), left.get(names[1]))

    _die_everywhere(layers, stack, LEAVING[name], meanwhile)


def _old_or_new(left: Tree, before: Tree, after: Tree) -> bool:
    return left in (before, after)


def _die_everywhere(layers: Path, stack: Path, operation: Operation, allowed: Allowed = _old_or_new) -> None:
    restore(layers, stack)
    with open_union(stack) as union:
        before = tree(union)

    def act(begin: Callable[[], None]) -> None:
        with open_union(stack) as union:
            begin()
            operation(union)

    complete, calls = faults.run(act, 0)
    assert complete
    with open_union(stack) as union:
        after = tree(union)
    assert after != before
    opens_too = operation is OPERATIONS["chmod a lower file"]  # opening the stack is the same for all
    first = 1 if opens_too else calls.index(faults.BEGIN) + 2
    for last in range(first, len(calls) + 1):
        restore(layers, stack)
        faults.run(act, last)
        with open_union(stack) as union:
            assert os.listdir(stack / "work/work") == [], "the next one to open the stack sweeps the workdir"
            left = tree(union)
        where = f"died before call {last}, {calls[last - 1]}"
        assert allowed(left, before, after), f"{where}: {difference(left, before, after)}"
        _compare_with_overlayfs(stack, left)


def _compare_with_overlayfs(stack: Path, left: Tree) -> None:
    if missing("overlayfs", "root"):
        return
    lowers = [(stack / name).resolve() for name in ("lower0", "lower1")]
    options = "redirect_dir=on,index=on"
    with overlayfs_mount(stack, lowers, stack / "upper", stack / "work", options) as merged:
        seen = snapshot(merged)
    assert {b"/" + path.strip(b"/") for path in seen if path.strip(b"/.")} == set(left)
