"""A minimal /dev: what every program may expect, no device of the machine. Works on the current directory.

The set is that of the OCI runtime specification ("Default Devices", config-linux.md), and FUSE's device as the machine
has it, so that a run can mount stacks of its own, or be run in a run.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs.syscalls import mounts

_NODES = (
    (b"null", 1, 3),
    (b"zero", 1, 5),
    (b"full", 1, 7),
    (b"random", 1, 8),
    (b"urandom", 1, 9),
    (b"tty", 5, 0),
)
_LINKS = (
    (b"fd", b"/proc/self/fd"),
    (b"stdin", b"/proc/self/fd/0"),
    (b"stdout", b"/proc/self/fd/1"),
    (b"stderr", b"/proc/self/fd/2"),
    (b"ptmx", b"pts/ptmx"),
)
_QUIET = mounts.MS_NOSUID | mounts.MS_NOEXEC
_TTY_GROUP = b",gid=5"  # who owns terminals nearly everywhere; grantpt(3)


def mount() -> None:
    """Mount an empty file system for /dev on the current directory. Raises OSError."""
    mounts.mount(b"tmpfs", b".", b"tmpfs", mounts.MS_NOSUID, b"mode=755,size=64m")


def populate() -> None:
    """Fill the current directory, the one made by ``mount``. The umask must be 0. Raises OSError."""
    for name, major, minor in _NODES:
        _make_node(name, os.makedev(major, minor))
    _bind(b"/dev/fuse", b"fuse")
    for name, target in _LINKS:
        os.symlink(target, name)
    os.mkdir(b"pts", 0o755)
    _mount_terminals()
    os.mkdir(b"shm", 0o1777)
    mounts.mount(b"shm", b"shm", b"tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, b"mode=1777")
    _bind_console()


def _make_node(name: bytes, device: int) -> None:
    try:
        os.mknod(name, stat.S_IFCHR | 0o666, device)
    except PermissionError:  # never allowed in a user namespace: user_namespaces(7)
        _bind(b"/dev/" + name, name)


def _bind(source: bytes, name: bytes) -> None:
    os.mknod(name, stat.S_IFREG | 0o600)
    try:
        mounts.mount(source, name, None, mounts.MS_BIND)
    except FileNotFoundError:  # the machine has none either
        os.unlink(name)


def _mount_terminals() -> None:
    """Mount pseudo terminals of this sandbox's own (devpts); the group is left out where it does not exist."""
    options = b"newinstance,ptmxmode=0666,mode=620"
    try:
        mounts.mount(b"devpts", b"pts", b"devpts", _QUIET, options + _TTY_GROUP)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        mounts.mount(b"devpts", b"pts", b"devpts", _QUIET, options)


def _bind_console() -> None:
    """Show our own terminal, which is none of the new ones, as /dev/console, so that ttyname(3) finds a name for it."""
    for descriptor in (0, 1, 2):
        try:
            name = os.ttyname(descriptor)
        except OSError:
            continue
        _bind(os.fsencode(name), b"console")
        return
