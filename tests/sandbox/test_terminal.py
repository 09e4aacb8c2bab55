"""Runs on a terminal: a pseudo terminal here plays the caller's, and shells on it check that job control works."""

from __future__ import annotations

import os
import pty
import select
import shlex
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.running import PATIENCE_S, Sandbox


class Session:
    """A program on a pseudo terminal of its own, and what it has written so far."""

    def __init__(self, sandbox: Sandbox, command: list[str]) -> None:
        self.written = ""
        self.process_id, self.terminal = pty.fork()
        if self.process_id == 0:
            become(sandbox, command)

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def expect(self, text: str) -> str:
        """Read until ``text`` has been written; return what came before it."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self.written:
            assert time.monotonic() < deadline, f"{text!r} is not in {self.written!r}"
            assert self._read(), f"ended with {self.written!r}"
        before, _, self.written = self.written.partition(text)
        return before

    def _read(self) -> bool:
        ready, _, _ = select.select([self.terminal], [], [], 0.1)
        if ready:
            try:
                self.written += os.read(self.terminal, 4096).decode(errors="replace")
            except OSError:  # EIO: nobody has it open any more
                return False
        return True

    def status(self) -> int:
        """Wait for the end of the program; return the shell's status for it."""
        while self._read():
            pass
        _, status = os.waitpid(self.process_id, 0)
        self.process_id = 0
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        if self.process_id:
            os.kill(self.process_id, signal.SIGKILL)
            os.waitpid(self.process_id, 0)
        os.close(self.terminal)


def become(sandbox: Sandbox, command: list[str]) -> None:
    try:
        if os.geteuid() != sandbox.user:
            os.fchown(0, sandbox.user, -1)
            os.setgroups([])
            os.setgid(sandbox.user)
            os.setuid(sandbox.user)
        name, _, value = sandbox.mark.partition("=")
        environment = {**os.environ, name: value, "XDG_RUNTIME_DIR": str(sandbox.runtime), "PS1": "$ ", "TERM": "dumb"}
        os.execvpe(command[0], command, environment)
    finally:
        os._exit(99)


class Sessions:
    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.open: list[Session] = []

    def run(self, *command: str, options: tuple[str, ...] = ()) -> Session:
        """Run a command in the sandbox, straight on the terminal."""
        return self._start(self.sandbox.command(command, None, *options))

    def script(self, *command: str, then: str, options: tuple[str, ...] = ()) -> Session:
        """Run a shell script outside of the sandbox that runs a command in it, and does something then."""
        return self._start(["bash", "-c", f"{shlex.join(self.sandbox.command(command, None, *options))}; {then}"])

    def shell(self) -> Session:
        """Start an interactive shell outside of the sandbox, with RUN standing for the start of a run."""
        session = self._start(["bash", "--norc", "--noprofile", "-i"])
        session.expect("$ ")
        session.type(f"run() {{ {shlex.join(self.sandbox.command([]))} \"$@\"; }}; echo set''up\n")
        session.expect("setup")
        return session

    def wait_until_stopped(self, program: str) -> None:
        """Wait until each process of that name is stopped that was started here."""
        deadline = time.monotonic() + PATIENCE_S
        while (states := self._states(program)) != {"T"}:
            assert time.monotonic() < deadline, f"{program}: {states}"
            time.sleep(0.01)

    def _states(self, program: str) -> set[str]:
        stats = [Path(f"/proc/{number}/stat").read_text() for number in self.sandbox.processes()]
        return {rest[:1] for name, _, rest in (stat.partition(") ") for stat in stats) if name.endswith(f"({program}")}

    def _start(self, command: list[str]) -> Session:
        self.open.append(Session(self.sandbox, command))
        return self.open[-1]


@pytest.fixture
def sessions(sandbox: Sandbox) -> Iterator[Sessions]:
    if shutil.which("bash") is None:
        pytest.skip("bash is not installed: apt-get install bash")
    sessions = Sessions(sandbox)
    yield sessions
    for session in sessions.open:
        session.close()


def test_the_terminal_has_a_name_inside(sessions: Sessions) -> None:
    session = sessions.run("sh", "-c", "tty; test -t 0 && test -t 1 && : < /dev/tty && echo all; exit 3")
    session.expect("/dev/console")
    session.expect("all")
    assert session.status() == 3


@pytest.mark.parametrize(("key", "number"), [("\x03", signal.SIGINT), ("\x1c", signal.SIGQUIT)])
def test_keys_send_their_signal_once(sessions: Sessions, key: str, number: signal.Signals) -> None:
    script = f"trap 'echo caught; n=$((n + 1))' {number.value}; echo rea''dy; sleep 1; sleep 1; echo times=$n"
    session = sessions.run("sh", "-c", script)
    session.expect("ready")
    session.type(key)
    session.expect("times=1")
    assert session.status() == 0


def test_the_interrupt_key_ends_the_command(sessions: Sessions) -> None:
    session = sessions.run("sh", "-c", "echo rea''dy; exec sleep 1000")
    session.expect("ready")
    session.type("\x03")
    assert session.status() == 128 + signal.SIGINT


def test_the_interrupt_key_counts_before_there_is_a_command(sessions: Sessions) -> None:
    session = sessions.run("sleep", "1000", options=("slow",))
    session.expect("populating")
    session.type("\x03")
    assert session.status() == 128 + signal.SIGINT


def test_the_interrupt_key_ends_the_callers_script(sessions: Sessions) -> None:
    session = sessions.script("sh", "-c", "echo rea''dy; exec sleep 1000", then="echo went on")
    session.expect("ready")
    session.type("\x03")
    assert session.status() == 128 + signal.SIGINT
    assert "went on" not in session.written


def test_a_command_that_ends_by_itself_after_the_interrupt_key_does_not(sessions: Sessions) -> None:
    script = "trap 'exit 3' INT; echo rea''dy; while :; do sleep 0.05; done"
    session = sessions.script("sh", "-c", script, then="echo status=$?")
    session.expect("ready")
    session.type("\x03")
    session.expect("status=3")


def test_stop_and_go_on_from_the_callers_shell(sessions: Sessions) -> None:
    session = sessions.shell()
    session.type("run sh -c 'echo rea''dy; read line; echo got-$line'\n")
    session.expect("\nready")
    session.type("\x1a")
    session.expect("Stopped")
    sessions.wait_until_stopped("sh")  # one that waits for a line takes what comes before it is, whoever is in front
    session.type("echo out''side\n")
    session.expect("outside")
    session.type("fg\n")
    session.type("hel''lo\n")
    session.expect("got-hel''lo")
    session.type("exit 4\n")
    assert session.status() == 4


def test_what_stops_itself_is_stopped_for_the_callers_shell(sessions: Sessions) -> None:
    """As bash does with ``suspend``, and editors do that read ^Z themselves."""
    session = sessions.shell()
    session.type("run bash --norc --noprofile -ic 'kill -STOP $$; echo went''-on; exit 4'\n")
    session.expect("Stopped")
    session.type("fg\n")
    session.expect("went-on")
    session.expect("$ ")
    session.type("echo status=$?; exit 0\n")
    session.expect("status=4")
    assert session.status() == 0


def test_started_in_the_background_and_brought_to_the_front(sessions: Sessions) -> None:
    session = sessions.shell()
    session.type("run sh -c 'read line; echo got-$line' &\n")
    session.expect("$ ")
    session.type("sleep 1; fg\n")
    time.sleep(2)
    session.type("hello\n")
    session.expect("got-hello")
    session.type("exit 0\n")
    assert session.status() == 0


def test_job_control_inside(sessions: Sessions) -> None:
    session = sessions.run("bash", "--norc", "--noprofile", "-i")
    before = session.expect("$ ")
    assert "job control" not in before
    session.type("sleep 1000\n")
    time.sleep(0.3)
    session.type("\x1a")
    session.expect("Stopped")
    session.type("kill %1; fg; exit 5\n")
    assert session.status() == 5


def test_the_terminal_is_given_back_as_it_was(sessions: Sessions) -> None:
    session = sessions.shell()
    session.type("run bash --norc --noprofile -ic 'stty raw -echo; exit 6'; echo status=$?\n")
    session.expect("status=6")
    session.expect("$ ")
    session.type("run sh -c 'stty raw -echo; kill -9 $$'; stty -a; echo status=$?\n")
    modes = session.expect("status=0")
    assert " icanon" in modes
    assert " echo " in modes
    session.type("exit 0\n")
    assert session.status() == 0


def test_the_terminal_is_given_back_before_a_signal_ends_the_caller(sessions: Sessions) -> None:
    session = sessions.script("stty", "raw", "-echo", then="echo status=$?; stty -a", options=("terminated",))
    session.expect(f"status={128 + signal.SIGTERM}")
    session.expect(" icanon")


def test_hanging_up_ends_the_run(sessions: Sessions, sandbox: Sandbox) -> None:
    session = sessions.run("sh", "-c", "echo rea''dy; sleep 1000")
    session.expect("ready")
    os.close(session.terminal)
    os.waitpid(session.process_id, 0)
    sessions.open.remove(session)
    sandbox.wait_until_nothing_is_left()


def test_a_terminal_in_the_terminal(sessions: Sessions) -> None:
    if shutil.which("script") is None:
        pytest.skip("script is not installed: apt-get install bsdutils")
    session = sessions.run("script", "-qec", "tty; exit 8", "/dev/null")
    session.expect("/dev/pts/0")
    assert session.status() == 8
