"""``make demo``: this machine as a read-only layer, a process that takes it apart, and the machine as it was.

Each step prints the command that it runs, as one would type it. Nothing outside of a temporary directory is changed.
It works as root, and as any user who may make user namespaces and open /dev/fuse.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).parents[1]
UNIONMOUNT = [sys.executable, "-m", "unionfs.cli.main"]
LIMIT_S = 60
VICTIMS = [Path("/usr/share", name) for name in ("doc", "man", "zoneinfo", "locale", "perl", "terminfo")]
EDITED = Path("/etc/hosts")

WRECK = """\
rm -rf {victim}
mkdir -p /usr/local/bin
printf "#!/bin/sh\\necho hello from a layer\\n" > /usr/local/bin/hello
chmod +x /usr/local/bin/hello
echo "10.0.0.1 demo" >> {edited}
/usr/local/bin/hello
ls {victim}; tail -n 1 {edited}"""
LOOK = "ls {victim} | wc -l; ls /usr/local/bin/hello; tail -n 1 {edited}"


def main() -> int:
    """Run the demonstration; return its exit status."""
    problem = why_not()
    if problem is not None:
        print(f"the demo cannot run here: {problem}", file=sys.stderr)
        return 1
    victim = next((path for path in VICTIMS if any(files_of(path))), None)
    if victim is None:
        print("the demo cannot run here: nothing in /usr/share to delete", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="unionfs-demo-") as place:
        return demonstrate(Path(place), victim)


def why_not() -> str | None:
    """Return in one line why no process can be run on a stack here, None if one can."""
    done = unionmount("run", "--lower", "/", "--", "true")
    return None if done.returncode == 0 else (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]


def demonstrate(place: Path, victim: Path) -> int:
    """Do the steps, with two writable layers in ``place``; ``victim`` is a directory of this machine to delete."""
    first, second = place / "first", place / "second"
    first.mkdir()
    second.mkdir()
    names = {"victim": victim, "edited": EDITED}

    title("1. This machine, before")
    before = fingerprint(victim)
    print(f"{victim}: {sum(1 for _ in files_of(victim))} files; with {EDITED} their fingerprint is {before}")

    title("2. A process with this machine as its read-only layer takes it apart; its changes go to an empty directory")
    show("run", "--lower", "/", "--upper", str(first), "--", "sh", "-c", WRECK.format(**names))

    title("3. What it changed: added, changed, deleted")
    show("diff", "--lower", "/", "--upper", str(first))

    title("4. This machine, after")
    after = fingerprint(victim)
    print(f"{victim}: {sum(1 for _ in files_of(victim))} files; the fingerprint is {after}: " + verdict(before, after))
    print(f"/usr/local/bin/hello: {'there' if os.path.exists('/usr/local/bin/hello') else 'not there'}")

    title("5. A second process on the same layer, with an empty directory of its own, sees nothing of the first")
    show("run", "--lower", "/", "--upper", str(second), "--", "sh", "-c", LOOK.format(**names))
    return 0 if before == after else 1


def verdict(before: str, after: str) -> str:
    """Say whether the machine is as it was."""
    return "not a byte and not a time of change differs" if before == after else "THIS MACHINE WAS CHANGED"


def title(text: str) -> None:
    """Print the heading of a step."""
    print(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n{text}", flush=True)


def show(*words: str) -> None:
    """Print a command of ``unionmount``, run it, and print what it says."""
    print("$ unionmount " + shlex.join(words), flush=True)
    done = unionmount(*words)
    print("".join(f"  {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="", flush=True)


def unionmount(*words: str) -> subprocess.CompletedProcess[str]:
    """Run ``unionmount``, installed or from this repository."""
    return subprocess.run(
        [*UNIONMOUNT, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def fingerprint(victim: Path) -> str:
    """Return a digest of what the process changes: names, modes, times of change, and content."""
    digest = hashlib.sha256()
    for path in (*sorted(files_of(victim)), EDITED):
        state = path.lstat()
        digest.update(repr((str(path), state.st_mode, state.st_ino, state.st_size, state.st_ctime_ns)).encode())
        if path.is_file() and not path.is_symlink():
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def files_of(directory: Path) -> Iterator[Path]:
    """Yield all that is below a directory and can be read."""
    for parent, directories, names in os.walk(directory):
        yield from (Path(parent, name) for name in (*directories, *names) if os.access(Path(parent, name), os.R_OK))


if __name__ == "__main__":
    sys.exit(main())
