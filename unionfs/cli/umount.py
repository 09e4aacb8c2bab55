"""``unionmount umount MOUNTPOINT``: unmounts, and waits until the server has ended."""

from __future__ import annotations

import os
import select

from unionfs import errors
from unionfs.cli import attributes
from unionfs.fuse import mounting

HELP = """\
usage: unionmount umount [-l] MOUNTPOINT ...

Unmount stacks, and wait until their servers have ended, so that the layers are free. -l takes a mount away that is in
use; it ends with its last user, and is not waited for.
"""


def run_umount(words: list[str]) -> int:
    """Unmount each mountpoint. Raises errors.NotMounted, MountBusy."""
    lazy = "-l" in words
    places = [word for word in words if word != "-l"]
    if not places or any(word.startswith("-") for word in places):
        raise errors.UsageError(problem="umount takes a mountpoint, and -l to take it away while it is in use")
    for place in places:
        umount(os.fsencode(place), lazy=lazy)
    return 0


def umount(place: bytes, *, lazy: bool = False) -> None:
    """Unmount ``place`` and wait for its server to end."""
    mountpoint = mounting.resolve_mountpoint(place)
    server = _open_server(mountpoint) if _is_fuse(mountpoint) else -1
    if server < 0 and not mounting.is_mounted(mountpoint):
        raise errors.NotMounted(mountpoint=place)
    try:
        mounting.unmount(mountpoint, lazy=lazy)
        if server >= 0 and not lazy:
            select.select([server], [], [])
    finally:
        if server >= 0:
            os.close(server)


def _is_fuse(mountpoint: bytes) -> bool:
    """Tell whether what is mounted may be ours: of any subtype, since that can be chosen."""
    top = mounting.topmost(mountpoint)
    return top is not None and top.kind.partition(b".")[0] in (b"fuse", b"fuseblk")


def _open_server(mountpoint: bytes) -> int:
    """Return a descriptor that becomes readable when the server ends (pidfd_open(2)), -1 if there is
    none to wait for.
    """
    try:
        return os.pidfd_open(int(str(attributes.read(mountpoint, "config")["pid"])))
    except (OSError, errors.UnionfsError):
        return -1
