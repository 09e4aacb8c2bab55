"""Whichever system call fails: a union shows the old or the new state, goes on, and the next one shows the same.

Each operation is run once for each of its calls, which fails with ENOSPC. What was not done then must succeed as soon
as there is space again, and no file may have been left in the workdir or kept open.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from unionfs import ondisk
from unionfs.layers.writable import WritableLayer

from . import faults
from .operations import OPERATIONS, WRITES, difference, open_union, restore, tree

if TYPE_CHECKING:
    from pathlib import Path

    from unionfs import Union

    from .operations import Operation

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(params=["overlay", *(pytest.param(name, marks=pytest.mark.long) for name in ("userxattr", "oci"))])
def _dialect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write each dialect in turn; what stands in the writable layer already is overlayfs's."""
    chosen = ondisk.dialect_named(request.param)
    monkeypatch.setattr(WritableLayer, "probe_dialect", lambda _self: chosen)


@pytest.mark.usefixtures("_dialect")
@pytest.mark.parametrize("name", OPERATIONS)
def test_failing_at_every_call(layers: Path, stack: Path, name: str) -> None:
    _fail_everywhere(layers, stack, OPERATIONS[name])


@pytest.mark.parametrize("name", WRITES)
def test_failing_while_writing(layers: Path, stack: Path, name: str) -> None:
    _fail_everywhere(layers, stack, WRITES[name])


def _fail_everywhere(layers: Path, stack: Path, operation: Operation) -> None:
    restore(layers, stack)
    with open_union(stack) as union:
        before = tree(union)
        _remember(union)
        with faults.failing(0, 0) as calls:
            operation(union)
        after = tree(union)
    assert after != before
    for number in range(1, len(calls) + 1):
        restore(layers, stack)
        with open_union(stack) as union:
            tree(union)
            _remember(union)
            failed = _fail(operation, union, number)
            where = f"call {number}, {calls[number - 1]}, failed"
            left = set(os.listdir(stack / "work/work")) - {"#whiteout"}
            assert not failed or not left, where
            assert _kept_open(union) == [], where
            shown = tree(union)
            assert shown in (before, after), f"{where}: {difference(shown, before, after)}"
            if shown == before:
                operation(union)
            assert tree(union) == after, where
        with open_union(stack) as union:
            assert tree(union) == after, f"{where}: {difference(tree(union), after, after)}"


def _remember(union: Union) -> None:
    """Count on all nodes, as a kernel does that has looked at everything."""
    for node in union._stack.view.nodes.by_id.values():
        node.lookups += 1


def _fail(operation: Operation, union: Union, number: int) -> bool:
    """Let call ``number`` of ``operation`` fail; tell whether the operation has."""
    with faults.failing(number, errno.ENOSPC):
        try:
            operation(union)
        except OSError:
            return True
    return False


def _kept_open(union: Union) -> list[bytes]:
    """Return the names of files that are kept open although they have one."""
    nodes = union._stack.view.nodes.by_id.values()
    return [node.name for node in nodes if node.descriptor >= 0 and node.parent is not None]
