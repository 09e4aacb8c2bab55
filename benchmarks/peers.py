"""The file systems that are compared: how each is mounted over a stack, and what to install when it is missing.

A peer is mounted as its manual tells, with the options a careful user would take, and no tuning that the others do
not get. This module knows nothing of workloads.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks import proc, system

MOUNT_LIMIT_S = 30.0
END_LIMIT_S = 10.0
POLL_S = 0.002


class Place(NamedTuple):
    """Where one mount lives: its layers (topmost first), its writable directories, its mount point, its log."""

    layers: tuple[Path, ...]
    upper: Path
    work: Path
    root: Path
    log: Path
    changes: tuple[str, ...] = ()


class Mounted:
    """A mount that stands, with the process that serves it, if there is one."""

    def __init__(self, root: Path, server: subprocess.Popen[bytes] | None = None) -> None:
        self.root = root
        self.server = server

    def pids(self) -> list[int]:
        """The processes that serve this mount: none for the kernel's file systems."""
        return system.family(self.server.pid) if self.server else []

    def abort(self) -> None:
        """Have a hung server let go of its clients: they get errors as soon as nobody holds the FUSE device."""
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Unmount and see the server out; raises :class:`proc.StepFailed` when it had to be killed."""
        try:
            system.unmount(self.root)
        finally:
            ended = self.server is None or proc.wait(self.server, END_LIMIT_S)
            if self.server and not ended:
                proc.kill(self.server)
        if not ended:
            raise proc.StepFailed("the server did not end after the unmount and was killed")


class Peer(ABC):
    """One file system of the comparison."""

    name = ""
    package = ""
    program = ""
    copies_up = True
    only: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """Why this peer cannot take part, and what to install; None when it can."""
        if self.program and not shutil.which(self.program):
            return f"{self.program} is not installed: apt-get install {self.package}"
        return None

    def version(self) -> str:
        """What the program says of itself: the line with its name, for libfuse adds lines of its own."""
        said = _said([self.program, "--version"]).splitlines()
        return next((line for line in said if self.package in line), said[0] if said else "of unknown version")

    @abstractmethod
    def mount(self, place: Place) -> Mounted:
        """Make the stack visible at ``place.root``; raises :class:`proc.StepFailed` with the reason."""

    def start(self, place: Place) -> list[str]:
        """The command that mounts and comes back when the mount stands; empty when there is none."""
        return []

    def counters(self, root: Path) -> dict[str, int]:
        """The requests that the server at ``root`` has counted so far, by name; empty when it does not count."""
        return {}

    def run_true(self, layers: Sequence[Path], root: Path) -> list[str]:
        """The command that runs ``true`` with the stack as its root; it is mounted at ``root`` already."""
        inside = ["--proc", "/proc", "--dev", "/dev", "--unshare-pid"]
        return ["bwrap", "--bind", str(root), "/", *inside, "--", "/bin/true"]


def _said(argv: Sequence[str]) -> str:
    """What a command printed, on either of its outputs."""
    said = subprocess.run(argv, env=proc.environment(), capture_output=True, check=False, timeout=MOUNT_LIMIT_S)
    return (said.stdout + said.stderr).decode(errors="replace")


class PlainCopy(Mounted):
    """The merged copy of a stack; closing it puts back what the workload was allowed to change."""

    def __init__(self, place: Place) -> None:
        super().__init__(place.root)
        self.place = place

    def close(self) -> None:
        for name in ("new", *self.place.changes):
            proc.run(["rm", "-rf", str(self.root / name)], limit_s=MOUNT_LIMIT_S * 10)
        for name in self.place.changes:
            _merge(self.place, name)


def _merge(place: Place, name: str = ".") -> None:
    """Copy one part of every layer that has it into the root, the lowest first, so that the topmost wins."""
    for layer in reversed(place.layers):
        if (layer / name).exists():
            argv = ["cp", "-a", "--parents", "--reflink=auto", name, str(place.root)]
            proc.run(argv, limit_s=MOUNT_LIMIT_S * 20, cwd=layer)


class PlainDirectory(Peer):
    """A copy of the merged tree on the same disk: what there is to reach."""

    name = "plain"

    def version(self) -> str:
        return "a merged copy"

    def mount(self, place: Place) -> Mounted:
        # The copy outlives the mount point of the round: making it anew each time would take longer than the work.
        copy = place.layers[0].parent / "merged"
        kept = place._replace(root=copy)
        if not copy.exists():
            copy.mkdir()
            _merge(kept)
        return PlainCopy(kept)


class KernelOverlay(Peer):
    """The kernel's overlayfs with its default options."""

    name = "overlayfs"
    program = "mount"
    package = "mount"

    def missing(self) -> str | None:
        if os.geteuid():
            return "mounting the kernel's overlayfs needs root"
        return super().missing()

    def version(self) -> str:
        return f"Linux {os.uname().release}"

    def mount(self, place: Place) -> Mounted:
        proc.run(self.start(place), limit_s=MOUNT_LIMIT_S)
        return Mounted(place.root)

    def start(self, place: Place) -> list[str]:
        # mount(2) takes one page of options: names relative to the layers' directory let 500 layers fit.
        base = place.layers[0].parent
        options = _overlay_options([os.path.relpath(layer, base) for layer in place.layers], place)
        mount = 'cd "$1" && LIBMOUNT_FORCE_MOUNT2=always exec mount -i -t overlay overlay -o "$2" "$3"'
        return ["sh", "-c", mount, "sh", str(base), options, str(place.root)]


def _overlay_options(layers: Sequence[str], place: Place) -> str:
    return f"lowerdir={':'.join(layers)},upperdir={place.upper},workdir={place.work}"


class FusePeer(Peer):
    """A server that stays in the foreground with ``-f``, which is how the benchmark knows its process."""

    def mount(self, place: Place) -> Mounted:
        with place.log.open("wb") as log:
            server = proc.spawn(self.foreground(place), cwd=None, env=proc.environment(), out=log, err=log)
        deadline = time.monotonic() + MOUNT_LIMIT_S
        while not system.is_mounted(place.root):
            if proc.wait(server, POLL_S) or time.monotonic() > deadline:
                proc.kill(server)
                raise proc.StepFailed(f"{self.name} did not mount: {_tail(place.log)}")
        return Mounted(place.root, server)

    def foreground(self, place: Place) -> list[str]:
        """The command that serves until it is unmounted."""
        first, *rest = self.start(place)
        return [first, "-f", *rest]


def _tail(log: Path) -> str:
    return log.read_bytes()[-proc.ERROR_CHARS :].decode(errors="replace").strip() or "it said nothing"


class FuseOverlayfs(FusePeer):
    """fuse-overlayfs, in C, from containers/."""

    name = program = package = "fuse-overlayfs"

    def start(self, place: Place) -> list[str]:
        return [self.program, "-o", _overlay_options([str(layer) for layer in place.layers], place), str(place.root)]


class BuiltFuseOverlayfs(FuseOverlayfs):
    """Another fuse-overlayfs, by the path of its program; ValueError where there is none."""

    def __init__(self, path: str) -> None:
        if not shutil.which(path):
            raise ValueError(f"{path} is no program")
        self.program = os.path.abspath(path)
        self.name = f"{self.package}-{self.version().split()[-1]}"


class UnionfsFuse(FusePeer):
    """unionfs-fuse, in C, from rpodgorny/."""

    name = program = package = "unionfs-fuse"

    def start(self, place: Place) -> list[str]:
        branches = ":".join([f"{place.upper}=RW", *(f"{layer}=RO" for layer in place.layers)])
        as_root = ",allow_other,default_permissions,suid,dev" if not os.geteuid() else ""
        options = f"cow,use_ino,max_files=16384{as_root}"
        return [self.program, "-o", options, branches, str(place.root)]


class MergerFs(FusePeer):
    """mergerfs: a pool of directories. It has no copy-up and no whiteouts, so it takes part where none is needed."""

    name = program = package = "mergerfs"
    copies_up = False

    def start(self, place: Place) -> list[str]:
        branches = ":".join([f"{place.upper}=RW", *(f"{layer}=RO" for layer in place.layers)])
        options = "use_ino,category.create=ff" + (",allow_other" if not os.geteuid() else "")
        return [self.program, "-o", options, branches, str(place.root)]


class UnionMount(FusePeer):
    """This project's ``unionmount`` as it is installed beside the running interpreter, in one of its modes."""

    program = str(Path(sys.executable).with_name("unionmount"))

    def __init__(self, name: str, words: str) -> None:
        self.name = name
        self.words = words

    def missing(self) -> str | None:
        return None if Path(self.program).exists() else "unionmount is not installed: make bench installs it"

    def version(self) -> str:
        return _said([self.program, "--version"]).partition("\n")[0]

    def start(self, place: Place) -> list[str]:
        options = _overlay_options([str(layer) for layer in place.layers], place)
        return [self.program, "-o", options + self.words, str(place.root)]

    def foreground(self, place: Place) -> list[str]:
        return [*self.start(place), "-f"]

    def counters(self, root: Path) -> dict[str, int]:
        told = json.loads(_said([self.program, "stats", str(root)]))
        return {str(name): int(count) for name, count in told["requests"].items()}

    def run_true(self, layers: Sequence[Path], root: Path) -> list[str]:
        lower = [word for layer in layers for word in ("--lower", str(layer))]
        return [self.program, "run", *lower, "--", "/bin/true"]


class Podman(Peer):
    """podman with fuse-overlayfs as its mount program: it takes part in starting a process alone."""

    name = program = package = "podman"
    only = ("run-true",)

    def missing(self) -> str | None:
        return super().missing() or FuseOverlayfs().missing()

    def mount(self, place: Place) -> Mounted:
        return Mounted(place.root)

    def run_true(self, layers: Sequence[Path], root: Path) -> list[str]:
        # podman refuses a runroot of more than fifty characters: its sockets live there.
        base = layers[0].parents[2]
        storage = [
            "--root",
            str(base / "podman"),
            "--runroot",
            str(base / "run"),
            "--storage-driver",
            "overlay",
            "--storage-opt",
            f"overlay.mount_program={shutil.which(FuseOverlayfs.program)}",
        ]
        # crun, the default, refuses the mixed cgroup layout that some machines have.
        runtime = ["--cgroup-manager=cgroupfs", *(["--runtime=runc"] if shutil.which("runc") else [])]
        # Its default is to raise limits, which not every root may; these are enough for one process.
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]
        run = ["run", "--rm", "--network=none", *limits, "--rootfs", f"{layers[0]}:O", "/bin/true"]
        return [self.program, *runtime, *storage, *run]


# The modes of unionmount: the name in the results, and the further words of -o.
MODES = {
    "unionmount": "",
    "unionmount-write-through": ",mode=write-through",
    "unionmount-write-back": ",mode=write-back",
    "unionmount-opened": ",mode=opened",
}

PEERS: tuple[Peer, ...] = (
    PlainDirectory(),
    KernelOverlay(),
    FuseOverlayfs(),
    UnionfsFuse(),
    MergerFs(),
    *(UnionMount(name, words) for name, words in MODES.items()),
    Podman(),
)


def choose(names: Sequence[str]) -> list[Peer]:
    """The peers of these names (a name's beginning will do), all without one; LookupError for an unknown name."""
    for name in names:
        if not any(peer.name.startswith(name) for peer in PEERS):
            raise LookupError(f"no peer is called {name}: {', '.join(peer.name for peer in PEERS)}")
    return [peer for peer in PEERS if not names or any(_is_called(peer, name) for name in names)]


def _is_called(peer: Peer, name: str) -> bool:
    exact = any(other.name == name for other in PEERS)
    return peer.name == name if exact else peer.name.startswith(name)
