"""Whatever cannot be mounted is refused with one line that names the thing, and leaves nothing: no mount, no process,
no directory, no change in a layer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import pytest

from tests.support import leftovers
from tests.support.mounts import run
from tests.support.probes import requires
from tests.support.trees import assert_same_tree, snapshot
from unionfs.cli import main
from unionfs.syscalls import mounts

from .command import mounted, servers, stack, through, tmpfs, unionmount

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from .command import Word

pytestmark = requires("root", "fuse")


class Bad(NamedTuple):
    """A command line (``{}`` is the base directory), what its message names, and the exit status."""

    words: str
    names: str
    status: int = 1


#: In the base directory are l (with l/sub), l2, u (with u/sub), w, m, a file f, and a symlink ln to l.
CASES = {
    "no words": Bad("", "--help", 2),
    "no mountpoint": Bad("-o lowerdir={}/l", "mountpoint", 2),
    "too many words": Bad("-o lowerdir={}/l source {}/m {}/more", "more", 2),
    "unknown option": Bad("--frobnicate -o lowerdir={}/l {}/m", "--frobnicate", 2),
    "option without value": Bad("{}/m -o", "-o", 2),
    "unknown transport": Bad("--transport pigeon -o lowerdir={}/l {}/m", "pigeon", 2),
    "no layers": Bad("{}/m", "lower", 2),
    "no such command": Bad("images", "'images' is no command", 2),
    "empty lowerdir": Bad("-o lowerdir= {}/m", "lower"),
    "layer missing": Bad("-o lowerdir={}/l:{}/absent {}/m", "{}/absent"),
    "layer is a file": Bad("-o lowerdir={}/f {}/m", "{}/f"),
    "layer below a file": Bad("-o lowerdir={}/f/l {}/m", "{}/f/l"),
    "upper missing": Bad("-o lowerdir={}/l,upperdir={}/absent,workdir={}/w {}/m", "{}/absent"),
    "upper is a file": Bad("-o lowerdir={}/l,upperdir={}/f,workdir={}/w {}/m", "{}/f"),
    "upper is a lower": Bad("-o lowerdir={}/l2:{}/l,upperdir={}/l,workdir={}/w {}/m", "{}/l"),
    "upper is a lower by another name": Bad("-o lowerdir={}/ln,upperdir={}/l,workdir={}/w {}/m", "{}/l"),
    "upper inside a lower": Bad("-o lowerdir={}/l,upperdir={}/l/sub,workdir={}/w {}/m", "{}/l/sub"),
    "upper above a lower": Bad("-o lowerdir={}/u/sub,upperdir={}/u,workdir={}/w {}/m", "{}/u"),
    "upper is a data layer": Bad("-o lowerdir={}/l::{}/u,upperdir={}/u,workdir={}/w {}/m", "{}/u"),
    "no workdir": Bad("-o lowerdir={}/l,upperdir={}/u {}/m", "{}/u"),
    "workdir missing": Bad("-o lowerdir={}/l,upperdir={}/u,workdir={}/absent {}/m", "{}/absent"),
    "workdir is a file": Bad("-o lowerdir={}/l,upperdir={}/u,workdir={}/f {}/m", "{}/f"),
    "workdir is the upper": Bad("-o lowerdir={}/l,upperdir={}/u,workdir={}/u {}/m", "{}/u"),
    "workdir inside the upper": Bad("-o lowerdir={}/l,upperdir={}/u,workdir={}/u/sub {}/m", "{}/u/sub"),
    "workdir above the upper": Bad("-o lowerdir={}/l,upperdir={}/u/sub,workdir={}/u {}/m", "{}/u"),
    "workdir inside a lower": Bad("-o lowerdir={}/l,upperdir={}/u,workdir={}/l/sub {}/m", "{}/l/sub"),
    "mountpoint missing": Bad("-o lowerdir={}/l {}/absent", "{}/absent"),
    "mountpoint is a file": Bad("-o lowerdir={}/l {}/f", "{}/f"),
    "mountpoint below a file": Bad("-o lowerdir={}/l {}/f/m", "{}/f/m"),
    "mountpoint is the upper": Bad("-o lowerdir={}/l,upperdir={}/u,workdir={}/w {}/u", "{}/u"),
    "mountpoint inside the upper": Bad("-o lowerdir={}/l,upperdir={}/u,workdir={}/w {}/u/sub", "{}/u/sub"),
    "size is no number": Bad("-o lowerdir={}/l,max_read=lots {}/m", "max_read", 2),
    "unmounting what is not mounted": Bad("umount {}/m", "{}/m"),
    "unmounting what is not there": Bad("umount {}/absent", "{}/absent"),
    "in words, layer missing": Bad("mount --lower {}/absent --upper {}/u {}/m", "{}/absent"),
    "in words, no layer": Bad("mount --upper {}/u {}/m", "lower"),
    "a layer whose files have no handles": Bad("-o nfs_export=on,lowerdir={}/l:/proc/fs {}/m", "/proc/fs"),
    "handles by way of libfuse": Bad("--transport fusepy -o nfs_export=on,lowerdir={}/l {}/m", "nfs_export", 2),
    "layer name not UTF-8": Bad("-o lowerdir={}/\udcff {}/m", "\\xff"),
    "layer without a name": Bad("mount --lower= {}/m", "''"),
    "upper without a name": Bad("-o lowerdir={}/l,upperdir=,workdir= {}/m", "'': no such layer"),
    "layer of a run without a name": Bad("run --lower= -- true", "'': no such layer"),
    "transport of a run": Bad("run --transport pigeon --lower {}/l -- true", "no such transport: 'pigeon'", 2),
    "workdir of a run without an upper": Bad("run --work {}/w --lower {}/l -- true", "'--work' needs '--upper'", 2),
    "layer name of two lines": Bad("-o lowerdir={}/a\nb {}/m", "\\n"),
}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The directories that the table speaks of."""
    for name in ("l/sub", "l2", "u/sub", "w", "m"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "f").write_text("a file")
    (tmp_path / "l/data").write_text("data of a layer")
    (tmp_path / "ln").symlink_to("l")
    return tmp_path


@contextmanager
def refused(base: Path, names: str, status: int = 1) -> Iterator[Callable[..., None]]:
    """Give a function that runs the command and judges how it is refused; then see that nothing was left."""
    before, mounts_before = snapshot(base), leftovers.mounts_below(base)

    def judge(*words: Word, wrapper: tuple[str, ...] = ()) -> None:
        done = through(wrapper, *words)
        assert done.returncode == status, done
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stderr.startswith("unionmount: ")
        assert names.format(base) in done.stderr

    try:
        yield judge
        assert leftovers.mounts_below(base) == mounts_before
    finally:
        for mount in leftovers.mounts_below(base):
            leftovers.detach(mount.point)
    assert servers(base) == []
    assert_same_tree(before, base)


@pytest.mark.parametrize("bad", CASES.values(), ids=CASES)
def test_refused_in_one_line(base: Path, bad: Bad) -> None:
    """Each row of the table."""
    words = [word.format(*[base] * word.count("{}")) for word in bad.words.split(" ") if word]
    with refused(base, bad.names, bad.status) as judge:
        judge(*words)


@contextmanager
def busy(base: Path) -> Iterator[None]:
    """A mount that is there already."""
    (base / "m2").mkdir()
    with mounted(base / "m2", "-o", f"lowerdir={base}/l,upperdir={base}/u,workdir={base}/w", base / "m2"):
        yield


@contextmanager
def dead(point: Path) -> Iterator[None]:
    """A mount whose server is gone: every access fails with ENOTCONN."""
    device = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={device},rootmode=40000,user_id=0,group_id=0".encode()
    mounts.mount(b"dead", os.fsencode(point), b"fuse", 0, data)
    os.close(device)
    try:
        yield
    finally:
        run("umount", point)


@contextmanager
def full(point: Path) -> Iterator[None]:
    """A file system with two directories, and no room for a third."""
    with tmpfs(point, "nr_inodes=3"):
        (point / "a").mkdir()
        (point / "b").mkdir()
        yield


#: What must be there first, the command, what the message names.
CIRCUMSTANCES: dict[str, tuple[Callable[[Path], AbstractContextManager[None]], str, str]] = {
    "upper in use": (busy, "-o lowerdir={}/l,upperdir={}/u,workdir={}/l2 {}/m", "{}/u"),
    "workdir in use": (busy, "-o lowerdir={}/l,upperdir={}/l2,workdir={}/w {}/m", "{}/w"),
    "upper in use, by another name": (busy, "-o lowerdir={}/l,upperdir={}/./l/../u,workdir={}/l2 {}/m", "/u"),
    "mountpoint taken": (busy, "-o lowerdir={}/l {}/m2", "{}/m2"),
    "workdir elsewhere": (lambda at: tmpfs(at / "w"), "-o lowerdir={}/l,upperdir={}/u,workdir={}/w {}/m", "{}/w"),
    "workdir full": (
        lambda at: full(at / "w"),
        "-o lowerdir={}/l,upperdir={}/w/a,workdir={}/w/b {}/m",
        "/w/b: the workdir",
    ),
    "no room for a workdir": (
        lambda at: full(at / "w"),
        "mount --lower {}/l --upper {}/w/a {}/m",
        "-work: the workdir",
    ),
    "upper read-only": (lambda at: tmpfs(at / "u", "ro"), "-o lowerdir={}/l,upperdir={}/u,workdir={}/u {}/m", "{}/u"),
    "layer of a dead server": (lambda at: dead(at / "l2"), "-o lowerdir={}/l2 {}/m", "{}/l2"),
    "mountpoint of a dead server": (lambda at: dead(at / "m"), "-o lowerdir={}/l {}/m", "{}/m"),
}


@pytest.mark.parametrize("circumstance", CIRCUMSTANCES.values(), ids=CIRCUMSTANCES)
def test_refused_as_things_are(
    base: Path, circumstance: tuple[Callable[[Path], AbstractContextManager[None]], str, str]
) -> None:
    """Refusals that depend on what else there is."""
    around, words, names = circumstance
    with around(base):
        done = unionmount(*words.format(*[base] * words.count("{}")).split(" "))
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        assert done.stderr.startswith("unionmount: ")
        assert names.format(base) in done.stderr
    assert leftovers.mounts_below(base) == []
    assert servers(base) == []


#: How /dev/fuse is made useless in a mount namespace of its own.
DEVICES = {
    "no device": "mount -t tmpfs none /dev && mknod /dev/null c 1 3",
    "no right to the device": "mount -t tmpfs -o nodev none /mnt && mknod /mnt/fuse c 10 229"
    " && mount --bind /mnt/fuse /dev/fuse",
}


@pytest.mark.parametrize("script", DEVICES.values(), ids=DEVICES)
def test_refused_without_the_device(base: Path, script: str) -> None:
    """A machine, or a container, without /dev/fuse."""
    wrapper = ("unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh")
    with refused(base, "/dev/fuse") as judge:
        judge("-o", f"lowerdir={base}/l", base / "m", wrapper=wrapper)


@pytest.mark.parametrize("place", ["l", "l/sub"])
def test_mountpoint_in_a_lower_layer(base: Path, place: str) -> None:
    """It works or is refused, but never hangs: the mount must not see itself."""
    point = base / place
    done = unionmount("-o", f"lowerdir={base}/l", point)
    with nullcontext() if done.returncode else _unmounted(point):
        if done.returncode:
            assert (done.returncode, done.stderr.count("\n")) == (1, 1)
            assert str(point) in done.stderr
        else:
            assert (point / "data").read_text() == "data of a layer"
            assert os.listdir(point / "sub") == []


@contextmanager
def _unmounted(point: Path) -> Iterator[None]:
    try:
        yield
    finally:
        assert unionmount("umount", point).returncode == 0


def test_the_first_mount_is_not_disturbed_by_the_second(base: Path) -> None:
    """Refusing an upper that is in use must not clear its workdir or spoil its mark."""
    with busy(base):
        (base / "m2/data").write_text("written")
        for _ in range(2):
            done = unionmount("-o", f"lowerdir={base}/l,upperdir={base}/u,workdir={base}/w", base / "m")
            assert done.returncode == 1
        (base / "m2/more").write_text("more")
        os.rename(base / "m2/data", base / "m2/sub/data")
    assert (base / "u/sub/data").read_text() == "written"
    with mounted(base / "m", "-o", f"lowerdir={base}/l,upperdir={base}/u,workdir={base}/w", base / "m"):
        assert (base / "m/more").read_text() == "more"


def test_a_mount_in_use_is_not_unmounted(tmp_path: Path) -> None:
    """``umount`` refuses in one line, and the mount goes on."""
    words = stack(tmp_path)
    point = tmp_path / "m"
    with mounted(point, "-o", words, point), (point / "file0").open() as held:
        done = unionmount("umount", point)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert str(point) in done.stderr
        assert held.read() == "in layer 0"


HELPFUL = ("run", "check", "stats")


@pytest.mark.parametrize("output", [">&-", "> /dev/full"], ids=["closed", "full"])
@pytest.mark.parametrize("unbuffered", ["", "PYTHONUNBUFFERED=1"])
@pytest.mark.parametrize("words", ["diff --lower l --upper u", "--version", *(f"{name} --help" for name in HELPFUL)])
def test_an_output_that_takes_nothing(base: Path, words: str, output: str, unbuffered: str) -> None:
    (base / "u/added").touch()
    command = f"{unbuffered} {sys.executable} -m unionfs.cli.main {words} {output}"
    done = subprocess.run(command, shell=True, cwd=base, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
    assert done.stderr.startswith("unionmount: standard output: ")


def test_an_output_that_nobody_reads(base: Path) -> None:
    """As of ``| head -1``: that is no error of ours."""
    for number in range(3000):
        (base / "u" / f"added-{number}").touch()
    command = f"({sys.executable} -m unionfs.cli.main diff --lower l --upper u; echo $? >&2) | :"
    done = subprocess.run(command, shell=True, cwd=base, capture_output=True, text=True, check=False, timeout=30)
    assert done.stderr == "1\n"


def test_any_other_broken_pipe_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_words: list[str]) -> int:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE), "something else")

    monkeypatch.setattr(main, "_dispatch", fail)
    assert main.main([]) == 1
    assert capsys.readouterr().err == "unionmount: something else: Broken pipe\n"
