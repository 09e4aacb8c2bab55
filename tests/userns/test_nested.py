"""A run in a run, whose root is then a mount of ours: each has its own device to mount with."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .person import Person


def test_runs_in_runs(person: Person) -> None:
    """Each sees what those around it have changed, and changes nothing of theirs."""
    inner = "true"
    for level in (3, 2, 1):
        script = f"touch /in-run-{level}; {inner}; status=$?; echo $(ls /in-run-*); exit $((status + 1))"
        command = person.unionmount("run", "--lower", "/", "--", "sh", "-c", script)
        inner = shlex.join(command)
    done = person.run(*command)
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == ["/in-run-1 /in-run-2 /in-run-3", "/in-run-1 /in-run-2", "/in-run-1"]
