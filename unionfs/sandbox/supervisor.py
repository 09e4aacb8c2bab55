"""The process between the caller and process 1; it has the namespaces, the mount and the duty to clear up.

It is no member of the caller's session, so that what ends the caller (^C, a signal to its process group, SIGKILL)
leaves it to end what is inside, to unmount, and to remove what was temporary. If it is killed itself, process 1 dies
with it.
"""

from __future__ import annotations

import errno
import os

from unionfs.lean import signal
from unionfs.sandbox import init, namespaces, root, signals
from unionfs.syscalls import mounts, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from unionfs.sandbox.deputy import Deputy
    from unionfs.sandbox.mapping import Mapping
    from unionfs.sandbox.plan import Plan


def run(plan: Plan, mapping: Mapping | None) -> int:
    """Run the command of ``plan``; return its status. Raises whatever keeps it from being run."""
    plan = plan._replace(place=make_directory(plan.places))
    try:
        if not plan.chroot:
            namespaces.enter(plan.maps, mapping)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it is ignored children vanish unseen: wait(2)
        process.set_parent_death_signal(signal.SIGTERM)
        if _is_orphan(plan):  # it died before that, and no signal comes
            return 1
        finish = plan.prepare(plan.place)
        try:
            return _run_in_mount(plan)
        finally:
            _unmount(plan.place)
            finish()
    finally:
        remove_directories([plan.place])


def make_directory(places: Iterable[bytes]) -> bytes:
    """Make an empty directory at the first of ``places`` where that can be; return its real path. Raises OSError."""
    failure: OSError | None = None
    for place in places:
        try:
            os.mkdir(place, 0o700)
        except OSError as error:
            failure = error
            continue
        return os.path.realpath(place)
    assert failure is not None
    raise failure


def remove_directories(places: Iterable[bytes]) -> None:
    """Remove those empty directories among ``places`` that are there."""
    for place in places:
        try:
            os.rmdir(place)
        except OSError:  # there is none; or what keeps it from being removed is known already
            continue


def _is_orphan(plan: Plan) -> bool:
    return os.getppid() != plan.caller


def _run_in_mount(plan: Plan) -> int:
    if plan.chroot:
        return _run_chrooted(plan)
    made = root.make_mount_points(plan.place)
    try:
        deputy = _deputy(plan)
        try:
            namespaces.new_pid_namespace()
            return _run_init(plan, deputy)
        finally:
            if deputy is not None:
                deputy.dismiss()
    finally:
        root.remove_mount_points(plan.place, made)


def _deputy(plan: Plan) -> Deputy | None:
    if process.is_superuser():
        return None
    from unionfs.sandbox import deputy  # not needed by root, outside of user namespaces

    return deputy.Deputy(plan.place) if deputy.is_needed() else None


def _run_chrooted(plan: Plan) -> int:
    process.set_child_subreaper()
    others = _children()
    try:
        return _run_init(plan)
    finally:
        _end_children(but=others)


def _run_init(plan: Plan, deputy: Deputy | None = None) -> int:
    lifeline, held = os.pipe()
    child = plan.reports.fork(lambda: _init(plan, lifeline, held, deputy))
    os.close(lifeline)
    os.setsid()
    try:
        return signals.wait_for(child, lambda number: _deliver(plan, number, child))
    finally:
        os.close(held)


def _init(plan: Plan, lifeline: int, held: int, deputy: Deputy | None) -> int:
    os.close(held)
    return init.run(plan, lifeline, deputy)


def _deliver(plan: Plan, number: int, child: int) -> None:
    """Pass a signal on; the one that says that the caller has died ends everything."""
    os.kill(child, signal.SIGKILL if _is_orphan(plan) else number)


def _unmount(place: bytes) -> None:
    """Unmount all that ``prepare`` mounted at ``place``, lazily if someone outside of the run still uses it."""
    flags = 0
    while True:
        try:
            mounts.unmount(place, flags)
        except OSError as error:
            if error.errno == errno.EINVAL:  # nothing is mounted there any more
                return
            if error.errno != errno.EBUSY or flags:
                raise
            flags = mounts.MNT_DETACH


def _children() -> set[int]:
    """Return the process ids of this process's children; see "children" in proc_pid_task(5)."""
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as stream:
            return set(map(int, stream.read().split()))
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return set()


def _end_children(but: set[int]) -> None:
    """Kill all descendants but those children; each orphan of a killed one becomes a child, for this is a subreaper."""
    while remaining := _children() - but:
        for child in remaining:
            os.kill(child, signal.SIGKILL)
        for child in remaining:
            os.waitpid(child, 0)
