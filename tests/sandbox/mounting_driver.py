"""A program for the tests of fuse/mounting: mounts in one way, says what the kernel shows of it, and unmounts.

python mounting_driver.py WAY MOUNTPOINT [WORD ...]

WAY is ``root``, or for an ordinary user ``namespace`` (a user namespace) or ``helper`` (fusermount3). An ordinary user
is made from root, in a mount namespace where /dev/fuse is open to all, as it is on most machines.
"""

from __future__ import annotations

import os
import stat
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from unionfs import errors
from unionfs.fuse import mounting
from unionfs.sandbox import idmaps, namespaces
from unionfs.syscalls import mounts, process

ORDINARY_ID = 1000
FUSE_INIT = 26
DEVICE_NUMBER = os.makedev(10, 229)


def become_ordinary() -> None:
    process.unshare(process.CLONE_NEWNS)
    mounts.mount(None, b"/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    mounts.mount(b"tmpfs", b"/mnt", b"tmpfs")
    os.umask(0)
    os.mknod("/mnt/fuse", stat.S_IFCHR | 0o666, DEVICE_NUMBER)
    mounts.mount(b"/mnt/fuse", b"/dev/fuse", None, mounts.MS_BIND)
    os.setgroups([])
    os.setgid(ORDINARY_ID)
    os.setuid(ORDINARY_ID)
    process.set_dumpable(dumpable=True)  # or /proc/self is still root's: proc(5)


def say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")


def show(mountpoint: bytes, descriptor: int) -> None:
    (mount,) = [mount for mount in mounting.mountinfo() if mount.mountpoint == mountpoint]
    request = os.read(descriptor, 1 << 20)
    say(mount.kind.decode(), mount.source.decode(), mount.options.decode(), mount.super_options.decode())
    say(int.from_bytes(request[4:8], sys.byteorder) == FUSE_INIT, mounting.is_mounted(mountpoint))


def attempt(function: object, *arguments: object) -> None:
    try:
        function(*arguments)  # type: ignore[operator]
    except errors.UnionfsError as error:
        say(type(error).__name__)


def main(way: str, mountpoint: str, words: list[str]) -> None:
    if way != "root":
        become_ordinary()
    if way == "namespace":
        namespaces.enter(idmaps.single(), None)
    options, unknown = mounting.parse_options(words)
    assert not unknown
    place = mounting.check_mountpoint(mountpoint)
    try:
        descriptor = mounting.acquire(place, options)
    except errors.UnionfsError as error:
        say(type(error).__name__, error)
        return
    show(place, descriptor)
    if mounting.is_mounted(mountpoint):  # of another's nobody can say without asking its server, which is not there
        attempt(mounting.check_mountpoint, mountpoint)
    mounting.unmount(place)
    attempt(mounting.unmount, place)
    say(mounting.is_mounted(mountpoint))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
