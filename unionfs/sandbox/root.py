"""The root directory that a process gets: what is mounted in it besides the stack, and moving into it.

Each place is looked up as if the root were "/" already, so a symbolic link in a layer (``tmp -> /private/tmp``) leads
to where the process will see it lead, never out of the stack. Runs in process 1 of the new pid namespace, in a mount
namespace of its own, so nothing here has to be undone.
"""

from __future__ import annotations

import errno
import os

from unionfs.sandbox import devices
from unionfs.syscalls import files, mounts

#: Directories that something is mounted on, from the Filesystem Hierarchy Standard.
MOUNT_POINTS = (b"proc", b"sys", b"dev", b"tmp")

_RESOLVER = b"etc/resolv.conf"
_UNTRUSTED = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOEXEC
_UNTRUSTED_READ_ONLY = (
    mounts.MOUNT_ATTR_RDONLY | mounts.MOUNT_ATTR_NOSUID | mounts.MOUNT_ATTR_NODEV | mounts.MOUNT_ATTR_NOEXEC
)


def make_mount_points(root: bytes) -> list[bytes]:
    """Make those of MOUNT_POINTS that ``root`` lacks and can be given; return the names of those made.

    A read-only root, or one on which this fails, goes without.
    """
    made = []
    for name in MOUNT_POINTS:
        try:
            os.mkdir(os.path.join(root, name), 0o755)
        except OSError:  # it is there, or must be left out
            continue
        made.append(name)
    return made


def remove_mount_points(root: bytes, names: list[bytes]) -> None:
    """Remove what ``make_mount_points`` made, so that it is no change of the stack; what is not empty stays."""
    for name in names:
        try:
            os.rmdir(os.path.join(root, name))
        except OSError:
            continue


def populate(root: bytes) -> None:
    """Mount /proc, /sys (read-only), a minimal /dev and a private /tmp in ``root``, where it has the directories, and
    what names are resolved by.

    Changes the working directory. Raises OSError.
    """
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    umask = os.umask(0)
    try:
        for name, mount in ((b"proc", _mount_proc), (b"sys", _mount_sys), (b"tmp", _mount_tmp)):
            if _change_to(directory, name):
                mount()
        if _change_to(directory, b"dev"):
            devices.mount()
            _change_to(directory, b"dev")  # from below the mount into it
            devices.populate()
        _show_resolver(directory)
    finally:
        os.umask(umask)
        os.close(directory)


def _change_to(root: int, name: bytes) -> bool:
    """Make ``name``, beneath the descriptor ``root``, the working directory; tell whether there is such a directory."""
    try:
        directory = files.openat2(root, name, os.O_PATH | os.O_DIRECTORY, files.RESOLVE_IN_ROOT)
    except OSError:
        return False
    try:
        os.fchdir(directory)
    finally:
        os.close(directory)
    return True


def _mount_proc() -> None:
    try:
        mounts.mount(b"proc", b".", b"proc", _UNTRUSTED)
    except PermissionError:
        # In a container that hides parts of /proc the kernel gives no new one (mount_too_revealing() in
        # fs/namespace.c). The old one shows the container's processes, and /proc/self is right all the same.
        mounts.mount(b"/proc", b".", None, mounts.MS_BIND | mounts.MS_REC)


def _mount_sys() -> None:
    """Show the machine's /sys, as a new sysfs would need a new network namespace; read-only, or not at all."""
    _show(b"/sys", mounts.AT_FDCWD, b".")


def _show_resolver(root: int) -> None:
    """Show the machine's resolv.conf(5) in place of a link that leads nowhere: into a /run that is not in the stack.

    Mounted on the link itself, it makes no change of the stack.
    """
    try:
        os.close(files.openat2(root, _RESOLVER, os.O_PATH, files.RESOLVE_IN_ROOT))
    except OSError:
        pass
    else:
        return
    try:
        link = files.openat2(root, _RESOLVER, os.O_PATH | os.O_NOFOLLOW, files.RESOLVE_IN_ROOT)
    except OSError:
        return
    try:
        _show(b"/" + _RESOLVER, link, b"")
    except OSError:
        pass  # not on this kernel: all else works
    finally:
        os.close(link)


def _show(path: bytes, directory: int, name: bytes) -> None:
    """Mount what the machine has at ``path`` on ``name`` in ``directory`` (b"" for that itself), read-only, or not at
    all.
    """
    try:
        tree = mounts.clone_tree(mounts.AT_FDCWD, path, recursive=True)
    except FileNotFoundError:
        return
    try:
        mounts.set_attributes(tree, b"", _UNTRUSTED_READ_ONLY, recursive=True)
        mounts.attach_tree(tree, directory, name)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # mount_setattr(2) came with Linux 5.12
            raise
    finally:
        os.close(tree)


def _mount_tmp() -> None:
    mounts.mount(b"tmpfs", b".", b"tmpfs", mounts.MS_NOSUID | mounts.MS_NODEV, b"mode=1777")


def enter(root: bytes) -> None:
    """Make ``root`` the root of this mount namespace and of this process; the old one is gone. Raises OSError.

    The old root is stacked on the new one and then taken off: pivot_root(2), notes.
    """
    os.chdir(root)
    mounts.pivot_root(b".", b".")
    mounts.unmount(b".", mounts.MNT_DETACH)
    os.chdir("/")
