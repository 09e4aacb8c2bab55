"""The server process: opens the stack, mounts, serves, and says "mounted" or why not to the process that started it.

It is always a process of its own, forked from one that then only waits. In the background it keeps no descriptor of the
one who called, least of all standard error: a caller that reads it to its end would wait for ever.
"""

from __future__ import annotations

import gc
import os
import sys
import syslog

from unionfs import errors
from unionfs.fuse import modes, mounting, pipes
from unionfs.fuse.device import PassthroughBacking, Server
from unionfs.fuse.dispatch import Dispatcher
from unionfs.fuse.wakefulness import go_ahead_of_others
from unionfs.lean import NamedTuple, dumps, format_exc, signal
from unionfs.syscalls import mounts, process
from unionfs.union import stack as stacks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import NoReturn

    from unionfs.fuse.modes import Mode
    from unionfs.fuse.mounting import Mount, MountOptions
    from unionfs.fuse.wire.requests import Request
    from unionfs.idmap import Ownership
    from unionfs.union.stack import Config, Stack

TRANSPORTS = ("auto", "direct", "fusepy")
_MOUNTED = b"+"
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_ALL_IDS = ["0", "0", "4294967295"]
_GC_THRESHOLD = 200_000


class Service(NamedTuple):
    """What to serve: the stack, where, and how."""

    config: Config
    mountpoint: bytes
    options: MountOptions
    transport: str = "auto"
    debug: bool = False
    mode: str = modes.AUTO
    bound: bool = False
    """Whether a server in the background ends with the process that starts it."""


def start(service: Service) -> int:
    """Start a server in the background; return its process id once the mount answers. Raises UnionfsError."""
    check(service)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reading)
        _run_background(service, writing)
    os.close(writing)
    with open(reading, "rb") as stream:
        told = stream.read()
    if told == _MOUNTED:
        return child
    os.waitpid(child, 0)
    raise _retold(told, service)


def serve(service: Service) -> None:
    """Serve in this very process until the mount ends. Raises UnionfsError if it cannot be mounted."""
    check(service)
    _serve(service, lambda: None, _complain)


def check(service: Service) -> None:
    """See that there is such a transport, and that a stack can be mounted over what it is made of. Raises
    errors.UsageError, errors.MountpointInLayer.
    """
    if service.transport not in TRANSPORTS:
        known = ", ".join(TRANSPORTS)
        raise errors.UsageError(problem=f"no such transport: '{service.transport}'; there are {known}")
    config = service.config
    for layer in [config.upper, config.workdir] if _isolates() else [*config.lowers, config.upper, config.workdir]:
        if layer is None or not os.path.isdir(layer):
            continue
        relation = stacks.relate(service.mountpoint, layer)
        if relation in ("is", "is inside"):
            raise errors.MountpointInLayer(mountpoint=service.mountpoint, relation=relation, layer=layer)


def _isolates() -> bool:
    """Tell whether layers will be opened such that our own mount does not show in them; see _open_isolated."""
    return process.has_capability(process.CAP_SYS_ADMIN) or stacks.can_clone()


def _retold(told: bytes, service: Service) -> errors.UnionfsError:
    """Make the exception anew that ended the server before it was mounted."""
    if not told:
        return errors.ServerDied(mountpoint=service.mountpoint, reason="it ended without a word")
    status, _, text = os.fsdecode(told).partition(" ")
    return errors.Retold(text=text, status=int(status))


def _run_background(service: Service, report: int) -> NoReturn:
    """In the child: serve, and exit without running anything of the parent's."""
    status = 1
    caller = _Caller(report)
    try:
        os.setsid()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if service.bound:
            process.set_parent_death_signal(signal.SIGTERM)  # if it died before, ready() fails
        _close_inherited(report)
        _serve(service, caller.ready, _log)
        status = 0
    except errors.UnionfsError as error:
        caller.failed(error.exit_status, str(error))
    except OSError as error:
        caller.failed(1, errors.describe_os_error(error))
    except BaseException:
        _log(format_exc())
    finally:
        os._exit(status)


class _Caller:
    """Who started the server and waits at the other end of the pipe ``report`` until it is mounted, and no longer."""

    __slots__ = ("_report",)

    def __init__(self, report: int) -> None:
        self._report = report

    def ready(self) -> None:
        """Say that the mount answers. From now on the descriptor's number may be that of any file."""
        os.write(self._report, _MOUNTED)
        os.close(self._report)
        self._report = -1

    def failed(self, status: int, text: str) -> None:
        """Say what ended the server, to the system log if nobody waits any longer."""
        if self._report >= 0:
            os.write(self._report, os.fsencode(f"{status} {text}"))
        else:
            _log(text)


def _close_inherited(keep: int) -> None:
    """Close what the caller left open, and point the standard streams nowhere."""
    null = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != keep:
            try:
                os.close(descriptor)
            except OSError:
                pass  # the directory that was just listed


def _complain(text: str) -> None:
    """Write to standard error, in the foreground."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _log(text: str) -> None:
    """Write to the system log what a user should report."""
    syslog.openlog("unionmount")
    for line in text.splitlines():
        syslog.syslog(syslog.LOG_ERR, line)


def _serve(service: Service, ready: Callable[[], None], report: Callable[[str], None]) -> None:
    if service.config.owners is None:
        service.config.owners = _owners_here()
    if _transport(service) == "fusepy":
        _serve_fusepy(service, ready, report)
        return
    os.umask(0)
    stack = _open_isolated(service.config)
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # or a mount without a server could stay
        device = mounting.acquire(service.mountpoint, _with_read_only(service, stack))
        _serve_device(service, stack, device, ready, report)
    finally:
        stack.close()


def _serve_fusepy(service: Service, ready: Callable[[], None], report: Callable[[str], None]) -> None:
    from unionfs.fuse import fusepy_adapter  # needs packages and a library that most have no use for

    fusepy_adapter.serve(
        service.config,
        service.mountpoint,
        service.options,
        debug=service.debug,
        ready=ready,
        open_stack=_open_isolated,
        describe=lambda stack, statistics, name: _describe(name, service, stack, None, statistics),
        report=report,
    )


def _transport(service: Service) -> str:
    """Return how to reach the kernel: directly wherever there is a /dev/fuse, otherwise through fusepy."""
    if service.transport != "auto":
        return service.transport
    return "direct" if sys.platform == "linux" else "fusepy"


def _with_read_only(service: Service, stack: Stack) -> MountOptions:
    options = service.options
    if stack.edit is None:
        options = options._replace(flags=options.flags | mounts.MS_RDONLY)
    return options


def _owners_here() -> Ownership | None:
    """Return how to map owners in the user namespace of this process, None in one that has them all."""
    with open("/proc/self/uid_map") as uids, open("/proc/self/gid_map") as gids:
        uid_map, gid_map = uids.read(), gids.read()
    if uid_map.split() == gid_map.split() == _ALL_IDS:
        return None
    from unionfs import idmap  # not needed by most

    return idmap.in_namespace(uid_map, gid_map)


def _open_isolated(config: Config) -> Stack:
    """Open the stack such that nothing mounted later can show in it, our own mount least of all.

    Layers are clones of their mounts where this process may make them. In a user namespace it may not, for a mount with
    locked children; there the stack is opened in a mount namespace that nobody else sees and that is left right away.
    """
    if stacks.can_clone() or not process.has_capability(process.CAP_SYS_ADMIN):
        return stacks.open_stack(config)
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    directory = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        process.unshare(process.CLONE_NEWNS)
        mounts.mount(None, b"/", None, mounts.MS_REC | mounts.MS_PRIVATE)
        return stacks.open_stack(config)
    finally:
        process.setns(home, process.CLONE_NEWNS)
        os.fchdir(directory)
        os.close(home)
        os.close(directory)


def _serve_device(
    service: Service, stack: Stack, device: int, ready: Callable[[], None], report: Callable[[str], None]
) -> None:
    table_entry = mounting.topmost(service.mountpoint)
    try:
        server = _server(service, stack, device, report)
        _heed_signals(server)
        os.chdir("/")
        go_ahead_of_others()
        gc.freeze()
        gc.set_threshold(_GC_THRESHOLD, 20, 100)
        server.run(lambda: _announce(table_entry, ready))
    finally:
        os.close(device)  # first: what is mounted from a block device would ask this process, as it is unmounted
        _detach(table_entry)


def _server(service: Service, stack: Stack, device: int, report: Callable[[str], None]) -> Server:
    dispatcher = _dispatcher(stack, modes.wanted(service.mode), PassthroughBacking(device))
    server = Server(device, dispatcher, report)
    dispatcher.describe = lambda name: _describe(name, service, stack, dispatcher.mode.name, server.statistics())
    dispatcher.notify = server.send
    if stack.edit is not None:
        stack.edit.copyup.deferring = True
    if service.debug:
        _trace(dispatcher)
    return server


def _heed_signals(server: Server) -> None:
    """Have the server end when it is asked to, but by no signal that its caller wants ignored, as nohup(1) does."""
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda _number, _frame: server.stop())
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _dispatcher(stack: Stack, wanted: Sequence[Mode], backing: PassthroughBacking) -> Dispatcher:
    if stack.config.owners is None:
        return Dispatcher(stack, wanted, backing)
    from unionfs.fuse.verbs.mapped import MappedDispatcher  # not needed by most

    return MappedDispatcher(stack, wanted, backing)


def _describe(
    name: bytes, service: Service, stack: Stack, mode: str | None, statistics: dict[str, object]
) -> bytes | None:
    """Return the virtual attribute ``user.unionfs.NAME`` of the root directory, in JSON."""
    if name == b"config":
        config = service.config
        shown = {
            "lower": [os.fsdecode(path) for path in config.lowers],
            "upper": None if config.upper is None else os.fsdecode(config.upper),
            "workdir": None if config.workdir is None else os.fsdecode(config.workdir),
            "dialect": None if stack.upper is None else stack.upper.dialect.name,
            "mode": mode,
            "pid": os.getpid(),
        }
        return dumps(shown).encode()
    if name == b"stats":
        return dumps(statistics).encode()
    return None


def _trace(dispatcher: Dispatcher) -> None:
    """Print each request and its reply on standard error."""
    from unionfs.fuse.wire import render

    handle = dispatcher.handle

    def traced(request: Request) -> object:
        _complain(render.request(request))
        reply = handle(request)
        shown = render.reply(reply) if isinstance(reply, bytes) else type(reply).__name__
        _complain(f"    {shown}")
        return reply

    dispatcher.handle = traced  # type: ignore[assignment, method-assign]


def _announce(entry: Mount | None, ready: Callable[[], None]) -> None:
    """The mount answers: set what can be set only now, and tell who waits for it."""
    if entry is not None:
        _read_further_ahead(entry)
    ready()


def _read_further_ahead(entry: Mount) -> None:
    """Let the kernel ask for as much at once as is answered without a copy."""
    try:
        with open(entry.bdi + b"/read_ahead_kb", "wb", buffering=0) as setting:
            setting.write(b"%d" % (pipes.MOST_BYTES >> 10))
    except OSError:
        pass  # not root, or no sysfs: the default of 128 KiB remains


def _detach(entry: Mount | None) -> None:
    """Take our mount away if it is still there, and only if it is ours: another may stand at its mountpoint by now."""
    if entry is None or mounting.topmost(entry.mountpoint) != entry:
        return
    try:
        mounting.unmount(entry.mountpoint, lazy=True)
    except errors.MountError:
        pass  # gone in between
