"""How mount helpers, fstab and podman call the command, and what the kernel is told of it."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import LIMIT_S, ROOT, UNIONMOUNT, is_mounted, layer_options, prepare, run
from tests.support.probes import requires

from .command import mounted, servers, stack, tmpfs, unionmount

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = requires("root", "fuse")

#: ``{o}`` is what stands behind ``-o``, ``{m}`` the mountpoint.
FORMS = {
    "fuse-overlayfs": ("-o", "{o}", "{m}"),
    "value attached": ("-o{o}", "{m}"),
    "source first": ("-o", "{o}", "source", "{m}"),
    "as mount.fuse3 calls": ("source", "{m}", "-o", "{o}"),
    "options twice": ("-o", "{o}", "-o", "nosuid", "{m}"),
    "options after": ("{m}", "-o", "{o}"),
    "containerd": ("overlay", "{m}", "-o", "{o},dev,suid"),
    "after two dashes": ("-o", "{o}", "--", "{m}"),
    "direct": ("--transport", "direct", "-o", "{o}", "{m}"),
    "transport with a sign": ("--transport=direct", "-o", "{o}", "{m}"),
}


@pytest.mark.parametrize(
    ("words", "mode"),
    [
        ((), "passthrough"),
        (("-o", "writeback=0"), "passthrough"),
        (("-o", "writeback=1"), "write-back"),
        (("-o", "mode=write-through"), "write-through"),
        (("--mode=opened", "-o", "mode=write-back"), "opened"),
    ],
)
@requires("passthrough")
def test_the_mode_is_chosen_or_named(tmp_path: Path, words: tuple[str, ...], mode: str) -> None:
    """fuse-overlayfs's word names one of ours; without any, root's mount takes the best."""
    options, point = stack(tmp_path), tmp_path / "m"
    with mounted(point, *words, "-o", options, point):
        assert json.loads(os.getxattr(point, "user.unionfs.config"))["mode"] == mode


def test_a_mode_that_there_is_not(tmp_path: Path) -> None:
    """The message names those that there are."""
    done = unionmount("--mode", "fast", "-o", stack(tmp_path), tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "'fast'; there are auto, passthrough, write-through, write-back, opened" in done.stderr


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_forms_of_the_command_line(tmp_path: Path, form: tuple[str, ...]) -> None:
    """Every order of words that callers use means the same."""
    options, point = stack(tmp_path, 2), tmp_path / "m"
    with mounted(point, *(word.format(o=options, m=point) for word in form)):
        assert sorted(os.listdir(point)) == ["file0", "file1"]
        (point / "new").write_text("x")
    assert (tmp_path / "upper/new").read_text() == "x"


def test_the_same_in_words(tmp_path: Path) -> None:
    """``mount`` takes layers one by one, and finds a place for the workdir."""
    stack(tmp_path, 2)
    point, words = tmp_path / "m", ("--lower", tmp_path / "lower0", f"--lower={tmp_path}/lower1")
    with mounted(point, "mount", *words, "--upper", tmp_path / "upper", point):
        assert sorted(os.listdir(point)) == ["file0", "file1"]
        os.rename(point / "file1", point / "file0")
    assert (tmp_path / "upper/file0").read_text() == "in layer 1"


def test_podman_in_its_own_directory(tmp_path: Path) -> None:
    """Layers are named relative to the working directory, which the server must not keep busy."""
    stack(tmp_path, 2)
    point = tmp_path / "m"
    words = f"lowerdir=lower0:lower1,upperdir=upper,workdir=work,volatile,nodev,fsname={tmp_path}"
    with mounted(point, "-o", words, "m", cwd=tmp_path):
        (point / "new").write_text("x")
        (server,) = servers(tmp_path)
        assert os.readlink(f"/proc/{server.pid}/cwd") == "/"
    assert (tmp_path / "upper/new").exists()


def test_layers_named_one_by_one(tmp_path: Path) -> None:
    """As overlayfs takes them since Linux 6.8: a layer each, whose colons mean nothing."""
    point, data = tmp_path / "m", tmp_path / "data"
    lowers = [tmp_path / "a:b", tmp_path / "c,d", tmp_path / "e"]
    for place in (*lowers, data):
        place.mkdir()
        (place / place.name).touch()
        (place / "same").write_text(place.name)
    words = [f"lowerdir={lowers[2]}", *(f"lowerdir+={str(lower).replace(',', chr(92) + ',')}" for lower in lowers)]
    with mounted(point, "-o", ",".join([*words[1:], f"datadir+={data}"]), point):
        assert sorted(os.listdir(point)) == ["a:b", "c,d", "e", "same"]
        assert (point / "same").read_text() == "a:b"
        assert json.loads(os.getxattr(point, "user.unionfs.config"))["lower"] == list(map(str, lowers))
    with mounted(point, "-o", ",".join(words[:2]), point):
        assert (point / "same").read_text() == "e"
    for wrong in ("lowerdir+=", f"lowerdir+={data},datadir+=", f"lowerdir+={data},datadir+={data},lowerdir+={data}"):
        assert unionmount("-o", wrong, point).returncode == 2


def test_unknown_words_are_reported_and_ignored(tmp_path: Path) -> None:
    """As fuse-overlayfs does, whose callers pass on what they do not know."""
    options, point = stack(tmp_path), tmp_path / "m"
    said = "unknown argument ignored: frob\nunknown argument ignored: nicate=3\n"
    with mounted(point, "-o", f"frob,{options},nicate=3,noauto,x-systemd.automount", point, said=said):
        assert (point / "file0").exists()


@pytest.mark.parametrize("name", ["with:colon", "with,comma", "back\\slash", "two words", "\udcff\udc80", "new\nline"])
def test_names_of_layers(tmp_path: Path, name: str) -> None:
    r"""``\:`` is a colon, ``\,`` a comma; every byte but NUL may stand in the name of a layer and of a mountpoint."""
    (tmp_path / "l").mkdir()
    odd = tmp_path / name
    odd.mkdir()
    words = stack(odd, 2)
    point = odd / "point"
    with mounted(point, "-o", words, point):
        assert sorted(os.listdir(point)) == ["file0", "file1"]
        (point / "new").write_text("x")
    assert (odd / "upper/new").exists()


#: Option words, and what must then stand in the mount table: of the mount, or of its file system.
TOLD = {
    "": ("rw", "rw"),
    "ro": ("ro", "ro"),
    "nosuid,nodev,noexec": ("nosuid,nodev,noexec", ""),
    "nosuid,suid,dev,exec": ("!nosuid", ""),
    "noatime": ("noatime", ""),
    "nodiratime": ("nodiratime", ""),
    "allow_other": ("", "allow_other"),
    "default_permissions": ("", "default_permissions"),
}


@pytest.mark.parametrize(("words", "told"), TOLD.items(), ids=TOLD)
def test_generic_options_reach_the_mount(tmp_path: Path, words: str, told: tuple[str, str]) -> None:
    """What mount(8) knows of every file system is for the kernel."""
    options, point = stack(tmp_path), tmp_path / "m"
    with mounted(point, "-o", f"{options},{words}", point):
        _, kind, of_mount, of_system = mount_line(point)
        assert kind == "fuse.unionmount"
        for expected, found in zip(told, (of_mount, of_system), strict=True):
            for word in filter(None, expected.split(",")):
                assert (word.removeprefix("!") in found.split(",")) is not word.startswith("!"), found


def test_names_in_the_mount_table(tmp_path: Path) -> None:
    """``fsname`` and ``subtype`` are what findmnt shows, and statfs says that it is FUSE, which podman asks for."""
    options, point = stack(tmp_path), tmp_path / "m"
    with mounted(point, "-o", f"{options},fsname=my source,subtype=mine", point):
        assert mount_line(point)[:2] == ("my\\040source", "fuse.mine")
        assert run("stat", "-f", "-c", "%t", point).stdout == "65735546\n"


def mount_line(point: Path) -> tuple[str, str, str, str]:
    """Return source, type, options of the mount and of the file system, from /proc/self/mountinfo."""
    lines = [line.split() for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()]
    (fields,) = (line for line in lines if line[4] == str(point))
    end = fields.index("-")
    return fields[end + 2], fields[end + 1], fields[5], fields[end + 3]


def test_what_the_layers_lie_on_can_be_unmounted_before_us(tmp_path: Path) -> None:
    """As with the kernel's overlayfs: who unmounts one after the other need not wait for the server's end."""
    disk, point = tmp_path / "disk", tmp_path / "m"
    disk.mkdir()
    with ExitStack() as meanwhile:
        with tmpfs(disk):
            meanwhile.enter_context(mounted(point, "-o", stack(disk), point))
        (point / "new").write_text("text")
        assert sorted(os.listdir(point)) == ["file0", "new"]


@pytest.mark.parametrize(
    "words", ["lowerdir={0}/lower0:{0}/lower1", "lowerdir={0}/lower0,upperdir={0}/upper,workdir={0}/work,ro"]
)
def test_read_only(tmp_path: Path, words: str) -> None:
    """Without an upper layer, and with ``ro``, every change is refused with EROFS, and reading works."""
    stack(tmp_path, 2)
    point = tmp_path / "m"
    with mounted(point, "-o", words.format(tmp_path), point):
        assert (point / "file0").read_text() == "in layer 0"
        for change in (
            lambda: os.open(point / "file0", os.O_WRONLY),
            lambda: os.open(point / "new", os.O_WRONLY | os.O_CREAT),
            lambda: os.mkdir(point / "new"),
            lambda: os.unlink(point / "file0"),
            lambda: os.chmod(point / "file0", 0),
            lambda: os.utime(point / "file0"),
            lambda: os.setxattr(point / "file0", "user.a", b"1"),
            lambda: os.rename(point / "file0", point / "b"),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                change()
    assert os.listdir(tmp_path / "upper") == []


def test_the_server_keeps_no_stream_of_its_caller(tmp_path: Path) -> None:
    """Whoever reads the command's standard error to its end must reach it while the mount lives."""
    options, point = stack(tmp_path), tmp_path / "m"
    point.mkdir()
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*UNIONMOUNT, "-o", options, str(point)]
    starting = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, pass_fds=[writing]
    )
    os.close(writing)
    assert starting.communicate(timeout=LIMIT_S) == (b"", b"")
    assert os.read(reading, 1) == b"", "another inherited pipe"
    os.close(reading)
    assert starting.returncode == 0
    assert (point / "file0").exists()
    (server,) = servers(point)
    assert {os.readlink(f"/proc/{server.pid}/fd/{stream}") for stream in (0, 1, 2)} == {"/dev/null"}
    assert os.getsid(server.pid) != os.getsid(0)
    assert unionmount("umount", point).returncode == 0


@pytest.mark.parametrize("how", [("umount",), ("fusermount3", "-u"), ("umount", "-l")])
def test_unmounted_by_others_the_server_ends(tmp_path: Path, how: tuple[str, ...]) -> None:
    """The kernel's word is enough: no server outlives its mount."""
    options, point = stack(tmp_path), tmp_path / "m"
    point.mkdir()
    assert unionmount("-o", options, point).returncode == 0
    (server,) = servers(point)
    ended = os.pidfd_open(server.pid)
    run(*how, point)
    assert not is_mounted(point)
    wait_for(ended)
    assert servers(point) == []


def test_cut_off_by_an_administrator_the_server_ends(tmp_path: Path) -> None:
    """See "Aborting a filesystem connection" in the kernel's fuse.rst; the server has nothing to say."""
    lowers, upper, work = prepare(tmp_path)
    (tmp_path / "control").mkdir()
    with mounted_in_foreground(tmp_path, layer_options(lowers, upper, work)) as (point, server):
        run("mount", "-t", "fusectl", "none", tmp_path / "control")
        try:
            connection = os.minor(os.stat(point).st_dev)
            (tmp_path / f"control/{connection}/abort").write_text("1")
        finally:
            run("umount", tmp_path / "control")
        assert server.communicate(timeout=LIMIT_S) == ("", "")
        assert server.returncode == 0


def wait_for(descriptor: int) -> None:
    """Wait until a descriptor is readable: a pidfd, when its process has ended."""
    import select

    assert select.select([descriptor], [], [], LIMIT_S)[0], "the server did not end"
    os.close(descriptor)


def test_the_command_waits_for_the_end(tmp_path: Path) -> None:
    """After ``unionmount umount`` the directories are free: whatever takes them next finds them unlocked."""
    options, point = stack(tmp_path), tmp_path / "m"
    for _ in range(3):
        with mounted(point, "-o", options, point):
            (point / "file0").write_text("x")
        with mounted(tmp_path / "other", "-o", options, tmp_path / "other"):
            assert (tmp_path / "other/file0").read_text() == "x"


@pytest.mark.parametrize("elsewhere", ["bind", "namespace"])
def test_what_stays_mounted_elsewhere_is_not_waited_for(tmp_path: Path, elsewhere: str) -> None:
    """Its server goes on, for as long as a container has it that was started meanwhile."""
    options, point, other = stack(tmp_path), tmp_path / "m", tmp_path / "other"
    point.mkdir()
    other.mkdir()
    assert unionmount("-o", options, point).returncode == 0
    (server,) = servers(point)
    if elsewhere == "bind":
        run("mount", "--bind", point, other)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container:
        assert container.stdout is not None
        container.stdout.readline()
        done = unionmount("umount", point)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (0, "", 1)
        assert "is still mounted elsewhere" in done.stderr
        assert not is_mounted(point)
        ended = os.pidfd_open(server.pid)
        container.communicate(b"\n")
    if elsewhere == "bind":
        assert (other / "file0").read_text() == "in layer 0"
        run("umount", other)
    wait_for(ended)


def test_help_and_version() -> None:
    """They are answers, not errors; ``podman info`` asks for the version."""
    version, text = unionmount("--version"), unionmount("-h")
    assert (version.returncode, version.stderr, text.returncode, text.stderr) == (0, "", 0, "")
    assert "version" in version.stdout.lower()
    assert all(word in text.stdout for word in ("lowerdir", "upperdir", "workdir", "umount", "run", "diff"))
    assert unionmount("-V").stdout == version.stdout


@pytest.mark.parametrize("command", ["mount", "umount", "run", "diff", "explain", "stats", "check", "convert"])
def test_each_command_says_what_it_takes(command: str) -> None:
    done = unionmount(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"unionmount {command} " in done.stdout
    assert unionmount(command, "-h").stdout == done.stdout


@contextmanager
def mounted_in_foreground(base: Path, options: str) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """Mount at ``base``/m; the server has ended, and the mount with it, when this does."""
    point = base / "m"
    point.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*UNIONMOUNT, "-f", "-o", options, str(point)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as server:
        while not is_mounted(point):
            assert server.poll() is None
            os.sched_yield()
        yield point, server
    assert not is_mounted(point)
    assert servers(base) == []


def test_in_the_foreground(tmp_path: Path) -> None:
    """``-f`` stays until the mount ends; a signal that asks for the end unmounts."""
    with mounted_in_foreground(tmp_path, stack(tmp_path)) as (point, server):
        assert (point / "file0").exists()
        server.terminate()
        server.wait(LIMIT_S)


INTERRUPTED = """
import os, signal, sys
from unionfs.cli.main import main
from unionfs.fuse import mounting

def acquire(*arguments, real=mounting.acquire):
    device = real(*arguments)
    os.mkdir(sys.argv[-1] + "-was-mounted")
    os.kill(os.getpid(), signal.SIGTERM)
    return device

mounting.acquire = acquire
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("words", [("-f",), ()], ids=["foreground", "background"])
def test_a_signal_as_it_mounts_leaves_no_mount(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Nor one whose server is gone."""
    options, point = stack(tmp_path), tmp_path / "m"
    point.mkdir()
    command = [sys.executable, "-c", INTERRUPTED, *words, "-o", options, str(point)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=env)
    assert done.stdout == ""
    while servers(point):
        os.sched_yield()
    assert Path(f"{point}-was-mounted").exists()
    assert not is_mounted(point)


def test_many_layers(tmp_path: Path) -> None:
    """500 layers are more than a page of options holds, and all take part."""
    lowers, upper, work = prepare(tmp_path, 500)
    for index, lower in enumerate(lowers):
        (lower / "all").write_text(str(index))
        (lower / f"only{index}").write_text(str(index))
        (lower / "directory").mkdir()
        (lower / f"directory/{index}").touch()
    point = tmp_path / "m"
    options = f"lowerdir={':'.join(map(str, lowers))},upperdir={upper},workdir={work}"
    assert len(options) > 4096
    with mounted(point, "-o", options, point):
        assert (point / "all").read_text() == "0"
        assert len(os.listdir(point)) == 502
        assert sorted(map(int, os.listdir(point / "directory"))) == list(range(500))
        for index in (0, 1, 250, 499):
            assert (point / f"only{index}").read_text() == str(index)
        (point / "only499").write_text("changed")
        os.rename(point / "directory", point / "renamed")
        assert len(os.listdir(point / "renamed")) == 500
    assert (lowers[499] / "only499").read_text() == "499"
    assert stat.S_ISCHR(os.lstat(upper / "directory").st_mode)
