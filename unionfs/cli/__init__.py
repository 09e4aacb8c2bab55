"""The commands: each parses, calls, prints and picks an exit status, and decides nothing.

What stands here is all that they print on the standard output, which may be closed or full.
"""

from __future__ import annotations

import errno
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


STANDARD_OUTPUT = "standard output"
"""What an OSError about it has as its file name."""


def tell(text: str, end: str = "\n") -> None:
    """Print a line, and names in it as they are, whatever their bytes. Raises OSError that names the output."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), STANDARD_OUTPUT)
    _output(lambda: sys.stdout.buffer.write(os.fsencode(text + end)))


def flush() -> None:
    """See that what was told is written. Raises OSError that names the output."""
    if sys.stdout is not None:
        _output(sys.stdout.flush)


def answer(text: str) -> NoReturn:
    """Tell what was asked for in the place of a command (``--help``), and end. Raises SystemExit, or OSError."""
    tell(text, end="")
    flush()
    raise SystemExit(0)


def _output(write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:  # not only when it is flushed: PYTHONUNBUFFERED
        error.filename = STANDARD_OUTPUT
        raise
