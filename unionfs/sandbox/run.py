"""Run one process in a root that is mounted for it: the package's public face, and the caller's own part in a run.

Four processes: the *caller* passes signals on and waits; the *supervisor* has the namespaces and the mount; *init* is
process 1 in the pid namespace and has the root; the *command* is the process asked for.
"""

from __future__ import annotations

import os
import sys

from unionfs import errors
from unionfs.sandbox import namespaces, signals, supervisor
from unionfs.sandbox.command import Command
from unionfs.sandbox.plan import Plan
from unionfs.sandbox.reports import Pipe
from unionfs.sandbox.terminal import Terminal
from unionfs.syscalls import mounts, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Mapping as Environment

    from unionfs.sandbox.idmaps import IdMaps
    from unionfs.sandbox.mapping import Mapping
    from unionfs.sandbox.plan import Finish, Prepare
    from unionfs.sandbox.signals import Mask

_COERCED_LOCALES = ("C.UTF-8", "C.utf8", "UTF-8")
_SUPERUSER_DIRECTORIES = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def run(
    root: str | bytes | os.PathLike[str],
    arguments: Sequence[str],
    *,
    chroot: bool = False,
    cwd: str | None = None,
    env: Environment[str, str] | None = None,
) -> int:
    """Run ``arguments`` with ``root``, and all mounted below it, as its root directory; see ``run_in_stack``."""
    source = os.path.realpath(os.fsencode(root))

    def bind(place: bytes) -> Finish:
        mounts.mount(source, place, None, mounts.MS_BIND | mounts.MS_REC)
        return _nothing

    return run_in_stack(bind, arguments, chroot=chroot, cwd=cwd, env=env)


def _nothing() -> None:
    """What there is to do after a bind mount."""


def run_in_stack(
    prepare: Prepare,
    arguments: Sequence[str],
    *,
    chroot: bool = False,
    cwd: str | None = None,
    env: Environment[str, str] | None = None,
) -> int:
    """Run one process in a root that ``prepare`` mounts, and return its exit status (128 + n when signal n ended it).

    The process gets its own mount, pid, UTS and IPC namespaces, and a user namespace where the caller may not have
    those otherwise; its own /proc, a minimal /dev, a private /tmp, /sys read-only; the caller's terminal, standard
    streams and inheritable descriptors. SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGALRM and SIGCONT are
    passed on to it. When it stops itself, the caller's process group stops. When it ends, or the caller does, all that
    it started ends.

    ``prepare`` gets an empty directory, mounts something there and returns a function that is called when the process
    has ended and that mount is gone; neither is called in the calling process but in a child, inside the new user and
    mount namespaces, with the watched signals blocked, and the second must not fork. If ``prepare`` raises it must
    leave nothing running.

    ``chroot`` changes the root alone, without namespaces, and mounts nothing in it; that needs CAP_SYS_CHROOT.
    ``cwd`` is a directory in the root; without it that of the caller, or "/" if the root has no such directory.
    ``env`` is the whole environment; without it the caller's.

    In a program with several threads signals are not passed on, as another thread may take them.

    Raises errors.CommandNotFound, errors.CommandNotExecutable, errors.NamespacesForbidden, errors.RunError, and what
    ``prepare`` raises (an exception that is neither an OSError nor an errors.UnionfsError comes as RuntimeError).
    """
    if not arguments:
        raise errors.UsageError(problem="no command to run")
    if chroot and not process.has_capability(process.CAP_SYS_CHROOT):
        raise errors.RunError(command=arguments[0], reason="changing the root needs root; run it without --chroot")
    maps = _id_maps() if not chroot and namespaces.needs_user_namespace() else None
    command = _command(arguments, cwd, env, becomes_root=maps is not None)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    terminal = Terminal()
    with signals.Blocked() as blocked:
        try:
            return _run_at_place(prepare, command, chroot=chroot, maps=maps, terminal=terminal, mask=blocked.mask)
        finally:
            terminal.restore()  # first, as a signal that has come since may end this process


def _id_maps() -> IdMaps:
    from unionfs.sandbox import idmaps  # not needed by root

    return idmaps.for_caller()


def _mapping(maps: IdMaps) -> Mapping:
    from unionfs.sandbox.mapping import Mapping  # not needed by root

    return Mapping(maps)


def _command(
    arguments: Sequence[str], cwd: str | None, env: Environment[str, str] | None, *, becomes_root: bool
) -> Command:
    environment = _own_environment() if env is None else dict(env)
    if becomes_root and env is None:
        environment["PATH"] = _path_of_root(environment.get("PATH", os.defpath))
    return Command(tuple(arguments), environment, cwd or _current_directory(), cwd is not None)


def _own_environment() -> dict[str, str]:
    """Return what this process was given, without the LC_CTYPE that Python adds where nothing names a locale (PEP 538):
    the command may be a program that sorts or counts by it.
    """
    environment = dict(os.environ)
    if environment.get("LC_CTYPE") in _COERCED_LOCALES:
        with open("/proc/self/environ", "rb") as stream:
            if not any(word.startswith(b"LC_CTYPE=") for word in stream.read().split(b"\0")):
                del environment["LC_CTYPE"]
    return environment


def _path_of_root(path: str) -> str:
    """Add what an ordinary user's PATH lacks on some systems, and package managers as root insist on."""
    directories = path.split(":")
    return ":".join(directories + [name for name in _SUPERUSER_DIRECTORIES if name not in directories])


def _current_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # it was removed
        return "/"


def _run_at_place(
    prepare: Prepare,
    command: Command,
    *,
    chroot: bool,
    maps: IdMaps | None,
    terminal: Terminal,
    mask: Mask,
) -> int:
    # Not on a disk if possible, where a layer may be that must keep its times.
    places = unused_paths((os.environ.get("XDG_RUNTIME_DIR"), "/run", "/dev/shm", os.environ.get("TMPDIR"), "/tmp"))
    reports = Pipe()
    try:
        has_terminal = terminal.descriptor is not None
        plan = Plan(prepare, command, places, chroot, maps, has_terminal, mask, os.getpid(), reports)
        status = _supervise(plan)
        error = reports.receive()
    finally:
        reports.close()
        supervisor.remove_directories(places)  # if the supervisor was killed
    if error is not None:
        raise error
    return status


def unused_paths(candidates: Iterable[str | None]) -> list[bytes]:
    """Return a path in each of the directories ``candidates`` that nobody else uses.

    (The module ``tempfile`` takes longer to load than all that a run needs of this package.)
    """
    name = f"unionmount-{os.getpid()}-{os.urandom(4).hex()}"
    return [os.fsencode(os.path.join(directory, name)) for directory in candidates if directory]


def _supervise(plan: Plan) -> int:
    mapping = _mapping(plan.maps) if plan.maps is not None and plan.maps.helpers else None
    child = plan.reports.fork(lambda: supervisor.run(plan, mapping))
    if mapping is not None:
        mapping.serve(child, plan.mask)
    if len(os.listdir("/proc/self/task")) > 1:
        return signals.shell_status(os.waitpid(child, 0)[1])
    return signals.wait_for(child, lambda number: os.kill(child, number))
