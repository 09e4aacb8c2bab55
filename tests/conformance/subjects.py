"""What the cases run on: the kernel's overlayfs, our mount in each of its ways, and others on request.

Adding a way to mount is adding a line to ``SUBJECTS``.
"""

from __future__ import annotations

import os
import threading
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tests.support import leftovers
from tests.support.mounts import fuse_overlayfs_mount, overlayfs_mount, prepare, union_mount
from tests.support.trees import digest_of_layer

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

#: Seconds after which a mount that answers nothing is cut off, so that the case that waits for it fails alone.
PATIENCE_S = 30


class Subject(NamedTuple):
    """A way to mount: a function of base directory, lowers, upper and workdir.

    ``needs`` is what the machine must have for it, ``counts`` the numbers of lower layers to run it with. It deviates
    where the subject ``like`` does as well.
    """

    mount: Callable[..., AbstractContextManager[Path]]
    needs: tuple[str, ...]
    counts: tuple[int, ...] = (1, 3)
    like: str = ""


def _in_mode(name: str) -> Subject:
    """Return our mount in a mode that is not the best for root."""
    return Subject(partial(union_mount, words=("--mode", name)), ("root", "fuse"), (3,), "direct")


SUBJECTS = {
    "overlayfs": Subject(partial(overlayfs_mount, options="redirect_dir=on,index=on,xino=on"), ("root", "overlayfs")),
    "direct": Subject(union_mount, ("root", "fuse")),
    **{mode: _in_mode(mode) for mode in ("write-through", "write-back", "opened")},
    "fusepy": Subject(partial(union_mount, words=("--transport", "fusepy")), ("root", "fuse", "libfuse2"), (3,)),
    "fuse-overlayfs": Subject(fuse_overlayfs_mount, ("root", "fuse-overlayfs")),
}


class Stack:
    """The directories of one mount, and the mount while it is there; ``merged`` is its mountpoint."""

    merged: Path

    def __init__(self, base: Path, subject: Subject, count: int) -> None:
        self._base = base
        self._subject = subject
        self._mounted = ExitStack()
        self.lowers, self.upper, self.work = prepare(base, count)

    def mount(self) -> None:
        """Mount these directories."""
        mount = self._subject.mount(self._base, self.lowers, self.upper, self.work)
        self.merged = self._mounted.enter_context(mount)

    def unmount(self) -> None:
        """Unmount; what the server logged fails the test."""
        self._mounted.close()

    def digest(self) -> list[str]:
        """Return what must stay the same in the lower layers."""
        return list(map(digest_of_layer, self.lowers))

    def complaints(self) -> str:
        """Return what a server of ours has logged since it was mounted: each line of it is a defect."""
        log = self._base / "unionfs.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def answers(self) -> bool:
        """Tell whether the mount is there and its server alive."""
        try:
            return os.stat(self.merged).st_dev != os.stat(self.upper).st_dev
        except OSError:
            return False


class Patience:
    """Cuts a FUSE mount off when the block takes too long: what waits for it then gets ECONNABORTED."""

    def __init__(self, merged: Path) -> None:
        self._timer = threading.Timer(PATIENCE_S, leftovers.abort_below, [merged])
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
