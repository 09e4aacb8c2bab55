"""A program for the tests of the sandbox: runs one command, as ``unionmount run`` would, over one of a few roots.

python driver.py KIND [OPTION=VALUE ...] -- COMMAND ...

KIND is what is mounted: ``self`` (the machine's own root), ``overlay`` (the kernel's overlayfs over it), ``usr:DIR``
(the directory DIR with the machine's /usr mounted in it), ``read-only:DIR`` (the same, read-only), ``fail:KIND``
(raises). Options: ``cwd``, ``chroot``, ``env`` (NAME:VALUE), ``finished`` (a file that the callback at the end writes
to), ``thread``, ``slow`` (it says "populating", and waits for ^C), ``terminated`` (a signal comes at the very end).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from unionfs import errors
from unionfs.sandbox import root as roots
from unionfs.sandbox.reports import Pipe
from unionfs.sandbox.run import run_in_stack
from unionfs.syscalls import mounts

USR_LINKS = ("bin", "sbin", "lib", "lib64")


def mount_self(place: bytes) -> None:
    mounts.mount(b"/", place, None, mounts.MS_BIND | mounts.MS_REC)


def mount_overlay(place: bytes) -> None:
    mounts.mount(b"tmpfs", place, b"tmpfs")
    for name in (b"upper", b"work"):
        os.mkdir(place + b"/" + name)
    data = b"lowerdir=/,upperdir=%s/upper,workdir=%s/work" % (place, place)
    mounts.mount(b"overlay", place, b"overlay", 0, data)


def mount_usr(place: bytes, directory: bytes, flags: int = 0) -> None:
    mounts.mount(directory, place, None, mounts.MS_BIND)
    if flags:
        mounts.mount(None, place, None, mounts.MS_BIND | mounts.MS_REMOUNT | flags)
    mounts.mount(b"/usr", place + b"/usr", None, mounts.MS_BIND | mounts.MS_REC)


def fail(kind: str) -> None:
    if kind == "union":
        raise errors.DeviceMissing(device=b"/dev/nothing")
    if kind == "os":
        raise FileNotFoundError(2, "not here", b"/some/layer")
    raise ValueError("a bug")


def mount_kind(kind: str, place: bytes) -> None:
    name, _, value = kind.partition(":")
    if name == "self":
        mount_self(place)
    elif name == "overlay":
        mount_overlay(place)
    elif name == "usr":
        mount_usr(place, os.fsencode(value))
    elif name == "read-only":
        mount_usr(place, os.fsencode(value), mounts.MS_RDONLY)
    else:
        fail(value)


def prepare_for(kind: str, finished: str | None) -> Callable[[bytes], Callable[[], None]]:
    def prepare(place: bytes) -> Callable[[], None]:
        unmounted = os.stat(place)
        mount_kind(kind, place)

        def finish() -> None:
            if finished is not None:
                with open(finished, "w") as stream:
                    stream.write("unmounted" if os.path.samestat(os.stat(place), unmounted) else "still mounted")

        return finish

    return prepare


def populate_slowly(root: bytes, populate: Callable[[bytes], None] = roots.populate) -> None:
    os.write(1, b"populating\n")
    while signal.SIGINT not in signal.sigpending():
        time.sleep(0.01)
    populate(root)


def terminate(_: Pipe) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def run(kind: str, options: dict[str, str], command: list[str]) -> int:
    keywords: dict[str, Any] = {"chroot": "chroot" in options, "cwd": options.get("cwd")}
    if "env" in options:
        keywords["env"] = dict([options["env"].split(":", 1)])
    if "slow" in options:
        roots.populate = populate_slowly
    if "terminated" in options:
        Pipe.close = terminate  # type: ignore[assignment, method-assign]  # the caller's last step
    try:
        return run_in_stack(prepare_for(kind, options.get("finished")), command, **keywords)
    except errors.UnionfsError as error:
        sys.stderr.write(f"unionmount: {error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"unionmount: {errors.describe_os_error(error)}\n")
        return 1


def run_beside_a_thread(kind: str, options: dict[str, str], command: list[str]) -> int:
    enough = threading.Event()
    thread = threading.Thread(target=enough.wait)
    thread.start()
    try:
        return run(kind, options, command)
    finally:
        enough.set()
        thread.join()


def main(arguments: list[str]) -> int:
    end = arguments.index("--")
    options = {name: value for name, _, value in (word.partition("=") for word in arguments[1:end])}
    runner = run_beside_a_thread if "thread" in options else run
    return runner(arguments[0], options, arguments[end + 1 :])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
