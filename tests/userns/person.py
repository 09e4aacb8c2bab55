"""An ordinary user for tests: who runs commands without privilege, with or without ids granted in /etc/subuid.

Root starts each command in a mount namespace of its own, in which this user may open /dev/fuse, exists in /etc/passwd,
and has the ids of ``RANGE`` or none. All that a command mounts is gone with it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.sandbox.running import usable_interpreter
from tests.support import leftovers
from tests.support.mounts import LIMIT_S, ROOT

NAME, ID = "unionfs-person", 61234
RANGE = (200_000, 65_536)
"""The first id that is granted, and how many."""
_FUSE = os.makedev(10, 229)


class Person:
    """One user; ``home`` is theirs, and the current directory of their commands."""

    def __init__(self, base: Path, *, granted: bool) -> None:
        interpreter = usable_interpreter(ID)
        if interpreter is None:
            pytest.skip("no Python of 3.10 or later that an ordinary user may run, with the package")
        self.interpreter = interpreter
        self._etc = base / "etc"
        self.home = base / "home"
        self.home.mkdir()
        os.chown(self.home, ID, ID)
        self._prepare(granted=granted)

    def _prepare(self, *, granted: bool) -> None:
        self._etc.mkdir()
        os.mknod(self._etc / "fuse", 0o20666, _FUSE)
        (self._etc / "fuse").chmod(0o666)
        passwd = Path("/etc/passwd").read_text()
        (self._etc / "passwd").write_text(f"{passwd}{NAME}:x:{ID}:{ID}::{self.home}:/bin/sh\n")
        for name in ("subuid", "subgid"):
            line = "{}:{}:{}\n".format(NAME, *RANGE) if granted else ""
            (self._etc / name).write_text(line)

    def _binds(self) -> str:
        places = {"fuse": "/dev/fuse", "passwd": "/etc/passwd", "subuid": "/etc/subuid", "subgid": "/etc/subgid"}
        found = {name: place for name, place in places.items() if os.path.exists(place)}
        return " && ".join(f"mount --bind {shlex.quote(str(self._etc / name))} {found[name]}" for name in found)

    def run(self, *command: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command as this user, with ``given`` as its input."""
        become = ["setpriv", f"--reuid={ID}", f"--regid={ID}", "--clear-groups", "--inh-caps=-all"]
        environment = {
            "HOME": str(self.home),
            "USER": NAME,
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "TMPDIR": str(self.home),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            leftovers.MARK: os.environ[leftovers.MARK],
        }
        script = f'{self._binds()} && exec {shlex.join(become)} -- "$@"'
        return subprocess.run(
            ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, command)],
            input=given, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=self.home, env=environment,
        )  # fmt: skip

    def output(self, *command: str | Path, given: str = "") -> str:
        """Return what a command prints that has to succeed, and has nothing to complain about."""
        done = self.run(*command, given=given)
        assert (done.returncode, done.stderr) == (0, ""), done
        return done.stdout

    def unionmount(self, *words: str | Path) -> list[str]:
        """Return the words of a command of ours."""
        return [self.interpreter, "-m", "unionfs.cli.main", *map(str, words)]

    def inside(self, script: str, *words: str | Path) -> str:
        """Return what a shell script prints that runs in a stack; ``words`` are options of ``unionmount run``."""
        return self.output(*self.unionmount("run", *words, "--", "sh", "-c", "set -e\n" + script))

    def own(self, *paths: Path) -> None:
        """Give files to this user."""
        for path in paths:
            os.chown(path, ID, ID)

    def disown(self, path: Path) -> None:
        """Give a file to root."""
        os.chown(path, 0, 0)

    def make(self, *names: str) -> list[Path]:
        """Make directories of this user's own in their home."""
        made = [self.home / name for name in names]
        for directory in made:
            directory.mkdir(parents=True)
            os.chown(directory, ID, ID)
        return made


def new_base() -> Path:
    """Make a directory that every user may enter, which tmp_path is not."""
    base = Path(tempfile.mkdtemp(prefix="userns-"))
    base.chmod(0o755)
    return base
