"""The modes of a mount: whether the kernel tells of each open, and by which way data moves.

They exclude one another for the life of a connection, so one is chosen once, when INIT is answered: the first of those
wanted that the kernel offers. Their costs stand in docs/performance.md, "Modes".
"""

from __future__ import annotations

from unionfs.fuse.openfiles import OpenFiles, RealFiles
from unionfs.fuse.unopened import UnopenedFiles, WrittenBackFiles
from unionfs.fuse.wire import abi
from unionfs.lean import NamedTuple
from unionfs.syscalls import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unionfs.fuse.openfiles import Backing
    from unionfs.union.stack import Stack


class Mode(NamedTuple):
    """One way to open files and to move their data: what it needs of INIT, and what does its work."""

    name: str
    flags: int
    files: Callable[[Stack, Backing | None], RealFiles]
    seeks: bool = True
    """Whether the real file knows where there is data; not while the kernel holds it back (fuse_lseek asks at once)."""


OPENED = Mode("opened", abi.INIT_ATOMIC_O_TRUNC, lambda stack, _: OpenFiles(stack))
PASSTHROUGH = Mode("passthrough", abi.INIT_ATOMIC_O_TRUNC | abi.INIT_PASSTHROUGH, OpenFiles)
# Without OPEN a file is emptied by SETATTR: with INIT_ATOMIC_O_TRUNC nobody would say so (fuse_do_setattr).
WRITE_THROUGH = Mode("write-through", abi.INIT_NO_OPEN_SUPPORT, lambda stack, _: UnopenedFiles(stack))
WRITE_BACK = Mode(
    "write-back",
    abi.INIT_NO_OPEN_SUPPORT | abi.INIT_WRITEBACK_CACHE,
    lambda stack, _: WrittenBackFiles(stack),
    seeks=False,
)
NAMED = {mode.name: mode for mode in (PASSTHROUGH, WRITE_THROUGH, WRITE_BACK, OPENED)}
AUTO = "auto"


def wanted(name: str) -> tuple[Mode, ...]:
    """Return the modes to try for one that a user named, in this order; the last one every kernel has.

    By itself: passthrough for root (the kernel lets nobody else register files), otherwise write-through, if no file's
    mode can keep this process from opening it once more.
    """
    if name != AUTO:
        return NAMED[name], OPENED
    best = (PASSTHROUGH,) if process.is_superuser() and process.has_capability(process.CAP_SYS_ADMIN) else ()
    unopened = (WRITE_THROUGH,) if process.has_capability(process.CAP_DAC_OVERRIDE) else ()
    return *best, *unopened, OPENED


def choose(modes: Sequence[Mode], offered: int) -> Mode:
    """Return the first of ``modes`` whose INIT_* flags are all ``offered``, otherwise the last."""
    return next((mode for mode in modes if not mode.flags & ~offered), modes[-1])
