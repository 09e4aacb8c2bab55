"""``unionmount stats``: what is counted, exactly, and what is said where it cannot be."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.mounts import LIMIT_S
from tests.support.probes import requires
from unionfs.syscalls.counting import ReadsAndWrites, SystemCalls

from .command import mounted, stack, through, unionmount

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = requires("root", "fuse")

_CHMODS = 300
#: Of one request: to read it, what chmod costs (tests/budgets/test_system_calls.py), to answer it.
_CALLS_OF_CHMOD = 4
#: Opening and closing files, and what Python does to start and end a thread.
_AROUND = 80
#: Says that it is there, and waits for a line; then a new thread makes many calls, and as many that wait.
_CALLING = """
import os, select, threading
waiting, null = select.poll(), os.open(os.devnull, os.O_RDWR)
def call():
    for _ in range(1000):
        os.getppid()
        waiting.poll(0)
    for _ in range(500):
        os.read(null, 1)
        os.write(null, b"x")
print("ready", flush=True)
input()
thread = threading.Thread(target=call)
thread.start()
thread.join()
print("done", flush=True)
input()
"""


@pytest.fixture
def point(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "m", "-o", stack(tmp_path), tmp_path / "m") as merged:
        (merged / "new").touch()
        yield merged


def _told(text: str) -> dict[str, Any]:
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def _asked(told: dict[str, Any]) -> dict[str, int]:
    """Return the requests without those that come when somebody has the kernel drop its caches."""
    again = ("LOOKUP", "GETATTR", "FORGET", "BATCH_FORGET")
    return {name: count for name, count in told["requests"].items() if name not in again}


def _chmod(point: Path) -> list[str]:
    return [sys.executable, "-c", f"import os\nfor _ in range({_CHMODS}): os.chmod({str(point / 'new')!r}, 0o600)"]


def test_since_the_mount(point: Path) -> None:
    """Requests by name, and what the kernel counts anyhow: each request was read, and most were answered."""
    first = _told(unionmount("stats", point).stdout)
    assert first["requests"]["INIT"] == first["requests"]["CREATE"] == 1
    assert first["errors"] == 0
    assert first["reads_and_writes"] > sum(first["requests"].values())
    assert "system_calls" not in first
    assert _told(unionmount("stats", point).stdout)["reads_and_writes"] > first["reads_and_writes"]


@requires("system-call-counter")
def test_while_a_command_runs(point: Path) -> None:
    """Its requests alone, and the system calls: what these take, and at most one read more that was in vain."""
    done = unionmount("stats", point, "--", *_chmod(point))
    told = _told(done.stdout)
    assert done.stderr == ""
    assert _asked(told) == {"SETATTR": _CHMODS}
    assert _CALLS_OF_CHMOD * _CHMODS <= told["system_calls"] <= (_CALLS_OF_CHMOD + 1) * _CHMODS + _AROUND
    assert told["system_calls_per_request"] == round(told["system_calls"] / sum(told["requests"].values()), 2)
    assert told["errors"] == 0


def test_a_question_costs_the_same_whatever_the_answer_is(tmp_path: Path) -> None:
    """Of a new mount there is little to tell, and more when the command has run."""
    point = tmp_path / "m"
    made, listed = str(point / "made"), str(point)
    command = f"import os; os.mkdir({made!r}); [os.stat(entry) for entry in os.scandir({listed!r})]"
    with mounted(point, "-o", stack(tmp_path), point):
        told = _told(unionmount("stats", point, "--", sys.executable, "-c", command).stdout)
    assert told["requests"]["MKDIR"] == 1
    assert "GETXATTR" not in told["requests"]


@requires("libfuse2", "system-call-counter")
def test_with_fusepy_requests_are_what_libfuse_asks(tmp_path: Path) -> None:
    """It looks at the file before and after."""
    point = tmp_path / "m"
    with mounted(point, "--transport", "fusepy", "-o", stack(tmp_path), point):
        (point / "new").touch()
        assert _told(unionmount("stats", point).stdout)["requests"]["create"] == 1
        told = _told(unionmount("stats", point, "--", *_chmod(point)).stdout)
    assert told["requests"]["chmod"] == _CHMODS
    assert told["requests"].keys() == {"chmod", "getattr"}
    assert told["system_calls"] > _CALLS_OF_CHMOD * _CHMODS


@requires("system-call-counter")
def test_system_calls_of_all_threads_but_not_those_that_wait() -> None:
    with subprocess.Popen([sys.executable, "-c", _CALLING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        with closing(SystemCalls(process.pid)) as calls, closing(ReadsAndWrites(process.pid)) as reads_and_writes:
            before = reads_and_writes.count()
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"done\n"
            counted = calls.count(), reads_and_writes.count() - before
        process.communicate(b"\n", timeout=LIMIT_S)
    assert 2000 <= counted[0] < 2000 + _AROUND
    assert 1000 <= counted[1] < 1000 + _AROUND


def test_where_system_calls_cannot_be_counted(point: Path) -> None:
    """One line says what is missing, and the rest is printed."""
    hidden = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none /sys/kernel && exec "$@"', "sh")
    done = through(hidden, "stats", point, "--", *_chmod(point))
    told = _told(done.stdout)
    tracepoint = "/sys/kernel/tracing/events/raw_syscalls/sys_enter/id"
    assert done.stderr == f"unionmount: no system_calls: {tracepoint}: No such file or directory\n"
    assert _asked(told) == {"SETATTR": _CHMODS}
    assert told["reads_and_writes"] >= 2 * _CHMODS
    assert "system_calls" not in told


@pytest.mark.parametrize(("command", "status"), [("echo said; exit 3", 3), ("echo said; kill $$", 128 + 15)])
def test_the_command_ends_as_it_ends(point: Path, command: str, status: int) -> None:
    """Its output is kept apart from the report."""
    done = unionmount("stats", point, "--", "sh", "-c", command)
    assert done.returncode == status
    assert done.stderr.splitlines()[-1] == "said"
    assert _asked(_told(done.stdout)) == {}


_MEANINGLESS = [(), ("-x",), ("{}", "{}"), ("{}", "--"), ("{}", "true"), ("{}", "more", "--", "true")]


@pytest.mark.parametrize("words", _MEANINGLESS)
def test_words_that_mean_nothing(point: Path, words: tuple[str, ...]) -> None:
    done = unionmount("stats", *(word.format(point) for word in words))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("unionmount: stats takes one mountpoint")
