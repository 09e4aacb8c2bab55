"""A disposable copy of the machine: run any command on it, see what it changed, and throw the changes away.

    python examples/disposable_machine.py                        # a small command of its own
    python examples/disposable_machine.py sh -c 'rm -rf /opt'    # or yours
    python examples/disposable_machine.py bash                   # or a shell, to look around

The command sees this machine's own files as its root and may do to them what it likes. Works as root, and as any user
who may make user namespaces and open /dev/fuse.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import unionfs

DEFAULT = ["sh", "-c", "echo disposable > /etc/hostname; rm -f /etc/hosts; mkdir /usr/local/new; cat /etc/hostname"]


def main(argv: list[str]) -> int:
    """Run ``argv`` on a copy of this machine; return its exit status."""
    with tempfile.TemporaryDirectory(prefix="disposable-") as place:
        changes = Path(place, "changes")
        changes.mkdir()
        done = unionfs.run(argv, lower="/", upper=changes)
        print(f"exit status {done.returncode}; what it changed, and what is now thrown away:", flush=True)
        with unionfs.Union(lower="/", upper=changes) as union:
            for change in union.changes():
                print(f"  {change}")
    return int(done.returncode)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or DEFAULT))
