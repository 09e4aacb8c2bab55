"""How a run ends: its status, the signals passed on, and that nothing outlives it, however it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.sandbox.running import PATIENCE_S, Sandbox


@pytest.mark.parametrize("status", [0, 1, 7, 255])
def test_exit_status(sandbox: Sandbox, status: int) -> None:
    done = sandbox.run(["sh", "-c", f"exit {status}"])
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV, signal.SIGINT])
def test_death_by_a_signal(sandbox: Sandbox, number: int) -> None:
    assert sandbox.run(["sh", "-c", f"kill -{number} $$"]).returncode == 128 + number


@pytest.mark.parametrize(
    ("name", "status", "reason"),
    [
        ("no-such-command", 127, "no-such-command: command not found in the stack"),
        ("/no/such/command", 127, "/no/such/command: command not found in the stack"),
        ("", 127, "'': command not found in the stack"),
        ("/etc/passwd", 126, "/etc/passwd: cannot be executed (Permission denied)"),
        ("/etc", 126, "/etc: cannot be executed (Permission denied)"),
    ],
)
def test_a_command_that_cannot_be_run(sandbox: Sandbox, name: str, status: int, reason: str) -> None:
    done = sandbox.run([name, "argument"])
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(f"unionmount: {reason}")
    assert done.stderr.count("\n") == 1


def test_a_script_without_its_interpreter(root_sandbox: Sandbox, usr_root: Path) -> None:
    script = usr_root / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    done = root_sandbox.run(["/script"], f"usr:{usr_root}")
    assert (done.returncode, "interpreter is missing" in done.stderr) == (126, True)


CLOSED = "/proc/1/cwd"  # root's alone, in every namespace of an ordinary user's


def test_a_closed_directory_in_path_hides_no_command(sandbox: Sandbox) -> None:
    done = sandbox.run(["env"], None, f"env=PATH:{CLOSED}:/usr/bin")
    assert (done.returncode, f"PATH={CLOSED}:/usr/bin" in done.stdout.splitlines()) == (0, True)
    assert sandbox.run(["no-such-command"], None, f"env=PATH:{CLOSED}:/usr/bin").returncode == 127


def started(sandbox: Sandbox, script: str, *options: str) -> subprocess.Popen[str]:
    """Start a shell script that says when it is ready."""
    process = sandbox.start(["sh", "-c", script], None, *options, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


WAITING = "echo ready; while :; do sleep 0.05; done"


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=PATIENCE_S)
    return process.returncode


@pytest.mark.parametrize("name", ["HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "ALRM"])
def test_a_signal_is_passed_on(sandbox: Sandbox, name: str) -> None:
    process = started(sandbox, f"trap 'exit 42' {name}; {WAITING}")
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert ended(process) == 42


def test_a_signal_that_is_not_caught_ends_the_command(sandbox: Sandbox) -> None:
    process = started(sandbox, WAITING)
    process.terminate()
    assert ended(process) == 128 + signal.SIGTERM


def test_the_command_has_the_callers_signal_mask_and_dispositions(sandbox: Sandbox) -> None:
    lines = dict(line.split(":\t") for line in sandbox.output(["cat", "/proc/self/status"]).splitlines())
    assert int(lines["SigBlk"], 16) == 0
    assert int(lines["SigIgn"], 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGCHLD - 1) == 0


def test_what_the_command_leaves_running_ends_with_it(sandbox: Sandbox) -> None:
    assert sandbox.output(["sh", "-c", "(setsid sleep 1000 >&- 2>&- &); sleep 1000 >&- 2>&- & exit 0"]) == ""
    assert sandbox.processes() == []


def test_orphans_are_reaped_while_the_command_runs(sandbox: Sandbox) -> None:
    script = "for i in 1 2 3; do (sh -c 'exit 0' &); done; sleep 0.3; cat /proc/[0-9]*/stat | cut -d' ' -f3"
    assert "Z" not in sandbox.output(["sh", "-c", script])


def processes_of(sandbox: Sandbox, process: subprocess.Popen[str]) -> tuple[int, int]:
    """The process ids of the supervisor and of init."""
    (supervisor,) = children(process.pid)
    return supervisor, children(supervisor)[-1]  # in a user namespace there is a deputy before it


def children(process_id: int) -> list[int]:
    return list(map(int, Path(f"/proc/{process_id}/task/{process_id}/children").read_text().split()))


@pytest.mark.parametrize("victim", ["caller", "group", "supervisor", "init"])
@pytest.mark.parametrize("options", [(), ("thread",)], ids=["", "threads"])
def test_killing_one_of_the_processes_ends_all(sandbox: Sandbox, victim: str, options: tuple[str, ...]) -> None:
    process = started(sandbox, f"(setsid sleep 1000 &); {WAITING}", *options)
    supervisor, init = processes_of(sandbox, process)
    if victim == "group":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        os.kill({"caller": process.pid, "supervisor": supervisor, "init": init}[victim], signal.SIGKILL)
    assert ended(process) == (-signal.SIGKILL if victim in ("caller", "group") else 128 + signal.SIGKILL)
    sandbox.wait_until_nothing_is_left()


@pytest.mark.parametrize("delay_s", [0.0, 0.02, 0.03, 0.04, 0.06, 0.1])
def test_killing_the_caller_early_ends_all(sandbox: Sandbox, delay_s: float) -> None:
    process = sandbox.start(["sleep", "1000"])
    time.sleep(delay_s)
    process.kill()
    ended(process)
    sandbox.wait_until_nothing_is_left()


def test_a_program_with_threads(sandbox: Sandbox) -> None:
    assert sandbox.run(["sh", "-c", "exit 5"], None, "thread").returncode == 5


def test_ignored_child_signals_do_not_matter(sandbox: Sandbox) -> None:
    done = sandbox.run(["sh", "-c", "exit 6"], preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN))
    assert (done.returncode, done.stderr) == (6, "")
