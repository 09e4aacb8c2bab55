"""Child processes under a time limit, timed to the microsecond.

Everything that touches a mount happens in a child started here, so that a hung file system blocks a child and never
the benchmark. This module knows nothing of mounts or peers.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

GRACE_S = 3.0
ERROR_CHARS = 400


class StepFailed(Exception):
    """A command of the benchmark failed, took too long or gave a wrong answer."""


class Skip(Exception):
    """A peer or this machine cannot do a workload; the message says why, and what to install if that helps."""


class Done(NamedTuple):
    """What a finished command left: seconds from its start to its end, and what it printed."""

    seconds: float
    output: bytes


def spawn(
    argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str], out: IO[bytes] | int, err: IO[bytes] | int
) -> subprocess.Popen[bytes]:
    """Start a command in a session of its own, so that it can be killed with all of its children."""
    try:
        return subprocess.Popen(
            argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
    except OSError as error:
        raise StepFailed(f"{argv[0]}: {error.strerror}") from error


def wait(process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """True as soon as the process has ended, False after the time limit.

    A pidfd is polled because ``Popen.wait`` with a time limit sleeps up to 50 ms between its looks.
    """
    if process.returncode is not None:
        return True
    descriptor = os.pidfd_open(process.pid)
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0.0, timeout_s) * 1000)) and process.wait() is not None
    finally:
        os.close(descriptor)


def kill(*processes: subprocess.Popen[bytes]) -> None:
    """Kill the sessions of processes; those that the kernel has wait for a file system may outlive this."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + GRACE_S
    for process in processes:
        wait(process, deadline - time.monotonic())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every command: the caller's, with one language and no settings of the user's tools.

    Those of Python could keep it from writing compiled modules, and then each start would compile them anew.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return {**kept, "LC_ALL": "C.UTF-8", "HOME": "/nonexistent", **(extra or {})}


def run(
    argv: Sequence[str],
    *,
    limit_s: float,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    copies: int = 1,
) -> Done:
    """Run a command, or ``copies`` of it at once (``{i}`` in a word becomes the number of the copy).

    Raises :class:`StepFailed` when a copy exits non-zero or the time limit (seconds, for all of them) has passed.
    """
    with _memory() as out, _memory() as err:
        commands = [[word.replace("{i}", str(number)) for word in argv] for number in range(copies)]
        started = time.monotonic()
        processes: list[subprocess.Popen[bytes]] = []
        try:
            processes.extend(spawn(command, cwd=cwd, env=environment(env), out=out, err=err) for command in commands)
            ended = [wait(process, started + limit_s - time.monotonic()) for process in processes]
            seconds = time.monotonic() - started
        finally:
            kill(*(process for process in processes if process.returncode is None))
        said = _content(err) or _content(out)[-ERROR_CHARS:]
        _judge(argv, processes, said, None if all(ended) else limit_s)
        return Done(seconds, _content(out))


def _memory() -> IO[bytes]:
    """A file in memory for the output of several processes; without O_APPEND they would overwrite each other's."""
    descriptor = os.memfd_create("output")
    fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
    return open(descriptor, "w+b", 0)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


def _judge(
    argv: Sequence[str], processes: Sequence[subprocess.Popen[bytes]], said: bytes, passed_s: float | None
) -> None:
    """Raise what went wrong, with the end of what the command said; ``passed_s`` is the time limit if it has passed."""
    if passed_s is not None:
        raise StepFailed(f"{Path(argv[0]).name}: no answer in {passed_s:.0f} s")
    codes = [process.returncode for process in processes if process.returncode]
    if codes:
        last = said.decode(errors="replace").strip().rpartition("\n")[2][-ERROR_CHARS:]
        raise StepFailed(f"{_brief(argv)}: exit status {codes[0]}: {last}")


def _brief(argv: Sequence[str]) -> str:
    """A command for people: without the directories of its words, which are different in each run."""
    return " ".join(word.rpartition("/")[2] or word for word in argv)[: ERROR_CHARS // 3]
