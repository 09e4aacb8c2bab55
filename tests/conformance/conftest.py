"""The marks of the table and the mounts that its cases share."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from . import cases as cases
from .subjects import SUBJECTS, Patience, Stack, answers, make_stack, unmount
from .table import CASES, Case, Place
from .trees import build, spread

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Subjects beyond the plain directory; ``UNIONFS_SUBJECTS=overlayfs,fuse-overlayfs`` chooses others.
CHOSEN = os.environ.get("UNIONFS_SUBJECTS", "overlayfs,direct,fusepy").split(",")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the floors as marks, so that ``-m basic`` chooses one."""
    config.addinivalue_line("markers", "basic: what every mount must do")
    config.addinivalue_line("markers", "posix: what makes a mount as good as a disk file system")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the mounts and the rows of the table to the tests that ask for them."""
    if "view" in metafunc.fixturenames:
        views = [(subject, count) for subject in CHOSEN for count in (1, 3)]
        ids = [f"{subject}-{count}" for subject, count in views]
        metafunc.parametrize("view", views, indirect=True, scope="module", ids=ids)
    if "origin" in metafunc.fixturenames:
        rows = [(row, origin) for row in CASES.values() for origin in row.origins]
        metafunc.parametrize("row,origin", [_param(row, row.origins, origin) for row, origin in rows])
    elif "row" in metafunc.fixturenames:
        metafunc.parametrize("row", [_param(row, ()) for row in CASES.values()])


def _param(row: Case, origins: tuple[str, ...], *origin: str) -> object:
    words = (row.name, *origin) if len(origins) > 1 else (row.name,)
    return pytest.param(row, *origin, id="-".join(words), marks=getattr(pytest.mark, row.floor))


class View:
    """One mount over layers that hold the trees of all cases, and how it is mounted again."""

    def __init__(self, subject: str, count: int, base: Path) -> None:
        self.subject = subject
        self.stack: Stack = make_stack(base, count)
        self._plain = base / "plain"
        self._plain.mkdir()
        for row in CASES.values():
            for origin in set(row.origins) - {"upper"}:
                spread(self.stack.lower, f"{row.name}-{origin}", row.tree)
        self.lower_before = digest(self.stack)
        SUBJECTS[subject](self.stack)

    def remount(self) -> None:
        """Unmount, mount again."""
        unmount(self.stack)
        SUBJECTS[self.subject](self.stack)

    def run(self, row: Case, origin: str) -> None:
        """Run one case in its directory; a server that it killed is replaced for the next one."""
        try:
            with Patience(self.stack.merged):
                row.run(self._place(row, origin))
        finally:
            if not answers(self.stack):
                subprocess.run(["umount", "-l", self.stack.merged], check=False, capture_output=True)
                SUBJECTS[self.subject](self.stack)

    def _place(self, row: Case, origin: str) -> Place:
        name = f"{row.name}-{origin}"
        path, plain = self.stack.merged / name, self._plain / name
        plain.mkdir()
        if origin == "upper":
            build(path, row.tree)
        elif origin == "copied":
            _copy_up(path, row)
        return Place(path, plain, self.remount)


def _copy_up(path: Path, row: Case) -> None:
    """Change each entry's owner to what it is: that leaves everything as it was, in the upper layer."""
    for name in row.tree:
        found = os.lstat(path / name)
        os.chown(path / name, found.st_uid, found.st_gid, follow_symlinks=False)
        if row.tree[name].mode and not os.path.islink(path / name):
            os.chmod(path / name, found.st_mode & 0o7777)
    for name, entry in row.tree.items():
        if entry.kind:
            os.utime(path / name, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
            for key, value in entry.xattrs.items():
                os.setxattr(path / name, key, value, follow_symlinks=False)


@pytest.fixture(scope="module")
def view(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[View]:
    """A mount that all cases of one subject share, each in a directory of its own."""
    subject, count = request.param
    made = View(subject, count, tmp_path_factory.mktemp("view"))
    yield made
    unmount(made.stack)


def digest(stack: Stack) -> Mapping[str, object]:
    """Return all that must stay the same in the lower layers: everything but the access times."""
    return {str(path): _facts(path) for layer in stack.lower for path in (layer, *sorted(layer.rglob("*")))}


def _facts(path: Path) -> tuple[object, ...]:
    found = os.lstat(path)
    xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
    data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
    where = os.readlink(path) if path.is_symlink() else ""
    numbers = (found.st_ino, found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size, found.st_rdev)
    return *numbers, found.st_mtime_ns, found.st_ctime_ns, xattrs, hash(data), where
