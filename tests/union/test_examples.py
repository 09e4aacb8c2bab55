"""The examples run as they stand, say what they promise, and leave nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.probes import requires

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LIMIT_S = 100


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run one as the README tells to, with the package of this repository."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=ROOT, env=env
    )


def said(*words: str) -> str:
    done = run(*words)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_every_example_is_run() -> None:
    """By a test below."""
    here = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if path.name not in here] == []


def test_experiment_layers(tmp_path: Path) -> None:
    """Three runs, each with its own changes; the data as it was."""
    lines = said("examples/experiment_layers.py", str(tmp_path)).splitlines()
    assert [line.split(";")[0] for line in lines[:3]] == [
        "run-1: total 66",
        "run-2: total 132",
        "run-2-then-3: total 396",
    ]
    assert lines[3] == "the raw data: ['north.json', 'scratch.json', 'south.json'] [0, 1, 2]"
    assert sorted(path.name for path in (tmp_path / "run-1").iterdir() if path.is_file()) == [
        "north.json",
        "south.json",
    ]


def test_walk_layers(tmp_path: Path) -> None:
    """On its own layers, on given ones, on none."""
    text = said("examples/walk_layers.py")
    assert "patch  (hides that of application)" in text
    assert "motd" not in text
    (tmp_path / "layer").mkdir()
    (tmp_path / "layer" / "name").write_text("12345")
    assert said("examples/walk_layers.py", str(tmp_path / "layer")).split() == ["5", "/name", "layer"]
    done = run("examples/walk_layers.py", str(tmp_path / "none"))
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)


@requires("fuse")
def test_cow_fixture(tmp_path: Path) -> None:
    """Three tests pass, none is skipped."""
    words = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner"))
    assert "3 passed" in said(*words, "examples/cow_fixture.py")


@requires("fuse", "root")
def test_disposable_machine() -> None:
    """Its changes, and the machine as it was."""
    before = os.stat("/etc").st_mtime_ns
    text = said("examples/disposable_machine.py")
    assert "disposable\n" in text
    assert "  C /etc/hostname\n" in text or "  A /etc/hostname\n" in text
    assert "  A /usr/local/new\n" in text
    assert os.stat("/etc").st_mtime_ns == before
    assert run("examples/disposable_machine.py", "sh", "-c", "exit 7").returncode == 7


@requires("fuse", "root")
def test_demo() -> None:
    """What ``make demo`` prints: five steps, and nothing of the machine touched."""
    text = said("examples/demo.py")
    assert [line[:2] for line in text.splitlines() if line[1:2] == "."] == ["1.", "2.", "3.", "4.", "5."]
    assert "A /usr/local/bin/hello" in text
    assert "C /etc/hosts" in text
    assert "not a byte and not a time of change differs" in text
    assert "/usr/local/bin/hello: not there" in text


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_an_example_says_how_it_is_run(name: str) -> None:
    """At its head."""
    head = (EXAMPLES / name).read_text().split('"""')[1]
    assert name in head or f"make {name.removesuffix('.py')}" in head
