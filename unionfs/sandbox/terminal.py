"""The caller's terminal around a run: the process inside gets it as it is, and the caller gets it back as it was.

No pseudo terminal stands between: the process is in the caller's process group and session, so the terminal's own
signals (^C, ^Z, the window's size) and job control reach it as if it had been started without us.
"""

from __future__ import annotations

import os

from unionfs.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Terminal:
    """The controlling terminal, as found when this was made. ``descriptor`` is None when there is none."""

    __slots__ = ("_attributes", "descriptor")

    def __init__(self) -> None:
        self._attributes: list[Any] | None = None
        try:
            self.descriptor: int | None = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:
            self.descriptor = None
            return
        if _in_foreground(self.descriptor):
            import termios

            self._attributes = termios.tcgetattr(self.descriptor)

    def restore(self) -> None:
        """Take the foreground back from a process group that has ended, and undo changes of the terminal's modes.

        Nothing happens if the caller was not, or is no longer, in the foreground: then the terminal is another's.
        """
        if self.descriptor is None:
            return
        if self._attributes is not None:
            self._restore(self.descriptor, self._attributes)
        os.close(self.descriptor)
        self.descriptor = None

    def _restore(self, descriptor: int, attributes: list[Any]) -> None:
        import termios

        old = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})  # or changing it from the background stops us
        try:
            _return_to_foreground(descriptor)
            if _in_foreground(descriptor):
                termios.tcsetattr(descriptor, termios.TCSADRAIN, attributes)
        except (OSError, termios.error):  # the terminal has gone
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


def _in_foreground(descriptor: int) -> bool:
    try:
        return os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:  # hung up
        return False


def _return_to_foreground(descriptor: int) -> None:
    group = os.tcgetpgrp(descriptor)
    if group in (0, os.getpgrp()):  # 0: a group that this pid namespace does not see
        return
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        os.tcsetpgrp(descriptor, os.getpgrp())
    except PermissionError:
        return
