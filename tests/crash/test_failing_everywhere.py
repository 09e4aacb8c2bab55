"""Whichever system call fails: a union shows the old or the new state, goes on, and the next one shows the same.

Each operation is run once for each of its calls, which fails with ENOSPC, or with EIO where calls that only read are
counted too. What was not done then must succeed as soon as the call does, no file may have been left in the workdir or
kept open, and a listing must still say what its directory holds. So in each way to open a stack (``WAYS``).
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

import pytest

from unionfs.union.nodes import DirNode

from . import faults
from .operations import (
    LEAVING,
    OPERATIONS,
    WAYS,
    WRITES,
    difference,
    open_union,
    prepare,
    refuse_as_a_namespace,
    restore,
    tree,
)

if TYPE_CHECKING:
    from pathlib import Path

    from _pytest.mark import ParameterSet

    from unionfs import Union

    from .operations import Operation, Tree, Way

pytestmark = pytest.mark.timeout(300)

_ALL = {**OPERATIONS, **LEAVING, **WRITES}
_CHOSEN = ("chmod one of several links", "give a file to nobody", "make a device")
_REMEMBERED = ("give an ACL", *LEAVING)
_READING = (*_CHOSEN, "unlink one of two that are left", "rename a lower file", "create a file")
_OF_OTHER_WAYS = {("oci", "rename over a directory of whiteouts"), ("nfs_export", "create a file")}


class Case(NamedTuple):
    """An operation on a stack of that way; ``known``: everything has been looked at before, as a kernel may have."""

    way: Way
    layers: Path
    stack: Path
    operation: Operation
    reads: bool
    known: bool

    @property
    def error(self) -> int:
        """What the call that fails says."""
        return errno.EIO if self.reads else errno.ENOSPC


def _is_short(way: str, name: str, *, reads: bool) -> bool:
    """Tell whether a case is not left to the long run."""
    if (way, name) in _OF_OTHER_WAYS:
        return True
    chosen = (*_CHOSEN, *_REMEMBERED) if way == "remembered" else _CHOSEN
    return way == "overlay" and name in _READING if reads else way == "overlay" or name in chosen


def _rows(*, reads: bool) -> list[ParameterSet]:
    rows = [(way, name) for way in WAYS for name in _ALL]
    long = [row for row in rows if not _is_short(*row, reads=reads)]
    return [pytest.param(*row, id="-".join(row), marks=pytest.mark.long if row in long else ()) for row in rows]


@pytest.fixture(scope="module")
def all_layers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The layers of each way, as they are needed."""
    return {way: tmp_path_factory.mktemp(way) for way in WAYS}


def _case(all_layers: dict[str, Path], stack: Path, way: str, name: str, *, reads: bool, known: bool) -> Case:
    layers = all_layers[way]
    if not (layers / "upper").exists():
        prepare(layers, WAYS[way])
    for lower in ("lower0", "lower1"):
        (stack / lower).symlink_to(layers / lower)
    return Case(WAYS[way], layers, stack, _ALL[name], reads, known)


@pytest.mark.parametrize(("way", "name"), _rows(reads=False))
def test_failing_at_every_call(
    all_layers: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, name: str
) -> None:
    if way == "namespace":
        refuse_as_a_namespace(monkeypatch)
    _fail_everywhere(_case(all_layers, tmp_path, way, name, reads=False, known=True))


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize(("way", "name"), _rows(reads=True))
def test_failing_at_every_read(
    all_layers: dict[str, Path], tmp_path: Path, way: str, name: str, *, known: bool
) -> None:
    _fail_everywhere(_case(all_layers, tmp_path, way, name, reads=True, known=known))


def _fail_everywhere(case: Case) -> None:
    restore(case.layers, case.stack)
    with open_union(case.stack, case.way) as union:
        before = tree(union)
    with _restored(case) as union, faults.failing(0, 0, reads=case.reads) as calls:
        case.operation(union)
    with open_union(case.stack, case.way) as union:
        after = tree(union)
    assert after != before
    for number in range(1, len(calls) + 1):
        where = f"call {number}, {calls[number - 1]}, failed"
        _fail_once(case, number, where, before, after)
        with open_union(case.stack, case.way) as union:
            assert tree(union) == after, f"{where}: {difference(tree(union), after, after)}"


def _restored(case: Case) -> Union:
    restore(case.layers, case.stack)
    union = open_union(case.stack, case.way)
    if case.known:
        tree(union)
        _count_on_all(union)
    return union


def _fail_once(case: Case, number: int, where: str, before: Tree, after: Tree) -> None:
    opened = len(os.listdir("/proc/self/fd"))
    with _restored(case) as union:
        failed = _fail(case, union, number)
        left = set(os.listdir(case.stack / "work/work")) - {"#whiteout"}
        assert not failed or not left, where
        assert _kept_open(union) == [], where
        shown = tree(union)
        assert shown in (before, after), f"{where}: {difference(shown, before, after)}"
        assert _listed_wrongly(union) == [], where
        if shown == before:
            case.operation(union)
        assert tree(union) == after, where
        _count_on_none(union)
    assert len(os.listdir("/proc/self/fd")) == opened, where


def _count_on_all(union: Union) -> None:
    """Count on all nodes and list all directories, as a kernel does that has looked at everything."""
    view = union._stack.view
    for node in view.nodes.by_id.values():
        node.lookups += 1
        if isinstance(node, DirNode):
            view.listing(node).finish()


def _count_on_none(union: Union) -> None:
    nodes = union._stack.view.nodes
    for node in list(nodes.by_id.values()):
        nodes.forget(node, node.lookups)


def _fail(case: Case, union: Union, number: int) -> bool:
    """Let call ``number`` of the operation fail; tell whether the operation has."""
    with faults.failing(number, case.error, reads=case.reads):
        try:
            case.operation(union)
        except OSError:
            return True
    return False


def _kept_open(union: Union) -> list[bytes]:
    """Return the names of files that are kept open although they have one."""
    nodes = union._stack.view.nodes.by_id.values()
    return [node.name for node in nodes if node.descriptor >= 0 and node.parent is not None]


def _listed_wrongly(union: Union) -> list[bytes]:
    """Return the directories whose listing, if there is one, does not say what they hold."""
    view = union._stack.view
    nodes = [node for node in view.nodes.by_id.values() if isinstance(node, DirNode)]
    listed = [node for node in nodes if node.listing is not None and (node.parent or node is view.nodes.root)]
    return [node.path() for node in listed if _names_listed(union, node) != {name for name, *_ in view.names(node)}]


def _names_listed(union: Union, node: DirNode) -> set[bytes]:
    listing = union._stack.view.listing(node)
    return {name for _position, name, *_ in listing.entries(listing.position(1))}
