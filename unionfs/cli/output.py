"""What a command that looks at layers tells on its standard output, which may be closed."""

from __future__ import annotations

import errno
import os
import sys

from unionfs import errors


def line(text: str) -> None:
    """Print names as they are, whatever their bytes. Raises OSError that names the output."""
    if sys.stdout is None:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF), errors.STANDARD_OUTPUT)
    try:
        sys.stdout.buffer.write(os.fsencode(text) + b"\n")
    except OSError as error:  # not only when it is flushed: PYTHONUNBUFFERED
        error.filename = errors.STANDARD_OUTPUT
        raise
