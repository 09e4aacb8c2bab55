"""``unionmount``: picks the family of commands, and turns errors into one line and an exit status."""

from __future__ import annotations

import gc
import os
import sys

from unionfs import cli, errors
from unionfs.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

_COMMANDS = {
    "mount": "mount",
    "umount": "umount",
    "run": "run",
    "diff": "inspect",
    "explain": "inspect",
    "stats": "stats",
    "check": "layers",
    "convert": "layers",
}


_ENOUGH_FOR_A_START = 100_000


def program() -> NoReturn:
    """Run one command, and end this process as soon as that is done.

    To take an interpreter apart takes a tenth of the time of a whole run, and a search for garbage among what is being
    loaded finds none.
    """
    gc.set_threshold(_ENOUGH_FOR_A_START)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ^C ends it as a shell expects, wherever it is
    status = main()
    try:
        cli.flush()
    except OSError:
        pass  # it has been said what ended the command
    os._exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _dispatch(words)
        cli.flush()
        return status
    except errors.UnionfsError as error:
        print(f"unionmount: {error}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        if isinstance(error, BrokenPipeError) and error.filename == cli.STANDARD_OUTPUT:  # as of "| head"
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        else:
            print(f"unionmount: {errors.describe_os_error(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _dispatch(words: list[str]) -> int:
    if words and words[0] in _COMMANDS:
        module = __import__(f"unionfs.cli.{_COMMANDS[words[0]]}", fromlist=["run"])
        if words[1:] in (["-h"], ["--help"]):
            cli.tell(module.HELP, end="")
            return 0
        return int(getattr(module, f"run_{words[0]}")(words[1:]))
    from unionfs.cli import mount

    return mount.run_helper(words)


if __name__ == "__main__":
    program()
