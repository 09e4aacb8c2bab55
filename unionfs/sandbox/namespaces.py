"""Entering namespaces of one's own: user (without privilege it is needed for the others), mount, host name, System V
objects, pid for the children.

Runs in the supervisor, a process with one thread that was forked for this.
"""

from __future__ import annotations

import errno
import os

from unionfs import errors
from unionfs.syscalls import mounts, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.sandbox.idmaps import IdMaps
    from unionfs.sandbox.mapping import Mapping

_OWN = process.CLONE_NEWNS | process.CLONE_NEWUTS | process.CLONE_NEWIPC

# Switches that forbid user namespaces: file, the value that does, and what to tell whoever meets it.
_SWITCHES = (
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl user.max_user_namespaces is 0"),
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl kernel.unprivileged_userns_clone is 0"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl kernel.apparmor_restrict_unprivileged_userns is 1",
    ),
)


def needs_user_namespace() -> bool:
    """Tell whether this process may not have a mount namespace without a user namespace around it."""
    return not process.has_capability(process.CAP_SYS_ADMIN)


def enter(maps: IdMaps | None, mapping: Mapping | None) -> None:
    """Move this process into namespaces of its own, and before that into a user namespace with ``maps``, if any. Beside
    mounts these are what else would stay changed on the machine: its name, shared memory and queues of System V.

    ``mapping`` has the process outside write maps of more than the own id; where it fails the own id it is. Mounts made
    here are not seen outside; unmounting outside is followed. Raises errors.NamespacesForbidden.
    """
    kind = "mount" if maps is None else "user"
    try:
        process.unshare(_OWN | (0 if maps is None else process.CLONE_NEWUSER))
        if maps is not None:
            _map_ids(maps, mapping)
        mounts.mount(None, b"/", None, mounts.MS_REC | mounts.MS_SLAVE)
    except OSError as error:
        raise errors.NamespacesForbidden(kind=kind, reason=_reason(error)) from error


def _map_ids(maps: IdMaps, mapping: Mapping | None) -> None:
    from unionfs.sandbox import idmaps  # not needed by root

    if not (mapping is not None and mapping.request()):
        idmaps.write_own(idmaps.IdMaps(maps.uids[:1], maps.gids[:1]))


def _reason(error: OSError) -> str:
    for path, forbidding, reason in _SWITCHES:
        try:
            with open(path) as stream:
                if stream.read().strip() == forbidding:
                    return reason
        except OSError:  # not this kernel's switch
            continue
    if error.errno == errno.ENOSPC:
        return "the limit of namespaces is reached"
    return error.strerror or str(error)


def new_pid_namespace() -> None:
    """Put the next child of this process into a pid namespace of its own, as process 1; later children follow it there.

    Once that child has ended this process can fork no more: pid_namespaces(7). Raises errors.NamespacesForbidden.
    """
    try:
        process.unshare(process.CLONE_NEWPID)
    except OSError as error:
        raise errors.NamespacesForbidden(kind="pid", reason=_reason(error)) from error


def die_with_parent(parent: int, number: int) -> bool:
    """Have this process sent signal ``number`` when its parent ends; tell whether the parent is still ``parent``."""
    process.set_parent_death_signal(number)
    return os.getppid() == parent
