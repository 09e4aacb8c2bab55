"""``unionfs.mount`` and ``unionfs.run``: real mounts, from a program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import unionfs
from tests.support import leftovers
from tests.support.mounts import ROOT, is_mounted
from tests.support.probes import requires
from unionfs import errors

LIMIT_S = 60


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """Two layers with names that mount options would have to escape, and an upper."""
    for name, text in {"one,x": "1", "two:y\\": "2"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / f"file{text}").write_text(text)
    (tmp_path / "upper").mkdir()
    return tmp_path


@requires("fuse")
def test_a_mount_lasts_as_long_as_its_block(stack: Path) -> None:
    """At a temporary place, seen by every process; the changes stay."""
    with unionfs.mount([stack / "one,x", stack / "two:y\\"], stack / "upper") as root:
        assert is_mounted(root)
        assert sorted(os.listdir(root)) == ["file1", "file2"]
        subprocess.run(["sh", "-c", "echo new > new; rm file2; echo changed > file1"], cwd=root, check=True, timeout=30)
    assert not root.exists()
    with unionfs.Union(lower=[stack / "one,x", stack / "two:y\\"], upper=stack / "upper") as union:
        assert list(map(str, union.changes())) == ["C /file1", "D /file2", "A /new"]
    assert (stack / "one,x" / "file1").read_text() == "1"


@requires("fuse")
def test_a_mount_without_an_upper_is_read_only(stack: Path) -> None:
    """At a place of one's own, which stays."""
    (stack / "point").mkdir()
    with unionfs.mount(str(stack / "one,x"), mountpoint=stack / "point", options=["noatime"]) as root:
        assert root == stack / "point"
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").touch()
    assert os.listdir(stack / "point") == []
    assert not is_mounted(stack / "point")


def test_what_cannot_be_mounted_leaves_nothing(stack: Path) -> None:
    """The reason of the command is that of the exception."""
    before = set(os.listdir(os.environ["TMPDIR"]))
    with pytest.raises(errors.MountError, match="none: no such layer"), unionfs.mount(stack / "none"):
        pass
    assert set(os.listdir(os.environ["TMPDIR"])) == before


@requires("fuse")
def test_a_mount_that_is_in_use_is_taken_away_and_told(stack: Path) -> None:
    """Who still uses it can go on; its server ends with the last of them."""
    with pytest.raises(errors.MountError, match="in use"), unionfs.mount(stack / "one,x") as root:
        file = (root / "file1").open()
    assert not is_mounted(root)
    with file:
        assert file.read() == "1"


@requires("fuse")
def test_an_error_in_the_block_is_not_hidden(stack: Path) -> None:
    """And what was mounted is gone."""
    with pytest.raises(KeyError), unionfs.mount(stack / "one,x") as root:
        raise KeyError(root)
    assert not is_mounted(root)


@requires("fuse", "root")
def test_run_returns_what_became_of_the_process() -> None:
    """Output, status, input; and the machine is as it was."""
    before = os.stat("/usr").st_mtime_ns
    script = "cat; rm -rf /usr/sbin; touch /etc/new; exit 3"
    done = unionfs.run(["sh", "-c", script], input="given", capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout, done.stderr) == (3, "given", "")
    assert done.args == ["sh", "-c", script]
    assert os.path.isdir("/usr/sbin")
    assert not os.path.exists("/etc/new")
    assert os.stat("/usr").st_mtime_ns == before


@requires("fuse", "root")
def test_a_run_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """Those who outlive it clear up."""
    program = [sys.executable, str(ROOT / "bin/unionmount")]
    command = [*program, "run", "--lower", "/", "sh", "-c", "echo ready; sleep 1000"]
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert os.listdir(tmp_path)
        process.kill()
        process.stdout.read()  # until nobody has it open
    deadline = time.monotonic() + LIMIT_S
    while os.listdir(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert os.listdir(tmp_path) == []


@requires("fuse", "root")
def test_a_run_of_which_only_the_server_is_left_ends(stack: Path) -> None:
    """Whoever killed the others killed them at once; the mount is in a namespace that nobody else would clear."""
    program = [sys.executable, str(ROOT / "bin/unionmount")]
    command = [*program, "run", "--lower", "/", "--upper", str(stack / "upper"), "sh", "-c", "echo ready; sleep 1000"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(stack)}  # nobody removes the place
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        supervisor = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
        os.kill(supervisor, signal.SIGSTOP)
        process.kill()
        process.wait()
        os.kill(supervisor, signal.SIGKILL)
    deadline = time.monotonic() + LIMIT_S
    while (left := _running(stack)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []


def _running(stack: Path) -> list[leftovers.Process]:
    mark = Path(os.environ[leftovers.MARK])
    return [found for found in leftovers.processes(mark) if str(stack) in found.command]


@requires("fuse", "root")
def test_run_keeps_its_changes_in_an_upper(stack: Path) -> None:
    """For a second process, or for a look."""
    for script in ("echo first > /etc/demo", "cat /etc/demo"):
        done = unionfs.run(["sh", "-c", script], "/", stack / "upper", capture_output=True, text=True, timeout=LIMIT_S)
        assert done.returncode == 0, done.stderr
    assert done.stdout == "first\n"
    assert (stack / "upper" / "etc" / "demo").read_text() == "first\n"


@requires("fuse", "root")
def test_run_can_insist_on_success() -> None:
    """As subprocess.run does."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        unionfs.run(["false"], check=True, timeout=LIMIT_S)
    assert (caught.value.returncode, caught.value.cmd) == (1, ["false"])
    done = unionfs.run(["no-such-command"], capture_output=True, text=True, timeout=LIMIT_S)
    assert done.returncode == 127
    assert len(done.stderr.splitlines()) == 1


def test_importing_loads_nothing() -> None:
    """The names come when they are used."""
    script = (
        "import sys, unionfs; before = {name for name in sys.modules if name.startswith('unionfs')};"
        "unionfs.Union; unionfs.mount; unionfs.errors.LayerError;"
        "print(sorted(before), 'unionfs.union.union' in sys.modules, 'unionfs.fuse.server' in sys.modules)"
    )
    home = os.path.dirname(os.path.dirname(unionfs.__file__))
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30, cwd=home
    )
    assert done.stdout == "['unionfs'] True False\n"


def test_no_process_is_left(stack: Path) -> None:
    """After all of the above in this session, none serves these directories."""
    found = leftovers.processes(Path(os.environ[leftovers.MARK]))
    assert [process for process in found if str(stack) in process.command] == []
