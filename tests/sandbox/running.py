"""Starting the sandbox's driver as root or as an ordinary user, and finding again all that it started."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("driver.py")
ORDINARY_ID = 1000
PATIENCE_S = 15


class Sandbox:
    """Starts the driver as one user; each process carries a mark in its environment by which it is found again."""

    def __init__(self, user: int, interpreter: str) -> None:
        self.user = user
        self.runtime = Path(tempfile.mkdtemp())  # not below tmp_path, which others may not enter
        os.chown(self.runtime, user, -1)
        self.interpreter = interpreter
        self.mark = f"UNIONMOUNT_TEST={uuid.uuid4()}"

    @property
    def kind(self) -> str:
        """The best root that this user can mount without us."""
        return "overlay" if self.user == 0 else "self"

    def command(self, command: Sequence[str], kind: str | None = None, *options: str) -> list[str]:
        return [self.interpreter, str(DRIVER), kind or self.kind, *options, "--", *command]

    def start(
        self, command: Sequence[str], kind: str | None = None, *options: str, **keywords: object
    ) -> subprocess.Popen[str]:
        name, _, value = self.mark.partition("=")
        settings: dict[str, object] = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "stdin": subprocess.DEVNULL,
            "env": {**os.environ, name: value, "XDG_RUNTIME_DIR": str(self.runtime), "PYTHONDONTWRITEBYTECODE": "1"},
            **keywords,
        }
        if self.user != os.geteuid():
            settings |= {"user": self.user, "group": self.user, "extra_groups": []}
        return subprocess.Popen(self.command(command, kind, *options), text=True, **settings)  # type: ignore[call-overload, no-any-return]

    def run(
        self, command: Sequence[str], kind: str | None = None, *options: str, **keywords: object
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(command, kind, *options, **keywords)
        try:
            out, err = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def output(self, command: Sequence[str], kind: str | None = None, *options: str) -> str:
        """What a command that has to succeed prints."""
        done = self.run(command, kind, *options)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def processes(self) -> list[int]:
        """The process ids of all that the runs of this object started and that have not ended."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if self._is_marked(path)]

    def _is_marked(self, path: Path) -> bool:
        try:
            return os.fsencode(self.mark) in (path / "environ").read_bytes()
        except OSError:  # it ended, or is none of ours
            return False

    def wait_until_nothing_is_left(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while (self.processes() or os.listdir(self.runtime)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (self.processes(), os.listdir(self.runtime)) == ([], [])
        assert str(self.runtime) not in Path("/proc/self/mountinfo").read_text()


def can_run(command: Sequence[str], user: int) -> bool:
    settings = {"user": user, "group": user, "extra_groups": []} if user != os.geteuid() else {}
    try:
        done = subprocess.run(command, capture_output=True, timeout=30, cwd="/", **settings)  # type: ignore[call-overload]
    except OSError:
        return False
    return bool(done.returncode == 0)


@functools.cache
def usable_interpreter(user: int) -> str | None:
    """A Python that this user may start, and that may read the package."""
    package = str(DRIVER.parent.parent.parent)
    probe = f"import sys; sys.path.insert(0, {package!r}); assert sys.version_info >= (3, 10); import unionfs.errors"
    candidates = (os.path.realpath(sys.executable), "/usr/bin/python3")  # not a virtual environment below /tmp
    return next((name for name in candidates if can_run([name, "-c", probe], user)), None)


@functools.cache
def may_have_namespaces(user: int) -> bool:
    return can_run(["unshare", "--user", "--mount", "true"], user)


def sandbox_of(user: int) -> Sandbox:
    if user == 0 and os.geteuid() != 0:
        pytest.skip("needs root")
    interpreter = usable_interpreter(user)
    if interpreter is None:
        pytest.skip(f"no Python of 3.10 or later that user {user} may run, with the package")
    if user and not may_have_namespaces(user):
        pytest.skip("user namespaces are not allowed to ordinary users here")
    return Sandbox(user, interpreter)
