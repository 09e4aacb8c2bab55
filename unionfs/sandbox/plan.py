"""What one run is made of, decided by the caller and handed to each of its processes."""

from __future__ import annotations

from unionfs.lean import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.sandbox.command import Command
    from unionfs.sandbox.idmaps import IdMaps
    from unionfs.sandbox.reports import Pipe
    from unionfs.sandbox.signals import Mask

    Finish = Callable[[], None]
    Prepare = Callable[[bytes], Finish]


class Plan(NamedTuple):
    """One run."""

    prepare: Prepare
    """Mounts the root on the directory it is given; returns what is to be called once that is unmounted."""
    command: Command
    places: list[bytes]
    """Paths of nothing that is there: at the first where that can be, a directory is made to mount on."""
    chroot: bool
    """Change the root alone: no namespaces, nothing mounted in the root."""
    maps: IdMaps | None
    """The ids of the user namespace, None where none is needed."""
    has_terminal: bool
    """Whether the caller has a controlling terminal."""
    mask: Mask
    """The caller's signal mask, and so the command's."""
    caller: int
    """The caller's process id."""
    reports: Pipe
    place: bytes = b""
    """That directory, once the supervisor has made it, who also removes it."""
