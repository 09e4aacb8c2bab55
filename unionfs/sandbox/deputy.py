"""The deputy: a process outside that does for those inside what the kernel refuses them in a user namespace.

A change of owner to an id that does not exist there, and the making of a device, fail before any file system hears of
them (``refusals``). A filter hands such calls to this process, which has the union remember what was asked for: it says
so in extended attributes that the union's server takes as requests. For a file elsewhere (a tmpfs) a change of owner
succeeds and is forgotten. It is a child of the supervisor, cannot be seen from inside, and dies with the supervisor.
"""

from __future__ import annotations

import errno
import os
import select
import stat

from unionfs import idmap
from unionfs.lean import signal
from unionfs.sandbox import refusals
from unionfs.syscalls import files, process, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from typing import NoReturn

    from unionfs.syscalls.seccomp import Call

_PATH_MAX = 4096
_AT_FDCWD = 0xFFFFFF9C  # -100 as the low half of an argument
_LOW = 0xFFFFFFFF
_CAP_CHOWN, _CAP_MKNOD = 0, 27
_OWN_DESCRIPTORS = (b"/proc/self/fd/", b"/proc/thread-self/fd/", b"/dev/fd/")


class Deputy:
    """One deputy: made by the supervisor before process 1, which then installs the filter."""

    __slots__ = ("_inside", "process_id")

    def __init__(self, root: bytes) -> None:
        """Start the process; ``root`` is where the union is mounted. Raises OSError."""
        import _socket  # the whole of "socket" takes longer to load than the command to start

        outside, self._inside = _socket.socketpair()
        self.process_id = os.fork()
        if self.process_id == 0:
            self._inside.close()
            _serve(outside, os.stat(root).st_dev)
        outside.close()

    def keeps(self, descriptor: int) -> bool:
        """Tell whether ``descriptor`` is needed to call the deputy."""
        return descriptor == self._inside.fileno()

    def call(self) -> None:
        """In process 1: have the deputy answer for this process's descendants from now on, if the kernel can.

        Raises OSError if it has ended.
        """
        import _socket

        uids, gids = read_namespace()
        code = refusals.program(
            seccomp.ARCHITECTURE, seccomp.NUMBERS, uids, gids, allow=seccomp.RET_ALLOW, ask=seccomp.RET_USER_NOTIF
        )
        try:
            listener = seccomp.listen(code)
        except OSError:  # an old kernel, or somebody else listens: then such calls fail as they always did
            self._inside.close()
            return
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, listener.to_bytes(4, "little"))
        try:
            self._inside.sendmsg([b"\0"], [rights])
        except OSError as error:  # it was killed, and nobody would answer
            error.filename = "the process that changes owners for this run"
            raise
        self._inside.close()
        os.close(listener)

    def dismiss(self) -> None:
        """End the process."""
        self._inside.close()
        os.kill(self.process_id, signal.SIGKILL)
        os.waitpid(self.process_id, 0)


def read_namespace() -> tuple[tuple[idmap.Range, ...], tuple[idmap.Range, ...]]:
    """Return the user and group ids of this process's user namespace."""
    with open("/proc/self/uid_map") as uids, open("/proc/self/gid_map") as gids:
        return idmap.parse_namespace(uids.read()), idmap.parse_namespace(gids.read())


def is_needed() -> bool:
    """Tell whether this process is in a user namespace that lacks ids, on a machine whose system calls are known."""
    return bool(seccomp.ARCHITECTURE) and idmap.in_namespace(*_read_maps()) is not None


def _read_maps() -> tuple[str, str]:
    with open("/proc/self/uid_map") as uids, open("/proc/self/gid_map") as gids:
        return uids.read(), gids.read()


# -- in the deputy ---------------------------------------------------------------------------------------------------


def _serve(outside: _socket.socket, device: int) -> NoReturn:
    try:
        process.set_parent_death_signal(signal.SIGKILL)
        _close_others(outside.fileno())
        listener = _receive_listener(outside)
        if listener >= 0:
            _answer_all(listener, device)
    finally:
        os._exit(0)


def _close_others(keep: int) -> None:
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor not in (0, 1, 2, keep):
            try:
                os.close(descriptor)
            except OSError:  # the one that listed the directory
                continue
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.chdir("/")


def _receive_listener(outside: _socket.socket) -> int:
    """Return the listener that process 1 sends, -1 if it has none."""
    import _socket

    _data, ancillary, _flags, _address = outside.recvmsg(1, _socket.CMSG_SPACE(4), _socket.MSG_CMSG_CLOEXEC)
    return int.from_bytes(ancillary[0][2][:4], "little") if ancillary else -1


def _answer_all(listener: int, device: int) -> None:
    """Answer until the last process under the filter has ended."""
    names = {number: name for name, number in seccomp.NUMBERS.items()}
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    while True:
        ((_descriptor, events),) = poll.poll()
        if not events & select.POLLIN:
            return
        try:
            call = seccomp.receive(listener)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EINTR):
                raise
            continue
        seccomp.answer(listener, call, _act(listener, call, names[call.number], device))


def _act(listener: int, call: Call, name: str, device: int) -> int:
    """Do what ``call`` asks for; return 0 or the errno."""
    try:
        caller = Caller(call.process_id)
        if not seccomp.still_waits(listener, call):
            return errno.EINTR
        if name in refusals.NODES:
            _make_node(caller, name, call.arguments, device)
        else:
            _give(caller, name, call.arguments, device)
    except OSError as error:
        return error.errno or errno.EPERM
    return 0


class Caller:
    """The thread that waits: its rights, and what its paths mean. Raises OSError as the system call would."""

    __slots__ = ("_place", "capabilities", "gid", "uid", "umask")

    def __init__(self, process_id: int) -> None:
        self._place = b"/proc/%d/" % process_id
        with open(self._place + b"status", "rb") as stream:
            fields = dict(line.split(b":", 1) for line in stream.read().splitlines() if b":" in line)
        self.capabilities = int(fields[b"CapEff"], 16)
        self.uid, self.gid = int(fields[b"Uid"].split()[3]), int(fields[b"Gid"].split()[3])
        self.umask = int(fields[b"Umask"], 8)

    def need(self, capability: int) -> None:
        """Raise PermissionError for who may not do in his namespace what he asks for."""
        if not self.capabilities >> capability & 1:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def text(self, address: int) -> bytes:
        """Read a path from the caller's memory."""
        memory = os.open(self._place + b"mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            page_end = _PATH_MAX - address % _PATH_MAX  # the next page may not exist
            read = os.pread(memory, page_end, address)
            if b"\0" not in read:
                read += os.pread(memory, _PATH_MAX, address + page_end)
        finally:
            os.close(memory)
        path, end, _rest = read[:_PATH_MAX].partition(b"\0")
        if not end:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        return path

    def descriptor(self, number: int) -> int:
        """Return an O_PATH descriptor of what the caller has open as ``number``."""
        try:
            return os.open(self._place + b"fd/%d" % (number & _LOW), os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def open(self, base: int, path: bytes, flags: int = 0) -> int:
        """Return an O_PATH descriptor of ``path``, relative to the caller's descriptor ``base`` or AT_FDCWD."""
        for prefix in _OWN_DESCRIPTORS:
            if path.startswith(prefix) and path[len(prefix) :].isdigit():
                return self.descriptor(int(path[len(prefix) :]))
        if not path:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        root = os.open(self._place + b"root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            whole = path if path.startswith(b"/") else os.path.join(self._directory(base), path)
            return files.openat2(root, whole, os.O_PATH | flags, files.RESOLVE_IN_ROOT)
        finally:
            os.close(root)

    def _directory(self, base: int) -> bytes:
        """Return the path, in the caller's root, of the directory that a relative path starts from."""
        link = b"cwd" if base & _LOW == _AT_FDCWD else b"fd/%d" % (base & _LOW)
        try:
            place, root = os.readlink(self._place + link), os.readlink(self._place + b"root")
        except FileNotFoundError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None
        return place if root == b"/" else place.removeprefix(root) or b"/"


def _give(caller: Caller, name: str, arguments: tuple[int, ...], device: int) -> None:
    """Give a file to somebody who does not exist: it is shown as root's, with all that a change of owner entails."""
    caller.need(_CAP_CHOWN)
    asked = [_id(arguments[at]) for at in refusals.OWNERS[name]]
    target = _target(caller, name, arguments)
    try:
        shown = (_existing(number, ids) for number, ids in zip(asked, read_namespace(), strict=True))
        os.chown(files.proc_path(target), *shown)
        if os.stat(target).st_dev == device:
            os.setxattr(files.proc_path(target), idmap.OWNER_REQUEST, idmap.encode_request(*asked))
    finally:
        os.close(target)


def _existing(number: int, ids: tuple[idmap.Range, ...]) -> int:
    known = number == idmap.KEEP or any(range_.view <= number < range_.view + range_.size for range_ in ids)
    return number if known else min(range_.view for range_ in ids)


def _target(caller: Caller, name: str, arguments: tuple[int, ...]) -> int:
    if name == "fchown":
        return caller.descriptor(arguments[0])
    if name != "fchownat":
        return caller.open(_AT_FDCWD, caller.text(arguments[0]), os.O_NOFOLLOW if name == "lchown" else 0)
    path, flags = caller.text(arguments[1]), arguments[4]
    if not path and flags & files.AT_EMPTY_PATH:
        if arguments[0] & _LOW != _AT_FDCWD:
            return caller.descriptor(arguments[0])
        path = b"."
    return caller.open(arguments[0], path, os.O_NOFOLLOW if flags & files.AT_SYMLINK_NOFOLLOW else 0)


def _id(argument: int) -> int:
    number = argument & _LOW
    return idmap.KEEP if number == refusals.KEEP else number


def _make_node(caller: Caller, name: str, arguments: tuple[int, ...], device: int) -> None:
    """Make a device, in the union's eyes."""
    caller.need(_CAP_MKNOD)
    base, address = (_AT_FDCWD, arguments[0]) if name == "mknod" else (arguments[0], arguments[1])
    mode, number = (arguments[at] & _LOW for at in refusals.NODES[name])
    place, new = os.path.split(caller.text(address))
    directory = caller.open(base, place or b".", os.O_DIRECTORY)
    try:
        if new in (b"", b".", b".."):
            raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))
        if os.stat(directory).st_dev != device:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        request = idmap.encode_request(mode & ~caller.umask, number, caller.uid, caller.gid, name=new)
        os.setxattr(files.proc_path(directory), idmap.NODE_REQUEST, request)
        _look_again(directory, new)
    finally:
        os.close(directory)


def _look_again(directory: int, name: bytes) -> None:
    """Have the kernel forget that there is no such name: to create one it asks the file system first (LOOKUP_EXCL)."""
    try:
        os.mknod(name, stat.S_IFREG | 0o600, dir_fd=directory)
    except FileExistsError:
        return
