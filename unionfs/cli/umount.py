"""``unionmount umount MOUNTPOINT``: unmounts, and waits until the server has ended."""

from __future__ import annotations

import os
import select
import sys

from unionfs import errors
from unionfs.cli import attributes
from unionfs.fuse import mounting

HELP = """\
usage: unionmount umount [-l] MOUNTPOINT ...

Unmount stacks, and wait until their servers have ended, so that the layers are free; one that is mounted elsewhere as
well, as in a container, is not waited for long. -l takes a mount away that is in use; it ends with its last user.
"""

_PATIENCE_S = 3
"""How long to wait for others who have the mount as well: many a namespace is left soon."""


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
    """Unmount ``place`` and wait for its server to end; not for long if the mount is at another place as well."""
    mountpoint = mounting.resolve_mountpoint(place)
    mount = mounting.topmost(mountpoint)
    server = _open_server(mountpoint) if mount is not None and _is_fuse(mount) else -1
    if server < 0 and not mounting.is_mounted(mountpoint):
        raise errors.NotMounted(mountpoint=place)
    try:
        mounting.unmount(mountpoint, lazy=lazy)
        if server < 0 or lazy or mount is None:
            return
        while not select.select([server], [], [], _PATIENCE_S)[0]:
            if os.path.exists(mount.bdi):
                reason = "is still mounted elsewhere, perhaps in a container; its layers stay in use until it is not"
                print(f"unionmount: {errors.readable(place)}: {reason}", file=sys.stderr)
                return
    finally:
        if server >= 0:
            os.close(server)


def _is_fuse(mount: mounting.Mount) -> bool:
    """Tell whether what is mounted may be ours: of any subtype, since that can be chosen."""
    return mount.kind.partition(b".")[0] in (b"fuse", b"fuseblk")


def _open_server(mountpoint: bytes) -> int:
    """Return a descriptor that becomes readable when the server ends (pidfd_open(2)), -1 if there is
    none to wait for.
    """
    try:
        return os.pidfd_open(int(str(attributes.read(mountpoint, "config")["pid"])))
    except (OSError, errors.UnionfsError):
        return -1
