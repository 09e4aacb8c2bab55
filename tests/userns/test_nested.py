"""A run in a run, whose root is then a mount of ours: each has its own device to mount with."""

from __future__ import annotations

import shlex
import shutil
from typing import TYPE_CHECKING

from tests.support.mounts import ROOT

if TYPE_CHECKING:
    from .person import Person


def test_runs_in_runs(person: Person) -> None:
    """Each sees what those around it have changed, and changes nothing of theirs. The outermost brings the code along,
    since this checkout may be in /tmp, of which each has one of its own.
    """
    (code,) = person.make("layer/code")
    shutil.copytree(ROOT / "unionfs", code / "unionfs")
    inner = "true"
    for level in (3, 2, 1):
        script = f"touch /in-run-{level}; {inner}; status=$?; echo $(ls /in-run-*); exit $((status + 1))"
        lower = ["--lower", "/"] if level > 1 else ["--lower", code.parent, "--lower", "/"]
        command = person.unionmount("run", *lower, "--", "env", "PYTHONPATH=/code", "sh", "-c", script)
        inner = shlex.join(command)
    done = person.run(*command)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == ["/in-run-1 /in-run-2 /in-run-3", "/in-run-1 /in-run-2", "/in-run-1"]
