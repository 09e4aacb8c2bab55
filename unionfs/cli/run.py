"""``unionmount run``: one process inside a stack of its own."""

from __future__ import annotations

import os
import stat

from unionfs import cli, errors
from unionfs.fuse import server
from unionfs.fuse.mounting import MountOptions
from unionfs.layers.writable import remove_tree
from unionfs.sandbox.run import run_in_stack, unused_paths
from unionfs.sandbox.supervisor import make_directory
from unionfs.union.stack import Config, default_workdir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.sandbox.plan import Finish

HELP = """\
usage: unionmount run --lower DIR [--lower DIR ...] [--upper DIR [--work DIR]] [OPTION ...] [--] [COMMAND [ARG ...]]

Run one process whose root directory is a stack of layers, the first --lower topmost ('--lower /' is this machine).
Without --upper its changes go to a temporary layer that is removed at the end; without a command it is $SHELL.

  --upper DIR           the directory that takes the changes, and keeps them
  --work DIR            an empty directory on its file system; without it a hidden one beside it
  --chroot              change the root alone: no namespaces, nothing mounted in it (root only)
  --transport NAME      direct (Linux's /dev/fuse), fusepy (libfuse), or auto

The process has its own /proc, /dev, /tmp and host name; it is root, for an ordinary user in a user namespace.
Exits with the status of the process, or 128 + n when signal n ended it; 127 when it is not found, 126 when it cannot be
executed, 1 when the stack cannot be mounted, 2 when this command line is wrong.
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
    if request.work is not None and request.upper is None:
        raise errors.UsageError(problem="'--work' needs '--upper', for whose changes it is")
    command = request.command or [os.environ.get("SHELL") or "/bin/sh"]
    if request.upper is None:
        return _run_disposable(request, command)
    upper = os.fsencode(request.upper)
    work = os.fsencode(request.work) if request.work is not None else default_workdir(upper)
    return run_in_stack(lambda place: _serve(request, upper, work, place), command, chroot=request.chroot)


def _run_disposable(request: Request, command: list[str]) -> int:
    """Run on a temporary writable layer. It is made and removed within the namespaces, by a process that knows its
    owners and outlives this one.
    """
    candidates = unused_paths((os.environ.get("TMPDIR"), "/tmp", "/var/tmp"))

    def prepare(place: bytes) -> Finish:
        base = make_directory(candidates)
        try:
            finish = _serve(request, *_make_layer(base, request.lower[0]), place)
        except BaseException:
            _remove_layer(base)
            raise

        def finish_and_remove() -> None:
            finish()
            _remove_layer(base)

        return finish_and_remove

    try:
        return run_in_stack(prepare, command, chroot=request.chroot)
    finally:
        for base in candidates:
            _clear(base)


def _make_layer(base: bytes, lower: str) -> tuple[bytes, bytes]:
    """Make an upper directory, with the mode of the root directory that it hides, and its workdir."""
    upper, work = os.path.join(base, b"upper"), os.path.join(base, b"work")
    os.mkdir(upper)
    os.mkdir(work)
    try:
        os.chmod(upper, stat.S_IMODE(os.stat(lower).st_mode))
    except OSError:
        pass  # opening the layer says what is wrong with it
    return upper, work


def _remove_layer(base: bytes) -> None:
    directory = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name in map(os.fsencode, os.listdir(directory)):
            remove_tree(directory, name)
    finally:
        os.close(directory)
    os.rmdir(base)


def _clear(base: bytes) -> None:
    """Remove a temporary layer that is still there, because who had to was killed."""
    try:
        _remove_layer(base)
    except OSError:
        pass  # it is gone; or how the run ended is more worth knowing


def _serve(request: Request, upper: bytes, work: bytes, place: bytes) -> Finish:
    """Mount the stack at ``place``; return what waits for the end of its server."""
    config = Config([os.fsencode(path) for path in request.lower], upper, work, volatile=request.upper is None)
    process = server.start(server.Service(config, place, MountOptions(), request.transport, bound=True))

    def finish() -> None:
        os.waitpid(process, 0)

    return finish


def _parse(words: list[str]) -> Request:
    request = Request()
    rest = iter(words)
    for word in rest:
        if word in ("-h", "--help"):
            cli.answer(HELP)
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
