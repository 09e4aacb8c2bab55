"""Getting a mount from the kernel and giving it back: mount(2) on /dev/fuse, or fusermount3 where that is not allowed.

It knows mount options and mount tables, and nothing of requests, unions or the process that serves. A mount point that
may hang (its server being stopped or dead) is looked up in /proc/self/mountinfo before anything touches it.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import errors
from unionfs.lean import NamedTuple
from unionfs.syscalls import mounts, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Any

    AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

DEVICE = "/dev/fuse"
SUBTYPE = "unionmount"
HELPERS = ("fusermount3", "fusermount")

_ROOT_MODE = f"{stat.S_IFDIR:o}"
_DATA_LIMIT_BYTES = 4095  # one page and its NUL: mount(2)

# Word -> (flag, whether the word sets it); mount(8), "filesystem-independent mount options".
_FLAG_WORDS = {
    "ro": (mounts.MS_RDONLY, True),
    "rw": (mounts.MS_RDONLY, False),
    "nosuid": (mounts.MS_NOSUID, True),
    "suid": (mounts.MS_NOSUID, False),
    "nodev": (mounts.MS_NODEV, True),
    "dev": (mounts.MS_NODEV, False),
    "noexec": (mounts.MS_NOEXEC, True),
    "exec": (mounts.MS_NOEXEC, False),
    "sync": (mounts.MS_SYNCHRONOUS, True),
    "async": (mounts.MS_SYNCHRONOUS, False),
    "dirsync": (mounts.MS_DIRSYNC, True),
    "noatime": (mounts.MS_NOATIME, True),
    "atime": (mounts.MS_NOATIME, False),
    "nodiratime": (mounts.MS_NODIRATIME, True),
    "diratime": (mounts.MS_NODIRATIME, False),
    "relatime": (mounts.MS_RELATIME, True),
    "norelatime": (mounts.MS_RELATIME, False),
    "strictatime": (mounts.MS_STRICTATIME, True),
    "nostrictatime": (mounts.MS_STRICTATIME, False),
    "lazytime": (mounts.MS_LAZYTIME, True),
    "nolazytime": (mounts.MS_LAZYTIME, False),
    "nosymfollow": (mounts.MS_NOSYMFOLLOW, True),
    "symfollow": (mounts.MS_NOSYMFOLLOW, False),
}
# What mount(8) and fstab(5) say to themselves and still hand down; "default_permissions" is always on.
_IGNORED_WORDS = frozenset(
    {"defaults", "auto", "noauto", "user", "nouser", "users", "owner", "group", "nofail", "_netdev", "silent", "loud"}
    | {"default_permissions"}
)
_SECURITY_WORDS = ("context", "fscontext", "defcontext", "rootcontext")


class MountOptions(NamedTuple):
    """What the kernel is told about a mount, apart from its layers. Every field has a default that fits."""

    flags: int = 0
    """MS_* flags of mount(2)."""
    fsname: str = SUBTYPE
    """The source that mount tables show."""
    subtype: str = SUBTYPE
    """What follows ``fuse.`` in the type that mount tables show."""
    blkdev: bool = False
    """Mount a block device, named by ``fsname``, with the type fuseblk: what is written on it is of no matter, but for
    it the kernel hands on syncfs(2) and what a remount has to write (Linux 6.18, ``fuse_sync_fs`` in fs/fuse/inode.c).
    """
    allow_other: bool = False
    """Users other than the one who mounts may use it (the permission bits are checked all the same)."""
    max_read: int = 0
    """Largest read request in bytes, 0 for the kernel's own limit."""
    blksize: int = 0
    """Block size in bytes that stat(2) reports, 0 for the usual."""
    security: tuple[str, ...] = ()
    """SELinux words, ``context="..."`` and its relatives, as they are."""

    @property
    def kind(self) -> str:
        """The type of the mount."""
        return ("fuseblk" if self.blkdev else "fuse") + (f".{self.subtype}" if self.subtype else "")

    @property
    def read_only(self) -> bool:
        """Whether the kernel itself is to refuse every change."""
        return bool(self.flags & mounts.MS_RDONLY)

    @property
    def atime(self) -> int:
        """When reading changes access times, as a MOUNT_ATTR_*. FUSE leaves that to the server."""
        if self.flags & mounts.MS_NOATIME:
            return mounts.MOUNT_ATTR_NOATIME
        return mounts.MOUNT_ATTR_STRICTATIME if self.flags & mounts.MS_STRICTATIME else mounts.MOUNT_ATTR_RELATIME


def parse_options(words: Iterable[str]) -> tuple[MountOptions, list[str]]:
    """Read mount option words; return what is known of them as a value, and the words that are not known, in order.

    A later word wins over an earlier one, as for mount(8). Raises errors.UsageError for a number that is none.
    """
    options = MountOptions()
    unknown = []
    for word in words:
        flag, sets = _FLAG_WORDS.get(word, (0, True))
        if flag:
            options = options._replace(flags=options.flags | flag if sets else options.flags & ~flag)
        elif word not in _IGNORED_WORDS and not word.startswith(("x-", "comment=")):
            changes = _named_option(options, word)
            if changes is None:
                unknown.append(word)
            else:
                options = options._replace(**changes)
    return options, unknown


def _named_option(options: MountOptions, word: str) -> dict[str, Any] | None:
    """Return the fields of ``options`` that ``word`` changes, None when it is not known."""
    name, equals, value = word.partition("=")
    if word in ("allow_other", "blkdev"):
        return {word: True}
    if equals and name in ("fsname", "subtype"):
        return {name: value}
    if equals and name in ("max_read", "blksize"):
        if not value.isdecimal():
            raise errors.UsageError(problem=f"mount option '{word}': not a number of bytes")
        return {name: int(value)}
    if equals and name in _SECURITY_WORDS:
        return {"security": (*options.security, word)}
    return None


def open_device() -> int:
    """Open /dev/fuse and return the descriptor: one connection, good for one mount in this user namespace.

    Raises errors.DeviceMissing or errors.DeviceForbidden.
    """
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise errors.DeviceMissing(device=DEVICE) from error
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):  # a node without the module behind it
            raise errors.DeviceMissing(device=DEVICE) from error
        raise errors.DeviceForbidden(device=DEVICE, reason=error.strerror) from error


def mount_fuse(device: int, mountpoint: bytes, options: MountOptions, *, user_id: int, group_id: int) -> None:
    """Mount the connection ``device`` on the directory ``mountpoint`` with mount(2).

    Needs CAP_SYS_ADMIN in the user namespace of the mount namespace, the one in which ``device`` was opened.
    ``user_id`` and ``group_id`` are the owner's, as numbered there. Raises errors.MountForbidden or errors.MountError.
    See "Mount options" in the kernel's Documentation/filesystems/fuse/fuse.rst.
    """
    words = [f"fd={device}", f"rootmode={_ROOT_MODE}", f"user_id={user_id}", f"group_id={group_id}"]
    data = os.fsencode(",".join(words + _common_words(options)))
    if len(data) > _DATA_LIMIT_BYTES:
        raise errors.MountError(mountpoint=mountpoint, reason="its mount options are longer than a page")
    try:
        mounts.mount(os.fsencode(options.fsname), mountpoint, os.fsencode(options.kind), options.flags, data)
    except PermissionError as error:
        raise errors.MountForbidden(mountpoint=mountpoint, reason=error.strerror) from error
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise errors.DeviceMissing(device=DEVICE) from error
        if options.blkdev:
            raise errors.BlockDeviceRefused(
                mountpoint=mountpoint, device=options.fsname, reason=error.strerror
            ) from error
        raise errors.MountError(mountpoint=mountpoint, reason=error.strerror) from error


def _common_words(options: MountOptions) -> list[str]:
    """The words that mount(2) and fusermount3 both take."""
    words = ["default_permissions", *options.security]
    if options.allow_other:
        words.append("allow_other")
    if options.max_read:
        words.append(f"max_read={options.max_read}")
    if options.blksize:
        words.append(f"blksize={options.blksize}")
    return words


def mount_with_helper(mountpoint: bytes, options: MountOptions) -> int:
    """Have fusermount3 mount on ``mountpoint``, outside of any user namespace; return the connection's descriptor.

    Raises errors.MountForbidden without a helper, errors.FusermountFailed with what it said. The protocol (the variable
    ``_FUSE_COMMFD`` names a socket that the descriptor comes through) is that of libfuse's lib/mount.c.
    """
    import socket  # heavy, and not needed by those who may mount for themselves

    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = ["-o", helper_options(options), "--", os.fsdecode(mountpoint)]
        process_id, complaints = _spawn_helper(mountpoint, arguments, theirs.fileno())
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1, socket.MSG_CMSG_CLOEXEC)
    status, said = _finish_helper(process_id, complaints)
    if status or not descriptors:
        for descriptor in descriptors:
            os.close(descriptor)
        raise errors.FusermountFailed(mountpoint=mountpoint, reason=said or f"exit status {status}")
    return descriptors[0]


def helper_options(options: MountOptions) -> str:
    """Return ``options`` as fusermount3 takes them behind ``-o``."""
    words = [word for word, (flag, sets) in _FLAG_WORDS.items() if sets and options.flags & flag]
    names = {"fsname": options.fsname, "subtype": options.subtype}
    named = [f"{name}={_escape(value)}" for name, value in names.items() if value]
    return ",".join(words + named + ["blkdev"] * options.blkdev + _common_words(options))


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace(",", "\\,")


def _spawn_helper(mountpoint: bytes, arguments: list[str], socket_descriptor: int | None) -> tuple[int, int]:
    """Start fusermount3; return its process id and the descriptor that its standard error can be read from."""
    helper = _find_helper()
    if helper is None:
        raise errors.MountForbidden(mountpoint=mountpoint, reason="not root, and there is no fusermount3")
    environment = dict(os.environ, LC_ALL="C")
    if socket_descriptor is not None:
        environment["_FUSE_COMMFD"] = str(socket_descriptor)
        os.set_inheritable(socket_descriptor, True)
    readable, writable = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, writable, 2)]
        process_id = os.posix_spawn(helper, [helper, *arguments], environment, file_actions=actions, setsigmask=())
    except OSError as error:
        os.close(readable)
        raise errors.FusermountFailed(mountpoint=mountpoint, reason=error.strerror) from error
    finally:
        os.close(writable)
    return process_id, readable


def _find_helper() -> str | None:
    directories = os.environ.get("PATH", os.defpath).split(":")
    for name in HELPERS:
        for directory in (*directories, "/usr/bin", "/bin"):
            path = os.path.join(directory, name)
            if os.path.isabs(path) and os.access(path, os.X_OK):
                return path
    return None


def _finish_helper(process_id: int, complaints: int) -> tuple[int, str]:
    """Wait for fusermount3; return its exit status and what it said, on one line, without its own name."""
    with open(complaints, "rb") as stream:
        said = os.fsdecode(stream.read())
    _, status = os.waitpid(process_id, 0)
    lines = [line.partition(": ")[2] or line for line in said.splitlines()]
    return os.waitstatus_to_exitcode(status), "; ".join(lines)


def acquire(mountpoint: bytes, options: MountOptions) -> int:
    """Mount on the directory ``mountpoint`` in the way that this process may; return the connection's descriptor.

    With CAP_SYS_ADMIN in its user namespace that is mount(2), and every user of the namespace may use the mount;
    otherwise fusermount3. Raises errors.MountError and its kin.
    """
    if not process.has_capability(process.CAP_SYS_ADMIN):
        return mount_with_helper(mountpoint, options)
    device = open_device()
    try:
        everyone = options._replace(allow_other=True)
        mount_fuse(device, mountpoint, everyone, user_id=os.geteuid(), group_id=os.getegid())
    except BaseException:
        os.close(device)
        raise
    return device


def unmount(mountpoint: bytes, *, lazy: bool = False) -> None:
    """Unmount what is topmost on ``mountpoint``; ``lazy`` takes it out of sight and ends it when the last user goes.

    Raises errors.MountBusy, errors.NotMounted, errors.MountForbidden or errors.FusermountFailed. See umount2(2).
    """
    if not process.has_capability(process.CAP_SYS_ADMIN):
        _unmount_with_helper(mountpoint, lazy=lazy)
        return
    try:
        mounts.unmount(mountpoint, mounts.UMOUNT_NOFOLLOW | (mounts.MNT_DETACH if lazy else 0))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise errors.MountBusy(mountpoint=mountpoint) from error
        if error.errno in (errno.EINVAL, errno.ENOENT):
            raise errors.NotMounted(mountpoint=mountpoint) from error
        raise errors.MountForbidden(mountpoint=mountpoint, reason=error.strerror) from error


def _unmount_with_helper(mountpoint: bytes, *, lazy: bool) -> None:
    arguments = ["-u", *(["-z"] if lazy else []), "--", os.fsdecode(mountpoint)]
    status, said = _finish_helper(*_spawn_helper(mountpoint, arguments, None))
    if not status:
        return
    if os.strerror(errno.EBUSY) in said:
        raise errors.MountBusy(mountpoint=mountpoint)
    if mountpoint not in {mount.mountpoint for mount in mountinfo()}:
        raise errors.NotMounted(mountpoint=mountpoint)
    raise errors.FusermountFailed(mountpoint=mountpoint, reason=said or f"exit status {status}")


class Mount(NamedTuple):
    """One line of /proc/self/mountinfo; names are bytes without escapes. See proc_pid_mountinfo(5)."""

    mount_id: int
    parent_id: int
    device: bytes
    root: bytes
    mountpoint: bytes
    options: bytes
    kind: bytes
    source: bytes
    super_options: bytes

    @property
    def bdi(self) -> bytes:
        """What sysfs has of a FUSE file system for as long as that is mounted, in whichever mount namespace
        (sysfs-class-bdi in the kernel's Documentation/ABI; ``fuse_bdi_init`` in fs/fuse/inode.c).
        """
        suffix = b"-fuseblk" if self.kind.startswith(b"fuseblk") else b""  # the device has one of its own
        return b"/sys/class/bdi/" + self.device + suffix


def mountinfo(table: bytes | None = None) -> Iterator[Mount]:
    """Yield the mounts of this mount namespace, oldest first, or those of a given text in the format of mountinfo."""
    if table is None:
        with open("/proc/self/mountinfo", "rb") as stream:
            table = stream.read()
    for line in table.splitlines():
        head, _, tail = line.partition(b" - ")  # optional fields stand between the two
        mount_id, parent_id, device, *names = head.split(b" ")[:6]
        root, mountpoint, options = map(unescape, names)
        yield Mount(
            int(mount_id), int(parent_id), device, root, mountpoint, options, *map(unescape, tail.split(b" ", 2))
        )


def unescape(field: bytes) -> bytes:
    r"""Undo the octal escapes (``\040`` for a space) of a field of mountinfo."""
    first, *others = field.split(b"\\")
    return first + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in others)


def resolve_mountpoint(path: AnyPath) -> bytes:
    """Return ``path`` absolute and without symbolic links, asking nothing of what is mounted at it."""
    name = os.fsencode(path)
    name = name.rstrip(b"/") or name[:1]
    parent, base = os.path.split(name)
    if base in (b"", b".", b".."):
        return os.path.realpath(name) if name else name  # nothing has an empty name: path_resolution(7)
    resolved = os.path.join(os.path.realpath(parent or b"."), base)
    try:
        os.readlink(resolved)  # refused without a request to the server when the name is a mounted directory
    except OSError:
        return resolved
    return os.path.realpath(resolved)


def is_mounted(path: AnyPath) -> bool:
    """Tell whether the topmost mount on ``path`` is one of ours, by its type."""
    resolved = resolve_mountpoint(path)
    top = topmost(resolved)
    return top is not None and is_ours(top)


def is_ours(mount: Mount) -> bool:
    """Tell whether the type of a mount is what we give it, unless told otherwise: fuse.unionmount."""
    return os.fsdecode(mount.kind) in (MountOptions().kind, MountOptions(blkdev=True).kind)


def topmost(mountpoint: bytes) -> Mount | None:
    """Return the topmost mount on a resolved mountpoint, None if there is none."""
    found = None
    for mount in mountinfo():
        if mount.mountpoint == mountpoint:
            found = mount
    return found


def check_mountpoint(path: AnyPath) -> bytes:
    """Return ``path`` resolved, when a stack can be mounted there.

    Raises errors.MountpointMissing, MountpointNotDirectory, MountpointTaken, or MountError for anything else.
    """
    if is_mounted(path):
        raise errors.MountpointTaken(mountpoint=path)
    resolved = resolve_mountpoint(path)
    try:
        mode = os.stat(resolved).st_mode
    except FileNotFoundError as error:
        raise errors.MountpointMissing(mountpoint=path) from error
    except OSError as error:
        raise errors.MountError(mountpoint=path, reason=error.strerror) from error
    if not stat.S_ISDIR(mode):
        raise errors.MountpointNotDirectory(mountpoint=path)
    return resolved
