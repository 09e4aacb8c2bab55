"""User namespaces: who the command is inside and outside, and the tables that grant ids."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.sandbox.running import Sandbox
from tests.support.probes import requires
from unionfs.sandbox import idmaps
from unionfs.sandbox.idmaps import IdRange


def test_an_ordinary_user_is_root_inside(user_sandbox: Sandbox) -> None:
    assert user_sandbox.output(["id", "-u"]) == "0\n"
    assert user_sandbox.output(["cat", "/proc/self/uid_map"]).split()[:2] == ["0", str(user_sandbox.user)]


def test_root_needs_no_user_namespace(root_sandbox: Sandbox) -> None:
    assert root_sandbox.output(["readlink", "/proc/self/ns/user"]).strip() == os.readlink("/proc/self/ns/user")


def test_what_the_command_makes_belongs_to_the_caller(user_sandbox: Sandbox) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as shared:  # not hidden by the private /tmp
        os.chmod(shared, 0o777)
        assert user_sandbox.output(["sh", "-c", f"umask 0; mkdir {shared}/made; stat -c %u {shared}/made"]) == "0\n"
        assert Path(shared, "made").stat().st_uid == user_sandbox.user


def granted_ranges(sandbox: Sandbox, directory: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run where /etc/subuid and /etc/subgid grant the user more ids: in a mount namespace that shows others there."""
    table = directory / "granted"
    table.write_text(f"{sandbox.user}:100000:65536\n")
    script = (
        f"mount --bind {table} /etc/subuid && mount --bind {table} /etc/subgid &&"
        f" exec setpriv --reuid {sandbox.user} --regid {sandbox.user} --clear-groups "
    ) + shlex.join(sandbox.command(command))
    unshare = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(sandbox.runtime)}
    return subprocess.run(unshare, capture_output=True, text=True, timeout=30, env=environment, check=False)


@requires("root")
def test_more_ids_are_mapped_where_they_are_granted(user_sandbox: Sandbox, tmp_path: Path) -> None:
    if shutil.which("newuidmap") is None:
        pytest.skip("newuidmap is not installed: apt-get install uidmap")
    script = "cat /proc/self/uid_map; touch /dev/shm/x && chown 33:33 /dev/shm/x && stat -c %u:%g /dev/shm/x"
    done = granted_ranges(user_sandbox, tmp_path, ["sh", "-c", script])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["0", str(user_sandbox.user), "1", "1", "100000", "65536", "33:33"]


@requires("root")
def test_a_user_who_is_granted_none_has_one(user_sandbox: Sandbox) -> None:
    assert len(user_sandbox.output(["cat", "/proc/self/uid_map"]).splitlines()) == 1
    script = "chown 33:33 /dev/shm && stat -c %u:%g /dev/shm"  # in vain: this place remembers nothing
    assert user_sandbox.output(["sh", "-c", script]) == "0:0\n"


def test_root_s_directories_are_in_the_path(user_sandbox: Sandbox) -> None:
    assert {"/usr/sbin", "/sbin"} <= set(user_sandbox.output(["sh", "-c", "echo $PATH"]).strip().split(":"))


TABLE = """\
# a comment
alice:100000:65536
bob:165536:65536

1000:300000:10
alice:broken:1
alice:400000:5:6
"""


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("alice", "1000"), [(100000, 65536), (300000, 10)]),
        (("bob", "1001"), [(165536, 65536)]),
        (("carol", "1002"), []),
    ],
)
def test_what_a_table_grants(names: tuple[str, ...], expected: list[tuple[int, int]]) -> None:
    assert idmaps.granted(TABLE, names) == expected


def test_granted_ids_follow_the_own_one() -> None:
    assert idmaps.stacked(1000, [(100000, 65536), (300000, 10)]) == (
        IdRange(0, 1000, 1),
        IdRange(1, 100000, 65536),
        IdRange(65537, 300000, 10),
    )


def test_without_the_helpers_there_is_the_own_id_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idmaps, "_find", lambda name: None)
    assert idmaps.for_caller() == idmaps.IdMaps(
        (IdRange(0, os.geteuid(), 1),), (IdRange(0, os.getegid(), 1),), helpers=()
    )


def test_the_helpers_map_what_is_granted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idmaps, "_find", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(idmaps, "_names_of", lambda uid: ("alice",))
    monkeypatch.setattr(idmaps, "_read", lambda path: TABLE)
    maps = idmaps.for_caller()
    assert maps.helpers == ("/usr/bin/newuidmap", "/usr/bin/newgidmap")
    assert maps.uids == (IdRange(0, os.geteuid(), 1), IdRange(1, 100000, 65536))
