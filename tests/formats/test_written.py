"""The dialect that is written: the strongest that the upper can hold, or the one that was asked for."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

import unionfs
from tests.support.mounts import LIMIT_S, ROOT, end, is_mounted, prepare, run, union_mount
from tests.support.probes import requires
from tests.support.trees import assert_same_tree, snapshot
from unionfs import errors
from unionfs.syscalls import files
from unionfs.union.stack import Config, open_stack

from . import scripts
from .dialects import Looker, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

pytestmark = requires("root", "fuse")

BOTTOM = {"file": "0", "gone": "0", "d/file": "0", "d/gone": "0", "e/file": "0", "e/f/file": "0"}


def _work(union: unionfs.Union) -> None:
    """Write each kind of mark: deleted names, hiding directories, a moved directory."""
    union.unlink("/gone")
    union.unlink("/d/gone")
    union.unlink("/e/file")
    union.unlink("/e/f/file")
    union.rmdir("/e/f")
    union.rmdir("/e")
    union.mkdir("/e")
    union.rename("/d", "/moved")
    union.mkdir("/d")


SHOWN = {"d/": "", "e/": "", "file": "0", "moved/": "", "moved/file": "0"}


def marks(layer: Path) -> set[str]:
    """Return the marks that a layer holds: kinds of whiteouts, and names of attributes."""
    found: set[str] = set()
    for place, directories, names in os.walk(layer):
        for name in (*directories, *names, "."):
            path = os.path.join(place, name)
            state = os.lstat(path)
            if stat.S_ISCHR(state.st_mode) and state.st_rdev == 0:
                found.add("device")
            if name.startswith(".wh."):
                found.add(name if name == ".wh..wh..opq" else "marker")
            try:
                found.update(key for key in os.listxattr(path, follow_symlinks=False) if "overlay" in key)
            except OSError:
                continue
    return found - {"trusted.overlay.origin", "user.overlay.origin", "trusted.overlay.impure", "user.overlay.impure"}


@pytest.mark.parametrize(("refusal", "tries"), [(errno.EPERM, 1), (errno.EOPNOTSUPP, 1), (errno.EMLINK, 3)])
def test_an_upper_that_links_no_devices_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int, tries: int
) -> None:
    """A whiteout that has all the names it can have is no reason not to try with the next one; see link(2)."""
    refused: list[bytes] = []

    def refuse(_directory: int, _old: bytes, _new_directory: int, new: bytes, _flags: int = 0) -> None:
        refused.append(new)
        raise OSError(refusal, os.strerror(refusal))

    (lower,), upper, work = prepare(tmp_path)
    write(lower, dict.fromkeys("abc", ""))
    with unionfs.Union([lower], upper, work) as union:
        monkeypatch.setattr(files, "linkat", refuse)
        for name in "abc":
            union.unlink(name)
        assert refused == [b"a", b"b", b"c"][:tries]
        assert marks(upper) == {"device"}
        assert not list((work / "work").iterdir())


@requires("trusted-xattrs", "user-xattrs")
@pytest.mark.parametrize(
    ("whiteouts", "expected"),
    {
        "overlay": {"device", "trusted.overlay.opaque", "trusted.overlay.redirect"},
        "userxattr": {"device", "user.overlay.opaque"},
        "oci": {"marker", ".wh..wh..opq"},
    }.items(),
)
def test_a_dialect_that_was_asked_for(tmp_path: Path, whiteouts: str, expected: set[str]) -> None:
    """No mark of another one is written, and the tree is the same."""
    (lower,), upper, work = prepare(tmp_path)
    write(lower, BOTTOM)
    with union_mount(tmp_path, [lower], upper, work, f"whiteouts={whiteouts}") as point:
        for name in ("gone", "d/gone", "e/file", "e/f/file"):
            (point / name).unlink()
        (point / "e/f").rmdir()
        (point / "e").rmdir()
        (point / "e").mkdir()
        (point / "d").rename(point / "moved")
        (point / "d").mkdir()
        assert Looker(point).tree() == SHOWN
    assert marks(upper) == expected
    with unionfs.Union(lower=lower, upper=upper, workdir=work) as union:
        assert Looker(union).tree() == SHOWN


@requires("trusted-xattrs")
def test_the_strongest_one_is_found(tmp_path: Path) -> None:
    """As root on a file system with attributes, that is overlayfs's own."""
    (lower,), upper, work = prepare(tmp_path)
    write(lower, BOTTOM)
    with unionfs.Union(lower=lower, upper=upper, workdir=work) as union:
        _work(union)
        assert Looker(union).tree() == SHOWN
    assert marks(upper) == {"device", "trusted.overlay.opaque", "trusted.overlay.redirect"}


@requires("user-xattrs", "userns")
def test_without_privilege_it_is_the_one_of_users(tmp_path: Path) -> None:
    """Devices 0:0 need no privilege, and ``trusted.*`` does."""
    (lower,), upper, work = prepare(tmp_path)
    write(lower, BOTTOM)
    script = "import sys, unionfs; from tests.formats.test_written import _work\n"
    script += "with unionfs.Union(*sys.argv[1:]) as union: _work(union)"
    run("unshare", "--user", "--map-root-user", sys.executable, "-c", script, lower, upper, work)
    assert marks(upper) == {"device", "user.overlay.opaque"}
    with unionfs.Union(lower=lower, upper=upper, workdir=work) as union:
        assert Looker(union).tree() == SHOWN


def test_a_dialect_that_there_is_not(tmp_path: Path) -> None:
    """One line that names those there are."""
    (lower,), upper, work = prepare(tmp_path)
    point = tmp_path / "point"
    point.mkdir()
    words = ("--lower", lower, "--upper", upper, "--work", work, "--whiteouts", "aufs", point)
    done = run(sys.executable, "-m", "unionfs.cli.main", "mount", *words, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        "unionmount: no such kind of whiteouts: 'aufs'; there are overlay, userxattr, oci; see 'unionmount --help'\n"
    )


# -- file systems that can do less -----------------------------------------------------------------------------------


@pytest.fixture
def ramfs(tmp_path: Path) -> Iterator[Path]:
    """A file system without extended attributes."""
    place = tmp_path / "ramfs"
    place.mkdir()
    run("mount", "-t", "ramfs", "ramfs", place)
    yield place
    run("umount", place)


@contextmanager
def _poor(base: Path) -> Iterator[Path]:
    source, place = base / "source", base / "poor"
    source.mkdir()
    place.mkdir()
    command = [sys.executable, str(ROOT / "tests/formats/poor.py"), str(source), str(place)]
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    deadline = time.monotonic() + LIMIT_S
    try:
        while not is_mounted(place):
            assert server.poll() is None, "the poor file system could not be mounted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield place
        run("umount", place)
        server.wait(LIMIT_S)
    finally:
        end(server)


@pytest.fixture
def poor(tmp_path: Path) -> Iterator[Path]:
    """A file system as poor as FAT."""
    with _poor(tmp_path) as place:
        yield place


def _compare(base: Path, room: Path, names: Sequence[str], skip: tuple[str, ...], ignore: tuple[str, ...]) -> None:
    """Work through scripts with the upper in ``room``, and compare with a plain directory, also after a remount."""
    lower, plain = base / "lower", base / "plain"
    for place in (lower, plain):
        place.mkdir()
        scripts.prepare(place, names, skip)
    for generation in (0, 1):
        scripts.work(plain, generation, names, skip)
    for name in ("upper", "work"):
        (room / name).mkdir()
    before = snapshot(lower)
    for generation in (0, 1):
        with union_mount(base, [lower], room / "upper", room / "work") as point:
            scripts.work(point, generation, names, skip)
            assert_same_tree(plain if generation else snapshot(point), point, ignore=("mtime_ns", *ignore))
    assert_same_tree(before, lower)


def test_without_attributes(tmp_path: Path, ramfs: Path) -> None:
    """On a ramfs, all works but attributes: directories are moved whole, links hold together."""
    _compare(tmp_path, ramfs, list(scripts.SCRIPTS), skip=("set",), ignore=())
    assert marks(ramfs / "upper") == {"marker", ".wh..wh..opq"}


@requires("libfuse2")
def test_without_anything(tmp_path: Path, poor: Path) -> None:
    """On a file system as poor as FAT, what it cannot do fails as it does there, and all the rest works."""
    skip = ("set", "link", "symlink", "fifo", "chmod", "chown", "exchange")
    ignore = ("mode", "uid", "gid", "links", "xattrs")
    _compare(tmp_path, poor, [name for name in scripts.SCRIPTS if not name.startswith("links")], skip, ignore)
    assert marks(poor / "upper") <= {"marker", ".wh..wh..opq"}


@requires("libfuse2")
def test_what_a_poor_file_system_cannot_do(tmp_path: Path, poor: Path) -> None:
    """Its own errors come through, and nothing is lost by a failed attempt."""
    (lower,), _, _ = prepare(tmp_path)
    write(lower, {"file": "0", "d/file": "0", "other/file": "0"})
    (lower / "linked").hardlink_to(lower / "file")
    (lower / "symlink").symlink_to("file")
    for name in ("upper", "work"):
        (poor / name).mkdir()
    with union_mount(tmp_path, [lower], poor / "upper", poor / "work") as point:
        before = Looker(point).tree()
        attempts: list[Callable[[], object]] = [
            lambda: (point / "new").hardlink_to(point / "d/file"),
            lambda: (point / "new").symlink_to("file"),
            lambda: os.mkfifo(point / "new"),
            lambda: (point / "d/file").chmod(0o4755),
            lambda: os.chown(point / "d/file", 1000, 1000),
            lambda: os.setxattr(point / "d/file", "user.x", b"1"),
        ]
        for attempt in attempts:
            with pytest.raises(OSError, match=r"not permitted|not supported"):
                attempt()
        assert Looker(point).tree() == before
        (point / "linked").write_text("1")
        (point / "symlink").unlink()
        (point / "d").rename(point / "moved")
        assert Looker(point).tree() == {
            "file": "0",
            "linked": "1",
            "moved/": "",
            "moved/file": "0",
            "other/": "",
            "other/file": "0",
        }


@pytest.mark.parametrize("whiteouts", ["overlay", "userxattr"])
def test_a_dialect_that_the_upper_cannot_hold(tmp_path: Path, ramfs: Path, whiteouts: str) -> None:
    """It is refused before anything is written, with the reason."""
    (lower,), _, _ = prepare(tmp_path)
    upper, work = ramfs / "upper", ramfs / "work"
    for place in (upper, work):
        place.mkdir()
    config = Config([os.fsencode(lower)], os.fsencode(upper), os.fsencode(work), whiteouts=whiteouts)
    with pytest.raises(errors.WhiteoutsImpossible, match=f"cannot hold '{whiteouts}' whiteouts"):
        open_stack(config)
    assert list(upper.iterdir()) == []
    with unionfs.Union(lower=lower, upper=upper, workdir=work) as union:
        union.write_text("/file", "1")
