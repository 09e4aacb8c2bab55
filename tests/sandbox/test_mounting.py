"""Real mounts, in each way that there is: mount(2) as root and in a user namespace, and fusermount3."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.running import ORDINARY_ID, usable_interpreter
from tests.support.probes import need, requires

pytestmark = requires("root", "fuse")

WAYS = ["root", "namespace", "helper"]
OWNERS = {"root": (0, 0), "namespace": (0, 0), "helper": (ORDINARY_ID, ORDINARY_ID)}


@pytest.fixture
def mountpoint() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(), "mount point")
    directory.parent.chmod(0o755)
    directory.mkdir()
    directory.chmod(0o777)
    yield directory
    directory.rmdir()
    directory.parent.rmdir()


def mount(way: str, mountpoint: Path, *words: str) -> list[str]:
    need(*{"root": [], "namespace": ["userns"], "helper": ["fusermount3"]}[way])
    interpreter = usable_interpreter(ORDINARY_ID)
    if interpreter is None:
        pytest.skip("no Python of 3.10 or later that an ordinary user may run, with the package")
    driver = Path(__file__).with_name("mounting_driver.py")
    command = [interpreter, str(driver), way, str(mountpoint), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd="/", check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("way", WAYS)
def test_mount_and_unmount(way: str, mountpoint: Path) -> None:
    shown, *rest = mount(way, mountpoint, "ro", "nosuid", "nodev", "noatime", "fsname=a,b", "max_read=65536")
    kind, source, options, super_options = shown.split()
    user, group = OWNERS[way]
    assert (kind, source, options) == ("fuse.unionmount", "a,b", "ro,nosuid,nodev,noatime")
    assert {f"user_id={user}", f"group_id={group}", "default_permissions", "max_read=65536"} <= set(
        super_options.split(",")
    )
    assert ("allow_other" in super_options) == (way != "helper")
    assert rest == ["True True", "MountpointTaken", "NotMounted", "False"]


@pytest.mark.parametrize("way", ["root", "namespace"])
def test_by_default_set_user_id_programs_and_devices_count(way: str, mountpoint: Path) -> None:
    kind, source, options, _ = mount(way, mountpoint)[0].split()
    assert (kind, source, options) == ("fuse.unionmount", "unionmount", "rw,relatime")


def test_what_the_helper_says_comes_through(mountpoint: Path) -> None:
    mountpoint.chmod(0o755)
    (said,) = mount("helper", mountpoint)
    assert said.startswith(f"FusermountFailed {mountpoint}: fusermount3 refused: ")
    assert "user has no write access to mountpoint" in said


def test_a_file_system_of_another_kind_is_none_of_ours(mountpoint: Path) -> None:
    shown, *rest = mount("root", mountpoint, "subtype=other")
    assert shown.startswith("fuse.other unionmount")
    assert rest == ["True False", "NotMounted", "False"]
