"""What the command finds: /proc, /dev, /sys, /tmp, its directory, environment and descriptors."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.sandbox.running import Sandbox
from tests.support.trees import snapshot

DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}


def test_proc_shows_the_own_processes_alone(sandbox: Sandbox) -> None:
    assert sandbox.output(["sh", "-c", "echo $$ /proc/[0-9]*"]) == "2 /proc/1 /proc/2\n"


def test_dev_holds_the_usual_and_no_more(sandbox: Sandbox) -> None:
    names = set(sandbox.output(["ls", "/dev"]).split())
    assert names == {*DEVICES, *LINKS, "pts", "shm", *(["fuse"] if os.path.exists("/dev/fuse") else [])}
    numbers = sandbox.output(["stat", "-c", "%n %t:%T %a", *(f"/dev/{name}" for name in DEVICES)])
    assert numbers.splitlines() == [f"/dev/{name} {major:x}:{minor:x} 666" for name, (major, minor) in DEVICES.items()]
    assert sandbox.output(["readlink", *(f"/dev/{name}" for name in LINKS)]).split() == list(LINKS.values())


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo lost > /dev/null; cat /dev/null", ""),
        ("(echo text > /dev/stdout) | cat", "text\n"),
        ("head -c 3 /dev/zero | od -An -tx1", " 00 00 00\n"),
        ("head -c 5 /dev/urandom | wc -c", "5\n"),
        ("echo text | cat /dev/stdin", "text\n"),
        ("echo x > /dev/shm/file; cat /dev/shm/file", "x\n"),
        ("stat -c %a /tmp /dev/shm", "1777\n1777\n"),
        ("(echo x > /dev/full) 2>/dev/null || echo full", "full\n"),
        ("(: < /dev/tty) 2>/dev/null || echo no terminal", "no terminal\n"),
    ],
)
def test_devices_work(sandbox: Sandbox, script: str, expected: str) -> None:
    assert sandbox.output(["sh", "-c", script]) == expected


def test_new_terminals_are_its_own(sandbox: Sandbox) -> None:
    shown = sandbox.output(["script", "-qec", "tty; ls /dev/pts", "/dev/null"]).split()
    assert shown == ["/dev/pts/0", "0", "ptmx"]


def test_tmp_is_private_and_empty(sandbox: Sandbox) -> None:
    mine = Path("/tmp", f"seen-{os.getpid()}")
    mine.touch()
    try:
        assert sandbox.output(["sh", "-c", f"ls -A /tmp; touch /tmp/inside-{os.getpid()}"]) == ""
    finally:
        mine.unlink()
    assert not Path("/tmp", f"inside-{os.getpid()}").exists()


def test_sys_is_there_and_read_only(sandbox: Sandbox) -> None:
    lines = [line.split() for line in sandbox.output(["cat", "/proc/self/mountinfo"]).splitlines()]
    options = {fields[4]: fields[5].split(",") for fields in lines}  # the last of several is the one that is seen
    seen = [point for point in options if point == "/sys" or point.startswith("/sys/")]
    assert seen
    assert all("ro" in options[point] for point in seen)
    assert "kernel" in sandbox.output(["ls", "/sys"])


def test_nothing_of_the_machine_stays_mounted_beside_the_root(root_sandbox: Sandbox) -> None:
    points = root_sandbox.output(["cut", "-d ", "-f5", "/proc/self/mountinfo"]).split()
    assert {point for point in points if not point.startswith("/sys") and point != "/dev/fuse"} == {
        *("/", "/proc", "/tmp", "/dev", "/dev/pts", "/dev/shm")
    }


def test_the_callers_directory_is_kept_where_the_root_has_it(sandbox: Sandbox) -> None:
    assert sandbox.run(["sh", "-c", "pwd -P; echo $PWD"], cwd="/usr/bin").stdout == "/usr/bin\n/usr/bin\n"


def test_the_root_takes_the_place_of_a_directory_that_is_not_there(sandbox: Sandbox) -> None:
    assert sandbox.run(["sh", "-c", "pwd -P; echo $PWD"], cwd=sandbox.runtime).stdout == "/\n/\n"


def test_a_given_directory_must_exist(sandbox: Sandbox) -> None:
    assert sandbox.output(["pwd"], None, "cwd=/usr") == "/usr\n"
    done = sandbox.run(["pwd"], None, "cwd=/no/such")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "unionmount: pwd: could not be run: /no/such: No such file or directory\n"


@pytest.mark.parametrize("given", [{}, {"LC_CTYPE": "C.UTF-8"}, {"LANG": "C"}], ids=["none", "named", "C"])
def test_the_environment_is_the_callers(root_sandbox: Sandbox, given: dict[str, str]) -> None:
    """Python's own words for a locale are none of it."""
    name, _, value = root_sandbox.mark.partition("=")
    given = {**given, name: value, "XDG_RUNTIME_DIR": str(root_sandbox.runtime), "PATH": os.defpath}
    shown = root_sandbox.run(["env"], env=given, cwd="/usr").stdout
    assert dict(line.split("=", 1) for line in shown.splitlines()) == {**given, "PWD": "/usr"}


def test_the_machines_name_stays(sandbox: Sandbox) -> None:
    before = os.uname().nodename
    try:
        assert sandbox.output(["sh", "-c", "hostname another && hostname"]) == "another\n"
        assert os.uname().nodename == before
    finally:
        if os.uname().nodename != before:
            socket.sethostname(before)


def test_shared_memory_is_the_runs_own_and_ends_with_it(sandbox: Sandbox) -> None:
    shown = sandbox.output(["sh", "-c", "ipcmk --shmem 4096 > /dev/null && cat /proc/sysvipc/shm"]).splitlines()
    assert len(shown) == 2
    assert shown[1].split()[0] not in {line.split()[0] for line in Path("/proc/sysvipc/shm").read_text().splitlines()}


def test_a_given_environment_is_the_whole_of_it(sandbox: Sandbox) -> None:
    shown = sandbox.output(["/usr/bin/env"], None, "env=A:b c", "cwd=/usr").splitlines()
    assert shown == ["A=b c", "PWD=/usr"]


def test_descriptors_are_the_callers_inheritable_ones(sandbox: Sandbox) -> None:
    readable, writable = os.pipe()
    try:
        done = sandbox.run(["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"], pass_fds=[writable])
    finally:
        os.close(readable)
        os.close(writable)
    listing = 0 if writable != 0 else 1
    own = {0, 1, 2, writable}
    assert {int(name) for name in done.stdout.split()} - own <= {min(set(range(3, 9)) - own)}, listing


def test_init_holds_no_descriptor_of_the_callers_for_long(sandbox: Sandbox) -> None:
    script = "sleep 0.2; for f in /proc/1/fd/*; do [ ${f##*/} -le 2 ] || readlink $f; done"
    assert sandbox.output(["sh", "-c", script]) == ""


def test_mount_points_that_the_root_lacks_are_made_for_the_run_alone(root_sandbox: Sandbox, usr_root: Path) -> None:
    before = sorted(snapshot(usr_root))
    assert root_sandbox.output(["ls", "/"], f"usr:{usr_root}").split() == [
        *("bin", "dev", "lib", "lib64", "proc", "sbin", "sys", "tmp", "usr")
    ]
    assert root_sandbox.output(["ls", "/proc/self/comm", "/dev/null"], f"usr:{usr_root}")
    assert sorted(snapshot(usr_root)) == before


def test_a_read_only_root_goes_without_what_it_lacks(root_sandbox: Sandbox, usr_root: Path) -> None:
    assert root_sandbox.output(["ls", "/"], f"read-only:{usr_root}").split() == ["bin", "lib", "lib64", "sbin", "usr"]
    (usr_root / "proc").mkdir()
    names = root_sandbox.output(["ls", "/"], f"read-only:{usr_root}").split()
    assert names == ["bin", "lib", "lib64", "proc", "sbin", "usr"]
    assert root_sandbox.output(["cat", "/proc/self/comm"], f"read-only:{usr_root}") == "cat\n"


def test_links_at_mount_points_stay_in_the_root(root_sandbox: Sandbox, usr_root: Path) -> None:
    (usr_root / "private").mkdir()
    (usr_root / "private" / "tmp").mkdir()
    (usr_root / "tmp").symlink_to("/private/tmp")
    (usr_root / "dev").symlink_to("../../../../../../etc")  # not there in the root, and outside of it the machine's
    script = "touch /tmp/x; ls /private/tmp; ls /etc 2>&1"
    done = root_sandbox.run(["sh", "-c", script], f"usr:{usr_root}")
    assert done.stdout.splitlines()[0] == "x"
    assert "cannot access" in done.stdout.splitlines()[1]
    assert list((usr_root / "private" / "tmp").iterdir()) == []


def test_names_are_resolved_where_the_root_has_a_link_into_nowhere(root_sandbox: Sandbox, usr_root: Path) -> None:
    """As that of systemd-resolved(8) into /run, which is no part of the stack."""
    link = usr_root / "etc" / "resolv.conf"
    link.parent.mkdir()
    link.symlink_to("../run/resolver/resolv.conf")
    (usr_root / "run").mkdir()
    before = sorted(snapshot(usr_root))
    script = "cat /etc/resolv.conf; echo x 2>/dev/null > /etc/resolv.conf || echo read-only"
    shown = root_sandbox.output(["sh", "-c", script], f"usr:{usr_root}")
    assert shown == Path("/etc/resolv.conf").read_text() + "read-only\n"
    assert sorted(snapshot(usr_root)) == before


def test_a_resolver_that_the_root_has_is_left_to_it(root_sandbox: Sandbox, usr_root: Path) -> None:
    (usr_root / "etc").mkdir()
    (usr_root / "etc" / "own").write_text("own\n")
    (usr_root / "etc" / "resolv.conf").symlink_to("own")
    assert root_sandbox.output(["cat", "/etc/resolv.conf"], f"usr:{usr_root}") == "own\n"


def test_the_machines_devices_are_untouched(sandbox: Sandbox) -> None:
    before = Path("/proc/self/mountinfo").read_text().count(" /dev")
    sandbox.output(["sh", "-c", "echo x > /dev/null"])
    assert Path("/proc/self/mountinfo").read_text().count(" /dev") == before
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
