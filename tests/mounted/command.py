"""``unionmount`` as a caller sees it: exit status, what it says, what it leaves."""

from __future__ import annotations

import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support import leftovers
from tests.support.mounts import LIMIT_S, ROOT, UNIONMOUNT, is_mounted, layer_options, prepare, run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Word = str | bytes | Path


def unionmount(*words: Word, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which must come although a server stays in the background."""
    return through((), *words, cwd=cwd)


def through(wrapper: Sequence[str], *words: Word, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same by way of another command, as ``unshare -m``."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*wrapper, *UNIONMOUNT, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=cwd, env=env)


@contextmanager
def mounted(point: Path, *words: Word, cwd: Path | None = None, said: str = "") -> Iterator[Path]:
    """Mount in the background with ``words`` that name ``point``; unmount at the end and see the server end."""
    point.mkdir(exist_ok=True)
    done = unionmount(*words, cwd=cwd)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", said)
    try:
        assert is_mounted(point)
        yield point
        done = unionmount("umount", point)
        assert (done.returncode, done.stderr) == (0, "")
        assert not is_mounted(point)
        assert servers(point) == [], "umount returned before the server had ended"
    finally:
        for mount in leftovers.mounts_below(point):
            leftovers.abort(mount)
            leftovers.detach(mount.point)


def servers(path: Path) -> list[leftovers.Process]:
    """Return the processes of this session whose command line names ``path``."""
    return [found for found in leftovers.processes(Path(os.environ[leftovers.MARK])) if str(path) in found.command]


@contextmanager
def tmpfs(point: Path, options: str = "mode=0755") -> Iterator[None]:
    """Another file system."""
    run("mount", "-t", "tmpfs", "-o", options, "tmpfs", point)
    try:
        yield
    finally:
        run("umount", point)


def stack(base: Path, count: int = 1) -> str:
    """Make a stack's directories below ``base``, with one file in each layer; return the words for ``-o``."""
    lowers, upper, work = prepare(base, count)
    for index, lower in enumerate(lowers):
        (lower / f"file{index}").write_text(f"in layer {index}")
    return layer_options(lowers, upper, work)
