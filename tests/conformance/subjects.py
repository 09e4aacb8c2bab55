"""What the cases run on: the kernel's overlayfs, our mount in each of its ways, and others on request.

A subject is a function from layers to a mounted directory. Adding a way to mount is adding a line to ``SUBJECTS``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Seconds after which a file system that answers nothing is cut off, so that the test that waits for it fails.
PATIENCE_S = 30
ROOT = Path(__file__).parents[2]


class Stack(NamedTuple):
    """The directories of one mount; ``lower`` is topmost first."""

    lower: Sequence[Path]
    upper: Path
    work: Path
    merged: Path

    def options(self) -> str:
        """Return the words that every implementation understands."""
        return f"lowerdir={':'.join(map(str, self.lower))},upperdir={self.upper},workdir={self.work}"


def make_stack(base: Path, count: int) -> Stack:
    """Make the empty directories of a stack of ``count`` lower layers."""
    stack = Stack([base / f"lower{index}" for index in range(count)], base / "upper", base / "work", base / "merged")
    for directory in (*stack.lower, stack.upper, stack.work, stack.merged):
        directory.mkdir()
    return stack


def mount_overlayfs(stack: Stack) -> None:
    """The oracle, with all that brings it nearer to POSIX."""
    run("mount", "-t", "overlay", "-o", f"{stack.options()},redirect_dir=on,index=on,xino=on", "overlay", stack.merged)


def mount_fuse_overlayfs(stack: Stack) -> None:
    """Another implementation, to see that the cases can fail."""
    run("fuse-overlayfs", "-o", stack.options(), stack.merged)


def mount_ours(*words: str) -> Callable[[Stack], None]:
    """Return a way to mount ours with further words of its command line."""

    def mount(stack: Stack) -> None:
        run(sys.executable, "-m", "unionfs.cli.main", *words, "-o", stack.options(), stack.merged, cwd=ROOT)

    return mount


SUBJECTS: dict[str, Callable[[Stack], None]] = {
    "overlayfs": mount_overlayfs,
    "fuse-overlayfs": mount_fuse_overlayfs,
    "direct": mount_ours(),
    "fusepy": mount_ours("--transport", "fusepy"),
}


def run(*command: str | Path, cwd: Path | None = None) -> None:
    """Run a command that must succeed."""
    words = list(map(str, command))
    done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S, check=False, cwd=cwd)
    assert done.returncode == 0, f"{command[0]} exited with {done.returncode}: {done.stderr}"


def unmount(stack: Stack) -> None:
    """Unmount, or detach what does not let go and say so."""
    try:
        run("umount", stack.merged)
    except AssertionError:
        subprocess.run(["umount", "-l", stack.merged], check=False, timeout=PATIENCE_S)
        raise


def answers(stack: Stack) -> bool:
    """Tell whether the mount is there and its server alive."""
    try:
        return os.stat(stack.merged).st_dev != os.stat(stack.upper).st_dev
    except OSError:
        return False


class Patience:
    """Cuts a mount off when the block takes too long: what waits for it then gets ENOTCONN or ECONNABORTED."""

    def __init__(self, merged: Path) -> None:
        self._timer = threading.Timer(PATIENCE_S, self._abort, [merged])

    @staticmethod
    def _abort(merged: Path) -> None:
        subprocess.run(["umount", "-f", "-l", merged], check=False, timeout=PATIENCE_S)

    def __enter__(self) -> None:
        self._timer.daemon = True
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
