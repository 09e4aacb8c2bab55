"""The habits of the house that a machine can check: sizes, docstrings, words, and that nothing is promised in vain."""

from __future__ import annotations

import ast
import configparser
import importlib
import inspect
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "unionfs").rglob("*.py"))
FILE_LINES = 500
FUNCTION_LINES = 60

#: Words of the workshop, which have no place in the product: notes to oneself, and paths of one machine.
FORBIDDEN_WORDS = re.compile(rb"\b(TODO|FIXME|XXX|HACK)\b|/work/main|/root/")
TEXT = (".py", ".md", ".toml", ".cfg", ".sh", "Makefile", "run")


def _ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=_ids)
def test_a_module_is_short_and_says_what_it_is_for(path: Path) -> None:
    """A file of 500 lines is a sign that two jobs share it."""
    source = path.read_text()
    assert len(source.splitlines()) <= FILE_LINES
    assert ast.get_docstring(ast.parse(source)), "a module opens with what it is for"


@pytest.mark.parametrize("path", MODULES, ids=_ids)
def test_functions_are_short_and_names_are_documented(path: Path) -> None:
    """Public functions and classes of every module have docstrings, and no function is a page long."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES, f"{node.name} is long"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


def _tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, timeout=30)
    if done.returncode:  # a release that was unpacked, not cloned
        return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]
    return [path for name in done.stdout.decode().split("\0") if name and (path := ROOT / name).is_file()]


def test_no_word_of_the_workshop_is_left() -> None:
    """No notes to oneself, no path of one machine."""
    texts = [path for path in _tracked() if path.name.endswith(TEXT) and path != Path(__file__)]
    found = [
        f"{_ids(path)}: {hit[0].decode()}" for path in texts for hit in FORBIDDEN_WORDS.finditer(path.read_bytes())
    ]
    assert found == []


def test_public_names_are_documented() -> None:
    """All that ``unionfs.__all__`` promises is there, with a docstring, and so are its public methods."""
    package = importlib.import_module("unionfs")
    for name in package.__all__:
        value = getattr(package, name)
        if not (inspect.isclass(value) or callable(value)):
            continue
        assert value.__doc__, f"unionfs.{name} has no docstring"
        if inspect.isclass(value):
            _methods_are_documented(value)


def _methods_are_documented(kind: type) -> None:
    for name, value in vars(kind).items():
        if not name.startswith("_") and (callable(value) or isinstance(value, property)):
            assert value.__doc__, f"{kind.__qualname__}.{name} has no docstring"


def test_every_name_is_public_in_one_way() -> None:
    """``dir(unionfs)`` shows what ``__all__`` does, and an unknown name is an AttributeError."""
    package = importlib.import_module("unionfs")
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name


def test_make_help_names_every_target() -> None:
    """A target that help does not list is not known to a newcomer."""
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    described = re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)
    assert sorted(described) == sorted(phony[1].split())


def test_readme_tells_what_ci_does() -> None:
    """``.ci/run`` runs the commands of the README and no others."""
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^\s*(make [a-z-]+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert commands
    assert [command for command in commands if command not in readme] == []


def test_setup_cfg_holds_only_what_has_no_other_place() -> None:
    """Metadata and tools live in pyproject.toml."""
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    assert parser.sections() == ["build", "editable_wheel"]
