"""Waiting for a child and passing signals on to it, without handlers: what is watched is blocked, and asked for.

Blocked signals are not lost: they stay pending until sigwaitinfo(2) takes them, also those that come before the child.
"""

from __future__ import annotations

import os

from unionfs.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Mask = Iterable[int]

FORWARDED = frozenset(
    {signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM}
    | {signal.SIGCONT}
)
WATCHED = FORWARDED | {signal.SIGCHLD}

_SI_KERNEL = 0x80  # si_code of a signal that no process sent: sigaction(2)
_SIGNAL_STATUS = 128  # what shells add to the number of a signal that ended a process


class Blocked:
    """While entered, ``wait_for`` works: what it watches is blocked, in this thread and in children started by it."""

    __slots__ = ("_ignored", "mask")

    mask: Mask
    """The signal mask from before."""

    def __enter__(self) -> Blocked:
        self.mask = signal.pthread_sigmask(signal.SIG_BLOCK, WATCHED)
        self._ignored = _heed_children()
        return self

    def __exit__(self, *_: object) -> None:
        if self._ignored:
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        restore(self.mask)


def _heed_children() -> bool:
    """Stop ignoring SIGCHLD, with which the status of children is lost (wait(2)); tell whether it was ignored."""
    if signal.getsignal(signal.SIGCHLD) != signal.SIG_IGN:
        return False
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except ValueError:  # not in the main thread, where alone Python allows it
        return False
    return True


def restore(mask: Mask) -> None:
    """Set this thread's signal mask to ``mask``."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def reset_for_command(mask: Mask) -> None:
    """Undo, before execve(2), what Python and ``Blocked`` changed: ignored signals stay ignored in a new program, and
    one that is waiting must not be taken by a handler of this one.
    """
    handled = {number for number in FORWARDED if callable(signal.getsignal(number))}
    for number in handled | {signal.SIGPIPE, signal.SIGXFSZ}:
        signal.signal(number, signal.SIG_DFL)
    restore(mask)


def wait_for(
    child: int, deliver: Callable[[int], None], stopped: Callable[[int], None] | None = None, *, reap_all: bool = False
) -> int:
    """Wait until ``child`` ends, giving ``deliver`` each watched signal that it does not have from the terminal itself;
    return the shell's status for its end.

    ``stopped`` is told the signal that stopped the child. ``reap_all`` is for process 1, which inherits the orphans.
    The watched signals must be blocked since before the child was started, and this must be called right after that.

    When ^C has ended the child, this process has SIGINT pending: once it is unblocked, a shell's loop or script ends as
    well, which an exit status does not make it do.
    """
    early = signal.sigpending()  # whoever sent those, the child was not there: two that are pending are one
    interrupted = False
    while True:
        info = signal.sigwaitinfo(WATCHED)
        if info.si_signo == signal.SIGCHLD:
            status = _reap(child, stopped, reap_all=reap_all)
            if status is None:
                continue
            if interrupted and status == _SIGNAL_STATUS + signal.SIGINT:
                os.kill(os.getpid(), signal.SIGINT)
            return status
        direct = _from_terminal(info)
        interrupted |= direct and info.si_signo == signal.SIGINT
        if not direct or info.si_signo in early:
            deliver(info.si_signo)
        early.discard(info.si_signo)


def _reap(child: int, stopped: Callable[[int], None] | None, *, reap_all: bool) -> int | None:
    flags = os.WNOHANG if stopped is None else os.WNOHANG | os.WUNTRACED
    while True:
        found, status = os.waitpid(-1 if reap_all else child, flags)
        if not found:
            return None
        if found == child and stopped is not None and os.WIFSTOPPED(status):
            stopped(os.WSTOPSIG(status))
        elif found == child:
            return shell_status(status)


def shell_status(status: int) -> int:
    """Return the exit status, or 128 and the signal's number, for a status of wait(2)."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else _SIGNAL_STATUS - code


def _from_terminal(info: signal.struct_siginfo) -> bool:
    """Tell whether the terminal sent this to all of its foreground process group, so that nobody need pass it on."""
    return info.si_code == _SI_KERNEL and info.si_signo in (signal.SIGINT, signal.SIGQUIT)
