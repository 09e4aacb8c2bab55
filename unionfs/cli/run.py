"""``unionmount run``: one process inside a stack of its own."""

from __future__ import annotations

import os
import stat

from unionfs import errors
from unionfs.fuse import server
from unionfs.fuse.mounting import MountOptions
from unionfs.layers.writable import remove_tree
from unionfs.sandbox.run import make_directory, run_in_stack
from unionfs.union.stack import Config, default_workdir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HELP = """\
usage: unionmount run --lower DIR [--lower DIR ...] [--upper DIR [--work DIR]] [--chroot] [--] [COMMAND [ARGUMENT ...]]

Run one process whose root directory is a stack of layers, the first --lower topmost ('--lower /' is this machine).
Without --upper its changes go to a temporary layer that is removed at the end; without a command it is a shell.
Exits with the status of the process, or 128 + n when signal n ended it.
"""


class Request:
    """What the command line asks for."""

    def __init__(self) -> None:
        self.lower: list[str] = []
        self.upper: str | None = None
        self.work: str | None = None
        self.transport = "auto"
        self.chroot = False
        self.command: list[str] = []


def run_run(words: list[str]) -> int:
    """Run the command in its stack; return its exit status."""
    request = _parse(words)
    if not request.lower:
        raise errors.NoLayers()
    command = request.command or [os.environ.get("SHELL") or "/bin/sh"]
    if request.upper is not None:
        upper = os.fsencode(request.upper)
        work = os.fsencode(request.work) if request.work is not None else default_workdir(upper)
        return _run(request, command, upper, work, lambda: None)
    return _run_disposable(request, command)


def _run_disposable(request: Request, command: list[str]) -> int:
    """Run on a temporary writable layer, and remove it from within the namespaces, where its owners are known."""
    base = make_directory((os.environ.get("TMPDIR"), "/tmp", "/var/tmp"))
    upper, work = os.path.join(base, b"upper"), os.path.join(base, b"work")
    os.mkdir(upper)
    os.mkdir(work)
    _take_mode(upper, request.lower[0])

    def remove() -> None:
        directory = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        for name in (b"upper", b"work"):
            remove_tree(directory, name)
        os.close(directory)
        os.rmdir(base)

    try:
        return _run(request, command, upper, work, remove)
    finally:
        _clear(remove)


def _clear(remove: Callable[[], None]) -> None:
    """Remove a temporary layer that is still there, because the run could not begin."""
    try:
        remove()
    except OSError:
        pass  # it is gone; or how the run ended is more worth knowing


def _take_mode(upper: bytes, lower: str) -> None:
    """Let the new root directory have the mode of the one it hides."""
    try:
        os.chmod(upper, stat.S_IMODE(os.stat(lower).st_mode))
    except OSError:
        pass  # opening the layer says what is wrong with it


def _run(request: Request, command: list[str], upper: bytes, work: bytes, remove: Callable[[], None]) -> int:
    config = Config([os.fsencode(path) for path in request.lower], upper, work, volatile=request.upper is None)

    def prepare(place: bytes) -> Callable[[], None]:
        service = server.Service(config, place, MountOptions(), request.transport)
        process = server.start(service)

        def finish() -> None:
            os.waitpid(process, 0)
            remove()

        return finish

    return run_in_stack(prepare, command, chroot=request.chroot)


def _parse(words: list[str]) -> Request:
    request = Request()
    rest = iter(words)
    for word in rest:
        if word in ("-h", "--help"):
            print(HELP, end="")
            raise SystemExit(0)
        if word == "--":
            request.command = list(rest)
        elif not word.startswith("-"):
            request.command = [word, *rest]
        else:
            _option(request, word, rest)
    return request


def _option(request: Request, word: str, rest: Iterator[str]) -> None:
    name, equals, value = word.partition("=")
    if word == "--chroot":
        request.chroot = True
        return
    if name not in ("--lower", "--upper", "--work", "--transport"):
        raise errors.UsageError(problem=f"unknown option '{word}'")
    if not equals:
        found = next(rest, None)
        if found is None:
            raise errors.UsageError(problem=f"option '{word}' needs a value")
        value = found
    if name == "--lower":
        request.lower.append(value)
    else:
        setattr(request, name[2:], value)
