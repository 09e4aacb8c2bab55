"""The floors of docs/architecture.md, held: which module may import which, read from the source without running it.

An import for types alone (under ``if TYPE_CHECKING:``) is bound to the floors as well, but makes no cycle.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
PACKAGE = "unionfs"

#: From the bottom up; packages on one floor may not use each other unless PERMITTED says so.
FLOORS = (
    ("lean",),
    ("syscalls",),
    ("ondisk", "policy", "idmap", "errors"),
    ("layers",),
    ("union",),
    ("fuse",),
    ("images", "sandbox"),
    ("containers",),
    ("api", "cli"),
)
GROUND = FLOORS[2]
HEIGHTS = {name: height for height, floor in enumerate(FLOORS) for name in floor}

#: Pairs that may not be, though one stands above the other: (importer, imported), as prefixes of module names.
FORBIDDEN = (
    ("union", "fuse"),
    ("fuse.wire", "union"),
    ("fuse.wire", "layers"),
    ("fuse.wire", "syscalls"),
    ("images", "union"),
    ("images", "fuse"),
    ("sandbox", "union"),
)

#: The ground is values: it asks the system nothing. (``os`` and ``stat`` stay for constants, fsdecode and errno.)
SYSTEM_MODULES = {"ctypes", "fcntl", "mmap", "selectors", "select", "signal", "socket", "subprocess", "threading"}

#: What is costly to import and has no place where the server loads it (docs/architecture.md): modules of cli are free.
COSTLY_MODULES = {"argparse", "asyncio", "dataclasses", "inspect", "logging", "tempfile", "typing_extensions"}
SERVER = ("lean", "syscalls", *GROUND, "layers", "union", "fuse")

CORE_PACKAGES = {"xxhash", "fuse", "mfusepy"}
"""What modules of the server may import beside the standard library: the first to hash, the others for one adapter."""


class Import(NamedTuple):
    """One import: by whom, of what, where, and how: for types alone, or only once a function runs."""

    importer: str
    imported: str
    line: int
    types_only: bool
    in_function: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


class _Collector(ast.NodeVisitor):
    """Collects the imports of one module, relative ones resolved."""

    def __init__(self, module: str, is_package: bool) -> None:
        self.found: list[Import] = []
        self._module = module
        self._package = module if is_package else module.rpartition(".")[0]
        self._types_only = False
        self._in_function = False

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self._package.split(".")[: len(self._package.split(".")) - node.level + 1]
            base = ".".join([*above, base] if base else above)
        for alias in node.names:
            self._add(f"{base}.{alias.name}" if base.split(".")[0] == PACKAGE else base, node.lineno)

    def visit_If(self, node: ast.If) -> None:
        guard = node.test.id if isinstance(node.test, ast.Name) else getattr(node.test, "attr", "")
        before = self._types_only
        self._types_only = before or guard == "TYPE_CHECKING"
        for child in node.body:
            self.visit(child)
        self._types_only = before
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        before, self._in_function = self._in_function, True
        self.generic_visit(node)
        self._in_function = before

    visit_AsyncFunctionDef = visit_FunctionDef

    def _add(self, name: str, line: int) -> None:
        self.found.append(Import(self._module, name, line, self._types_only, self._in_function))


def collect(sources: dict[str, tuple[str, bool]]) -> list[Import]:
    """Return the imports of modules given as name: (source, is a package); a name in a module counts as the module."""
    found = []
    for module, (source, is_package) in sources.items():
        collector = _Collector(module, is_package)
        collector.visit(ast.parse(source))
        found += [entry._replace(imported=_module_of(entry.imported, sources)) for entry in collector.found]
    return found


def _module_of(name: str, modules: dict[str, tuple[str, bool]]) -> str:
    if name.split(".")[0] != PACKAGE or name in modules:
        return name
    return name.rpartition(".")[0]


def sources_of_package() -> dict[str, tuple[str, bool]]:
    """Read every module of the package."""
    result = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        result[".".join(parts[:-1] if is_package else parts)] = (path.read_text(), is_package)
    return result


def _local(name: str) -> str:
    return name.partition(".")[2]


def _within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def _top(name: str) -> str:
    return _local(name).split(".")[0]


def breaches(imports: list[Import]) -> Iterator[str]:
    """Yield each import that goes up, sideways, or along a forbidden way, and each module that no floor knows."""
    for entry in imports:
        if entry.imported.split(".")[0] != PACKAGE or entry.importer == PACKAGE:
            continue
        importer, imported = _top(entry.importer), _top(entry.imported)
        unknown = {importer, imported} - {*HEIGHTS, "", "__main__"}
        if unknown:
            yield f"{entry}: {unknown} stands on no floor"
        elif imported == "cli" and importer not in ("cli", "__main__"):
            yield f"{entry}: nothing may import cli"
        elif imported and importer in HEIGHTS and importer != imported and not _is_below(importer, imported):
            yield f"{entry}: that is above or beside it"
        elif any(_within(_local(entry.importer), a) and _within(_local(entry.imported), b) for a, b in FORBIDDEN):
            yield f"{entry}: forbidden"


def _is_below(importer: str, imported: str) -> bool:
    both_ground = importer in GROUND and imported in GROUND  # values may be built of values
    return HEIGHTS[imported] < HEIGHTS[importer] or both_ground


def cycles(imports: list[Import]) -> list[list[str]]:
    """Return the cycles among modules: what is for types alone makes none, what waits in a function does."""
    graph: dict[str, set[str]] = {}
    for entry in imports:
        if not entry.types_only and entry.imported.split(".")[0] == PACKAGE and entry.imported != entry.importer:
            graph.setdefault(entry.importer, set()).add(entry.imported)
    reachable = {module: _reachable(graph, module) for module in graph}
    knots = {
        frozenset(other for other in reach if module in reachable.get(other, ())) for module, reach in reachable.items()
    }
    return sorted(sorted(knot) for knot in knots if knot)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = [start]
    while waiting:
        new = graph.get(waiting.pop(), set()) - seen
        seen |= new
        waiting += new
    return seen


IMPORTS = collect(sources_of_package())


def test_modules_import_only_what_is_below() -> None:
    """No module reaches up, sideways, or along a way that is forbidden."""
    assert list(breaches(IMPORTS)) == []


def test_modules_make_no_cycle() -> None:
    """Each module can be understood, and loaded, after those that it uses."""
    assert cycles(IMPORTS) == []


def test_the_ground_asks_the_system_nothing() -> None:
    """ondisk, policy, idmap and errors are values; they reach neither the system nor ``syscalls``."""
    asked = {*SYSTEM_MODULES, f"{PACKAGE}.syscalls"}
    found = [str(entry) for entry in IMPORTS if _top(entry.importer) in GROUND and _is_any(entry.imported, asked)]
    assert found == []


def _is_any(name: str, prefixes: set[str]) -> bool:
    return any(_within(name, prefix) for prefix in prefixes)


def test_only_syscalls_uses_ctypes() -> None:
    """Every ctypes call is one typed function of one package."""
    found = [
        str(entry) for entry in IMPORTS if _within(entry.imported, "ctypes") and _top(entry.importer) != "syscalls"
    ]
    assert found == []


def test_the_package_itself_is_lazy() -> None:
    """``import unionfs`` loads nothing of it: its public names are imported when they are first asked for."""
    eager = [
        str(entry)
        for entry in IMPORTS
        if entry.importer == PACKAGE
        and _within(entry.imported, PACKAGE)
        and not (entry.types_only or entry.in_function)
    ]
    assert eager == []


def test_the_server_loads_nothing_costly() -> None:
    """Neither a costly module of the standard library nor a package that is not its own, at import time."""
    found = [
        str(entry)
        for entry in IMPORTS
        if _top(entry.importer) in SERVER and not entry.types_only and not entry.in_function
        if _is_any(entry.imported, COSTLY_MODULES) or _is_foreign(entry.imported)
    ]
    assert found == []


def _is_foreign(name: str) -> bool:
    return name.split(".")[0] not in {PACKAGE, *CORE_PACKAGES, *sys.stdlib_module_names}


BAD = {
    "upwards": ("unionfs.layers.layer", "from unionfs.union import view"),
    "sideways": ("unionfs.images.store", "import unionfs.sandbox.root"),
    "to cli": ("unionfs.fuse.server", "def f():\n    from unionfs import cli"),
    "types alone": ("unionfs.union.union", "if TYPE_CHECKING:\n    from unionfs.fuse.wire import abi"),
    "relative": ("unionfs.union.union", "from ..fuse.wire import abi"),
    "wire to union": ("unionfs.fuse.wire.abi", "from unionfs.union.nodes import Node"),
    "images to fuse": ("unionfs.images.store", "from unionfs.fuse import mounting"),
    "sandbox to union": ("unionfs.sandbox.root", "from unionfs.union.union import Union"),
    "no floor": ("unionfs.extra", "import unionfs.errors"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_breach_is_found(case: str) -> None:
    """The test of the test: each kind of wrong import is seen."""
    module, source = BAD[case]
    known = dict.fromkeys(("unionfs.cli", "unionfs.union.view", "unionfs.fuse.wire.abi"), ("", False))
    assert list(breaches(collect({**known, module: (source, False)})))


GOOD = {
    "dispatch": ("unionfs.fuse.dispatch", "from unionfs.fuse.wire import abi\nfrom unionfs.union.union import Union"),
    "ground": ("unionfs.policy", "from unionfs.ondisk import OVERLAY"),
    "entry": ("unionfs.__main__", "from unionfs.cli.main import main"),
}


@pytest.mark.parametrize("case", GOOD)
def test_a_permitted_import_passes(case: str) -> None:
    """What the plan allows is not reported."""
    module, source = GOOD[case]
    assert list(breaches(collect({module: (source, False)}))) == []


def test_a_cycle_is_found_unless_it_is_for_types_alone() -> None:
    """Two modules that import each other, one of them in a function."""
    here = {"unionfs.union.a": ("from unionfs.union.b import x", False)}
    there = "def f():\n    from unionfs.union import a"
    assert cycles(collect({**here, "unionfs.union.b": (there, False)})) == [["unionfs.union.a", "unionfs.union.b"]]
    types = "if TYPE_CHECKING:\n    from unionfs.union import a"
    assert cycles(collect({**here, "unionfs.union.b": (types, False)})) == []
