"""Process 1 of a run: makes the root, starts the command, passes signals on to it, buries the orphans, ends with it.

When it ends the kernel ends all others in its pid namespace (pid_namespaces(7)), so nothing inside outlives the
command, or the supervisor, with which this process dies.
"""

from __future__ import annotations

import os

from unionfs.lean import signal
from unionfs.sandbox import command, root, signals
from unionfs.syscalls import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from unionfs.sandbox.deputy import Deputy
    from unionfs.sandbox.plan import Plan
    from unionfs.sandbox.reports import Pipe


def run(plan: Plan, lifeline: int, deputy: Deputy | None = None) -> int:
    """Be process 1 of a run whose root is mounted at ``plan.place``; return the command's status.

    ``lifeline`` is the end of a pipe whose other end the supervisor alone holds. Raises OSError.
    """
    _die_with_supervisor(lifeline)
    meant_for_command = _close_private(plan.reports, deputy)
    if plan.chroot:
        os.chroot(plan.place)
        os.chdir("/")
    else:
        process.unshare(process.CLONE_NEWNS)
        root.populate(plan.place)
        root.enter(plan.place)
    if not plan.has_terminal:
        os.setsid()  # what the command sends to its process group must not reach the caller's
    if deputy is not None:
        deputy.call()
    child = plan.reports.fork(lambda: _become_command(plan))
    plan.reports.stop_sending()
    for descriptor in meant_for_command:
        os.close(descriptor)
    stopped = _stop_group if plan.has_terminal else None
    return signals.wait_for(child, lambda number: os.kill(child, number), stopped, reap_all=True)


def _die_with_supervisor(lifeline: int) -> None:
    process.set_parent_death_signal(signal.SIGKILL)
    os.set_blocking(lifeline, False)
    try:
        os.read(lifeline, 1)
    except BlockingIOError:
        return
    os._exit(1)  # it died before it could be asked for


def _close_private(reports: Pipe, deputy: Deputy | None) -> list[int]:
    """Close the caller's own descriptors, and return those meant for the command, without the standard three."""
    meant = []
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            if descriptor > 2 and os.get_inheritable(descriptor):
                meant.append(descriptor)
            elif descriptor > 2 and not (reports.keeps(descriptor) or (deputy and deputy.keeps(descriptor))):
                os.close(descriptor)
        except OSError:  # the one that listed the directory
            continue
    return meant


def _become_command(plan: Plan) -> NoReturn:
    signals.reset_for_command(plan.mask)
    command.become(plan.command)


def _stop_group(number: int) -> None:
    """Stop the caller, as the command is: else a shell would not know that it is its turn. SIGCONT comes the same way.

    Process 1 cannot name the caller, which is in its process group, and goes on itself: pid_namespaces(7).
    """
    os.kill(0, number)
