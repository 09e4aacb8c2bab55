"""Inode flags of lower files (chattr(1), +i and +a): what they forbid on a plain directory, they forbid in a union.

That is also how the kernel's overlayfs has it, in whose format they are kept when a file that has them is copied up.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.conformance.calls import (
    RENAME_EXCHANGE,
    append,
    inode_flags,
    opened,
    outcome,
    refused,
    rename,
    set_inode_flags,
    write_at,
)
from tests.conformance.subjects import SUBJECTS, Stack, Subject
from tests.support.mounts import union_mount
from tests.support.probes import requires
from unionfs.syscalls import files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Operation = Callable[[Path, str], object]

pytestmark = requires("root", "fuse", "overlayfs")

SYNC, IMMUTABLE, APPEND_ONLY, NOATIME = 0x08, 0x10, 0x20, 0x80
SHOWN = SYNC | IMMUTABLE | APPEND_ONLY | NOATIME
KEEP_SIZE = 1
FLAGS = {"fixed": IMMUTABLE, "fixed.d": IMMUTABLE, "log": APPEND_ONLY, "log.d": APPEND_ONLY | NOATIME, "quiet": NOATIME}


def _open(path: Path, flags: int) -> None:
    os.close(os.open(path, flags, 0o600))


def _allocate(path: Path, mode: int) -> None:
    with opened(path, os.O_WRONLY | os.O_APPEND) as descriptor:
        files.fallocate(descriptor, mode, 0, 100)


#: What is done with a file that has flags; the second argument is a suffix for names that are made.
TO_FILES: dict[str, Operation] = {
    "read": lambda path, _: path.read_bytes(),
    "write": lambda path, _: write_at(path, b"x"),
    "append": lambda path, _: append(path, b"x"),
    "empty": lambda path, _: _open(path, os.O_WRONLY | os.O_TRUNC),
    "append and empty": lambda path, _: _open(path, os.O_WRONLY | os.O_TRUNC | os.O_APPEND),
    "truncate": lambda path, _: os.truncate(path, 1),
    "allocate": lambda path, _: _allocate(path, KEEP_SIZE),
    "chmod": lambda path, _: path.chmod(0o640),
    "chown": lambda path, _: os.chown(path, 1, 1),
    "set times": lambda path, _: os.utime(path, (1, 1)),
    "touch": lambda path, _: os.utime(path),
    "set an attribute": lambda path, _: os.setxattr(path, "user.new", b"x"),
    "remove an attribute": lambda path, _: os.removexattr(path, "user.old"),
    "unlink": lambda path, _: path.unlink(),
    "rename": lambda path, new: path.rename(f"{path}{new}"),
    "rename over it": lambda path, _: path.with_name("plain").rename(path),
    "exchange": lambda path, _: rename(path, path.with_name("plain"), RENAME_EXCHANGE),
    "link": lambda path, new: os.link(path, f"{path}{new}"),
}
#: What is done with a directory that has flags, in which there is a file and a directory.
TO_DIRECTORIES: dict[str, Operation] = {
    "list": lambda path, _: os.listdir(path),
    "chmod": lambda path, _: path.chmod(0o750),
    "set times": lambda path, _: os.utime(path, (1, 1)),
    "set an attribute": lambda path, _: os.setxattr(path, "user.new", b"x"),
    "create": lambda path, new: _open(path / new, os.O_CREAT | os.O_EXCL | os.O_WRONLY),
    "create without a name": lambda path, _: _open(path, os.O_TMPFILE | os.O_WRONLY),
    "mkdir": lambda path, new: (path / f"{new}.d").mkdir(),
    "symlink": lambda path, new: (path / f"{new}.l").symlink_to("x"),
    "mkfifo": lambda path, new: os.mkfifo(path / f"{new}.p"),
    "link": lambda path, new: os.link(path.with_name("plain"), path / f"{new}.2"),
    "move in": lambda path, new: path.with_name(f"mine{new}").rename(path / f"{new}.3"),
    "move out": lambda path, new: (path / "file").rename(path.with_name(f"out{new}")),
    "rename": lambda path, new: (path / "file").rename(path / f"{new}.4"),
    "unlink": lambda path, _: (path / "file").unlink(),
    "rmdir": lambda path, _: (path / "empty").rmdir(),
    "rmdir of what is not empty": lambda path, _: (path / "sub").rmdir(),
    "change what is in it": lambda path, new: write_at(path / f"file{new}", b"x"),
    "make in what is in it": lambda path, new: (path / "sub" / new).mkdir(),
    "rmdir of itself": lambda path, _: path.rmdir(),
    "rename itself": lambda path, new: path.rename(f"{path}{new}"),
}
STAGES = ("first", "copied", "remounted")


def build(root: Path) -> None:
    """Make a directory of files with flags."""
    for name in ("fixed.d", "log.d"):
        (root / name / "sub/full").mkdir(parents=True)
        (root / name / "empty").mkdir()
        for file in ("file", *(f"file{stage}" for stage in STAGES)):
            (root / name / file).write_bytes(b"content")
    for stage in STAGES:
        (root / f"mine{stage}").write_bytes(b"")
    for name in ("plain", "fixed", "log", "quiet"):
        (root / name).write_bytes(b"content")
        os.setxattr(root / name, "user.old", b"x")
    _set(root, FLAGS)


def _set(root: Path, flags: dict[str, int]) -> None:
    for name, value in flags.items():
        with opened(root / name, os.O_RDONLY) as descriptor:
            set_inode_flags(descriptor, inode_flags(descriptor) & ~SHOWN | value)


def clear(root: Path) -> None:
    """Take the flags of all files away, so that they can be removed."""
    for place, _directories, names in os.walk(root):
        files_in = (name for name in names if stat.S_ISREG(os.lstat(os.path.join(place, name)).st_mode))
        _set(root, {os.path.join(place, name): 0 for name in (".", *files_in)})


def told(root: Path) -> dict[str, int]:
    """Return the flags that ioctl_iflags(2) tells."""
    found = {}
    for name in FLAGS:
        with opened(root / name, os.O_RDONLY) as descriptor:
            found[name] = inode_flags(descriptor) & SHOWN
    return found


def results(root: Path, stage: str) -> dict[str, int]:
    """Do everything with everything; return the errno of each. What has flags that forbid nothing is copied up."""
    append(root / "quiet", b"x")
    done = {}
    for table, names in ((TO_FILES, ("fixed", "log")), (TO_DIRECTORIES, ("fixed.d", "log.d"))):
        for name in names:
            for what, operation in table.items():
                done[f"{what}: {name}"] = outcome(operation, root / name, stage)
    return done


def _ours(options: str) -> Subject:
    return Subject(partial(union_mount, options=options), ("root", "fuse"))


WAYS = {
    **{name: SUBJECTS[name] for name in ("overlayfs", "direct", "opened", "write-through", "fusepy")},
    "metacopy": _ours("metacopy=on"),
    "userxattr": _ours("whiteouts=userxattr"),
}
#: What the transport through libfuse 2 does not have.
UNKNOWN = {"fusepy": {f"{what}: {name}" for what in ("exchange", "create without a name") for name in FLAGS}}
#: How it is mounted at first, and then once more.
MOUNTS = [*((name, name) for name in WAYS), ("direct", "overlayfs"), ("overlayfs", "direct")]


@pytest.fixture
def flagged(tmp_path: Path) -> Iterator[list[Path]]:
    """Directories whose flags are taken away at the end."""
    places = [tmp_path / name for name in ("plain", "lower0", "lower1", "upper")]
    yield places
    for place in places:
        clear(place)


@pytest.mark.parametrize(("first", "then"), MOUNTS)
def test_flags_of_lower_files_are_obeyed_and_kept(tmp_path: Path, flagged: list[Path], first: str, then: str) -> None:
    """Before and after a copy-up, and in a new mount, also of the other kind."""
    stack = Stack(tmp_path, WAYS[first], 2)
    plain = flagged[0]
    for place in (plain, stack.lowers[1] / "tree"):
        build(place)
    digest = stack.digest()
    with ExitStack() as mounted:
        for stage in STAGES:
            if stage == "remounted":
                mounted.close()
                stack = Stack(tmp_path, WAYS[then], 2)
            if stage != "copied":
                stack.mount()
                mounted.callback(stack.unmount)
            tree = stack.merged / "tree"
            assert told(tree) == told(plain), stage
            got, wanted = results(tree, stage), results(plain, stage)
            assert {what for what in got if got[what] != wanted[what]} == UNKNOWN.get(first, set()) & got.keys(), stage
        clear(tree)
        assert set(told(tree).values()) == {0}
        shutil.rmtree(tree)
        assert stack.digest() == digest


@pytest.mark.parametrize("flag", [IMMUTABLE, APPEND_ONLY, IMMUTABLE | APPEND_ONLY])
def test_a_directory_that_is_fixed_takes_copies(tmp_path: Path, flagged: list[Path], flag: int) -> None:
    """What lies in it may change, though nobody may add a name; and it is as fixed for the kernel's overlayfs."""
    stack = Stack(tmp_path, WAYS["direct"], 1)
    (stack.lowers[0] / "made.d").mkdir()
    (stack.lowers[0] / "made.d/file").write_bytes(b"content")
    stack.mount()
    try:
        _set(stack.merged, {"made.d": flag})
        write_at(stack.merged / "made.d/file", b"x")
        refused(errno.EPERM, (stack.merged / "made.d/file").unlink)
    finally:
        stack.unmount()
    stack = Stack(tmp_path, WAYS["overlayfs"], 1)
    stack.mount()
    try:
        with opened(stack.merged / "made.d", os.O_RDONLY) as descriptor:
            assert inode_flags(descriptor) & SHOWN == flag
        refused(errno.EPERM, (stack.merged / "made.d/file").unlink)
        assert (stack.merged / "made.d/file").read_bytes() == b"xontent"
        _set(stack.merged, {"made.d": 0})
        (stack.merged / "made.d/file").unlink()
    finally:
        stack.unmount()
