"""The callback that mounts the root, and what it may do wrong; chroot mode."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.sandbox.running import PATIENCE_S, Sandbox


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("fail:os", "unionmount: /some/layer: not here\n"),
        ("fail:union", "unionmount: /dev/nothing: there is no FUSE device; load the module with 'modprobe fuse'"),
    ],
)
def test_what_prepare_raises_comes_to_the_caller(sandbox: Sandbox, kind: str, message: str) -> None:
    done = sandbox.run(["true"], kind)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1


def test_a_bug_in_prepare_keeps_its_traceback(sandbox: Sandbox) -> None:
    done = sandbox.run(["true"], "fail:bug")
    assert done.returncode == 1
    assert "RuntimeError" in done.stderr
    assert "ValueError: a bug" in done.stderr


@pytest.mark.parametrize("command", [["true"], ["no-such-command"], ["sh", "-c", "kill -9 $$"]])
def test_finish_is_called_when_the_root_is_unmounted(sandbox: Sandbox, command: list[str]) -> None:
    report = sandbox.runtime / "finished"
    sandbox.run(command, None, f"finished={report}")
    assert report.read_text() == "unmounted"
    report.unlink()


def test_finish_is_called_when_the_caller_is_killed(sandbox: Sandbox) -> None:
    report = sandbox.runtime / "finished"
    process = sandbox.start(["sh", "-c", "echo ready; sleep 1000"], None, f"finished={report}")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    while sandbox.processes():
        signal.sigtimedwait(set(), 0.02)
    assert report.read_text() == "unmounted"
    report.unlink()


def test_chroot_has_no_namespaces_and_ends_what_is_left(root_sandbox: Sandbox) -> None:
    script = "readlink /proc/self/ns/mnt; (setsid sleep 1000 >&- 2>&- &); exit 9"
    done = root_sandbox.run(["sh", "-c", script], "self", "chroot")
    assert (done.returncode, done.stdout) == (9, os.readlink("/proc/self/ns/mnt") + "\n")
    assert root_sandbox.processes() == []


def test_chroot_shows_the_root_alone(root_sandbox: Sandbox, usr_root: Path) -> None:
    assert root_sandbox.output(["ls", "/"], f"usr:{usr_root}", "chroot").split() == [
        "bin",
        "lib",
        "lib64",
        "sbin",
        "usr",
    ]


def test_chroot_survives_the_callers_end_no_longer_than_it_must(root_sandbox: Sandbox) -> None:
    script = "(setsid sleep 1000 >&- 2>&- &); echo ready; sleep 1000"
    process = root_sandbox.start(["sh", "-c", script], "self", "chroot")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    root_sandbox.wait_until_nothing_is_left()


def test_chroot_needs_the_right_to_it(user_sandbox: Sandbox) -> None:
    done = user_sandbox.run(["true"], "self", "chroot")
    assert (done.returncode, done.stderr) == (
        1,
        "unionmount: true: could not be run: changing the root needs root; run it without --chroot\n",
    )
