"""What the benchmark asks of the machine: the mount table, unmounting, dropping caches, facts on processes.

No function here opens, lists or stats anything below a mount point: a hung server would block the benchmark itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from benchmarks import proc

UMOUNT_LIMIT_S = 20.0


class Mount(NamedTuple):
    """A line of the mount table."""

    point: Path
    minor: int
    kind: str


def mounts() -> list[Mount]:
    """The mounts of this namespace, oldest first (proc_pid_mountinfo(5))."""
    table = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    return [_mount(line) for line in table.splitlines()]


def _mount(line: str) -> Mount:
    head, _, tail = line.partition(" - ")
    fields = head.split(" ")
    point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
    return Mount(Path(point), int(fields[2].split(":")[1]), tail.split(" ")[0])


def is_mounted(root: Path) -> bool:
    """Whether something is mounted exactly there."""
    return any(mount.point == root for mount in mounts())


def connection(root: Path) -> int | None:
    """The number of the FUSE connection of a mount point: the minor number of its device; None without FUSE."""
    numbers = [mount.minor for mount in mounts() if mount.point == root and mount.kind.startswith("fuse")]
    return numbers[-1] if numbers else None


def unmount(root: Path) -> None:
    """Unmount what is mounted there; lazily when it is busy or does not answer. Nothing mounted is no error."""
    while is_mounted(root):
        try:
            proc.run(_umount_command(root), limit_s=UMOUNT_LIMIT_S)
        except proc.StepFailed:
            proc.run(_umount_command(root, "-l" if os.geteuid() == 0 else "-z"), limit_s=UMOUNT_LIMIT_S)


def _umount_command(root: Path, *flags: str) -> list[str]:
    return [*(["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]), *flags, str(root)]


def unmount_below(base: Path) -> None:
    """Unmount everything below a directory, the youngest first."""
    for mount in reversed(mounts()):
        if base in mount.point.parents:
            unmount(mount.point)


def may_drop_caches() -> bool:
    """Whether the page, entry and inode caches of the machine can be emptied."""
    return os.access("/proc/sys/vm/drop_caches", os.W_OK) and os.geteuid() == 0


def drop_caches() -> None:
    """Write everything back and forget every clean page, entry and inode (admin-guide/sysctl/vm.rst)."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found = [pid]
    for member in found:
        found += [child for child, parent in parents.items() if parent == member]
    return found


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    except OSError:
        return 0


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of processes, shared libraries counted with each."""
    return sum(_status_kib(pid, "VmRSS") for pid in pids) * 1024


def _status_kib(pid: int, field: str) -> int:
    try:
        match = re.search(rf"^{field}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(match[1]) if match else 0


def cpu_s(pids: Iterable[int]) -> float:
    """Processor time that processes have used so far, in seconds (proc_pid_stat(5): utime and stime)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def descriptors(pids: Iterable[int]) -> int:
    """How many file descriptors processes have open."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in pids)


def mentions(text: str) -> list[int]:
    """Processes with this text in their command line: how a server in the background is found."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            found += [int(entry.name)] if os.fsencode(text) in command else []
    return found


def used_bytes() -> int:
    """Memory of the machine that is not free, caches included (proc_meminfo(5))."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE))
    return (int(fields["MemTotal"]) - int(fields["MemFree"])) * 1024
