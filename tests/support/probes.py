"""What this machine can do, found by trying: each probe returns None, or the reason why a test has to be skipped.

A reason that no package can cure begins with "this kernel": those are the only skips that CI accepts.
"""

from __future__ import annotations

import ctypes.util
import functools
import importlib.util
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Probe = Callable[[], str | None]

PROBES: dict[str, Probe] = {}
PROBE_LIMIT_S = 20


def probe(name: str) -> Callable[[Probe], Probe]:
    """Register the decorated function, which runs at most once a session."""

    def register(function: Probe) -> Probe:
        PROBES[name] = functools.cache(function)
        return PROBES[name]

    return register


def missing(*names: str) -> str | None:
    """Return the first reason why the machine lacks one of ``names``, or None. Raises KeyError for an unknown name."""
    return next((reason for name in names if (reason := PROBES[name]()) is not None), None)


def requires(*names: str) -> pytest.MarkDecorator:
    """Mark a test, class or module (``pytestmark``) that needs all of ``names``."""
    unknown = set(names) - set(PROBES)
    assert not unknown, f"no such probe: {unknown}"
    return pytest.mark.requires(*names)


def need(*names: str) -> None:
    """Skip the running test or fixture where the machine lacks one of ``names``."""
    reason = missing(*names)
    if reason is not None:
        pytest.skip(reason)


def kernel() -> tuple[int, int]:
    """Return the running kernel's version, as (6, 18)."""
    major, minor = platform.release().split("-")[0].split(".")[:2]
    return int(major), int(minor)


def _attempt(*command: str | Path) -> str | None:
    """Run a command that shows whether something works; the first line of its complaint is the reason."""
    done = subprocess.run(command, capture_output=True, timeout=PROBE_LIMIT_S, check=False)
    if done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return said[0] if said else f"{command[0]} exited with {done.returncode}"


def _program(name: str, package: str) -> Probe:
    def installed() -> str | None:
        return None if shutil.which(name) else f"{name} is not installed: apt-get install {package}"

    return installed


for _name, _package in {
    "fusermount3": "fuse3",
    "fuse-overlayfs": "fuse-overlayfs",
    "mkfs.xfs": "xfsprogs",
    "mkfs.btrfs": "btrfs-progs",
    "mkfs.ext4": "e2fsprogs",
    "mkfs.vfat": "dosfstools",
    "setfacl": "acl",
    "getfattr": "attr",
    "gcc": "gcc",
    "git": "git",
    "make": "make",
    "sqlite3": "sqlite3",
    "strace": "strace",
    "debootstrap": "debootstrap",
    "podman": "podman",
    "runc": "runc",
    "newuidmap": "uidmap",
    "dpkg-deb": "dpkg",
    "mount.fuse3": "fuse3",
    "buildah": "buildah",
}.items():
    PROBES[_name] = functools.cache(_program(_name, _package))


@probe("root")
def _root() -> str | None:
    return None if os.geteuid() == 0 else "not run as root"


@probe("fuse")
def _fuse() -> str | None:
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}"
    return None


@probe("overlayfs")
def _overlayfs() -> str | None:
    with tempfile.TemporaryDirectory(prefix="unionfs-probe-") as base:
        stack = [Path(base, name) for name in ("lower", "upper", "work", "merged")]
        for directory in stack:
            directory.mkdir()
        options = "lowerdir={},upperdir={},workdir={}".format(*stack)
        reason = _attempt("mount", "-t", "overlay", "-o", options, "overlay", stack[-1])
        if reason is None:
            reason = _attempt("umount", stack[-1])
    return (
        None if reason is None else f"the kernel's overlayfs cannot be mounted over {tempfile.gettempdir()}: {reason}"
    )


@probe("userns")
def _userns() -> str | None:
    reason = _attempt("unshare", "--user", "--map-root-user", "--mount", "true")
    return None if reason is None else f"no user namespace: {reason}"


@probe("userns-fuse")
def _userns_fuse() -> str | None:
    options = "fd=3,rootmode=40000,user_id=0,group_id=0"
    script = f"mount -t tmpfs none /mnt && exec 3<>/dev/fuse && mount -i -t fuse -o {options} probe /mnt"
    reason = _attempt("unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script)
    return None if reason is None else f"no FUSE mount in a user namespace: {reason}"


@probe("libfuse2")
def _libfuse2() -> str | None:
    if importlib.util.find_spec("fuse") is None:
        return "the Python package fusepy is not installed: pip install fusepy"
    return None if ctypes.util.find_library("fuse") else "libfuse 2 is not installed: apt-get install libfuse2"


@probe("loop")
def _loop() -> str | None:
    if (reason := missing("root")) is not None:
        return reason
    reason = _attempt("losetup", "--find")
    return None if reason is None else f"no loop device: {reason}"


@probe("passthrough")
def _passthrough() -> str | None:
    if kernel() < (6, 9):
        return f"this kernel ({platform.release()}) has no FUSE passthrough, which came with 6.9"
    initial = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]
    return None if initial and os.geteuid() == 0 else "FUSE passthrough needs root in the initial user namespace"


@probe("cpu-latency")
def _cpu_latency() -> str | None:
    try:
        os.close(os.open("/dev/cpu_dma_latency", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return "this kernel has no /dev/cpu_dma_latency"
    except OSError as error:
        return f"/dev/cpu_dma_latency cannot be opened: {error.strerror}"
    return None


@probe("system-call-counter")
def _system_call_counter() -> str | None:
    try:
        Path("/sys/kernel/tracing/events/raw_syscalls/sys_enter/id").read_bytes()
    except OSError as error:
        return f"this kernel shows no tracepoint of system calls: {error.strerror}"
    return None


@probe("trusted-xattrs")
def _trusted_xattrs() -> str | None:
    return _xattr("trusted.unionfs-probe")


@probe("user-xattrs")
def _user_xattrs() -> str | None:
    return _xattr("user.unionfs-probe")


def _xattr(name: str) -> str | None:
    with tempfile.NamedTemporaryFile(prefix="unionfs-probe-") as file:
        try:
            os.setxattr(file.name, name, b"1")
        except OSError as error:
            return f"no {name.split('.')[0]} xattrs in {tempfile.gettempdir()}: {error.strerror}"
    return None


def report() -> list[str]:
    """Return the lines that head a test run: what the machine is, what it can do, and why not the rest."""
    reasons = {name: missing(name) for name in sorted(PROBES)}
    able = ", ".join(name for name, reason in reasons.items() if reason is None)
    return [
        f"machine: Linux {platform.release()} {platform.machine()}, uid {os.geteuid()}, {os.cpu_count()} processors",
        f"able: {able}",
        *(f"unable: {name}: {reason}" for name, reason in reasons.items() if reason is not None),
    ]
