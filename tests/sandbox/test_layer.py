"""The temporary writable layer of ``unionmount run``: who makes it, and that nothing of it stays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from unionfs.cli import run

if TYPE_CHECKING:
    from pathlib import Path

    from unionfs.sandbox.plan import Prepare


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary layers are made."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def test_the_caller_makes_nothing_that_it_could_leave(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may end it before there is anybody else."""
    monkeypatch.setattr(run, "run_in_stack", lambda *_, **__: len(os.listdir(temporary)))
    assert run.run_run(["--lower", "/", "true"]) == 0


def test_what_a_killed_supervisor_has_left_is_removed(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when it was removing, which moves directories about."""

    def prepare_and_die(prepare: Prepare, *_: object, **__: object) -> int:
        monkeypatch.setattr(run, "_serve", lambda *_: lambda: None)
        prepare(b"/nowhere")
        (base,) = temporary.iterdir()
        assert sorted(os.listdir(base)) == ["upper", "work"]
        (base / "1-moved-up" / "deep").mkdir(parents=True)
        return 137

    monkeypatch.setattr(run, "run_in_stack", prepare_and_die)
    assert run.run_run(["--lower", "/", "true"]) == 137
    assert os.listdir(temporary) == []


def test_a_stack_that_cannot_be_mounted_leaves_none(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Already in the process that outlives the caller."""

    def refuse(*_: object) -> None:
        assert len(os.listdir(temporary)) == 1
        raise OSError

    def prepare_in_vain(prepare: Prepare, *_: object, **__: object) -> int:
        monkeypatch.setattr(run, "_serve", refuse)
        with pytest.raises(OSError):  # noqa: PT011
            prepare(b"/nowhere")
        return len(os.listdir(temporary))

    monkeypatch.setattr(run, "run_in_stack", prepare_in_vain)
    assert run.run_run(["--lower", "/", "true"]) == 0
