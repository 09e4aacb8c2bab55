"""The marks of the table and the mounts that its cases share."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import pytest

from tests.support.probes import requires

from . import cases as cases
from .subjects import SUBJECTS, Patience, Stack
from .table import CASES, Case, Place
from .trees import build, spread

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Subjects beyond the plain directory; ``UNIONFS_SUBJECTS=overlayfs,fuse-overlayfs`` chooses others.
CHOSEN = os.environ.get("UNIONFS_SUBJECTS", "overlayfs,direct,write-through,write-back,opened,fusepy").split(",")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the floors as marks, so that ``-m basic`` chooses one."""
    config.addinivalue_line("markers", "basic: what every mount must do")
    config.addinivalue_line("markers", "posix: what makes a mount as good as a disk file system")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the mounts and the rows of the table to the tests that ask for them."""
    if "view" in metafunc.fixturenames:
        views = [(subject, count) for subject in CHOSEN for count in SUBJECTS[subject].counts]
        metafunc.parametrize("view", list(map(_view, views)), indirect=True, scope="module")
    if "origin" in metafunc.fixturenames:
        rows = [(row, origin) for row in CASES.values() for origin in row.origins]
        metafunc.parametrize("row,origin", [_param(row, row.origins, origin) for row, origin in rows])
    elif "row" in metafunc.fixturenames:
        metafunc.parametrize("row", [_param(row, ()) for row in CASES.values()])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what the number of layers makes no difference to: that which lies in the upper one."""
    again = [item for item in items if _is_a_repetition(item)]
    config.hook.pytest_deselected(items=again)
    items[:] = [item for item in items if item not in set(again)]


def _is_a_repetition(item: pytest.Item) -> bool:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    subject, count = cast("tuple[str, int]", params.get("view", ("", 0)))
    return params.get("origin") == "upper" and bool(subject) and count != SUBJECTS[subject].counts[0]


def _view(choice: tuple[str, int]) -> object:
    subject, count = choice
    return pytest.param(choice, id=f"{subject}-{count}", marks=requires(*SUBJECTS[subject].needs))


def _param(row: Case, origins: tuple[str, ...], *origin: str) -> object:
    words = (row.name, *origin) if len(origins) > 1 else (row.name,)
    return pytest.param(row, *origin, id="-".join(words), marks=getattr(pytest.mark, row.floor))


class View:
    """One mount over layers that hold the trees of all cases, and how it is mounted again."""

    def __init__(self, subject: str, count: int, base: Path) -> None:
        self.subject = subject
        self.stack = Stack(base, SUBJECTS[subject], count)
        self._plain = base / "plain"
        self._plain.mkdir()
        for row in CASES.values():
            for origin in set(row.origins) - {"upper"}:
                spread(self.stack.lowers, f"{row.name}-{origin}", row.tree)
        self.lower_before = self.stack.digest()
        self.stack.mount()

    def remount(self) -> None:
        """Unmount, mount again."""
        self.stack.unmount()
        self.stack.mount()

    def run(self, row: Case, origin: str) -> None:
        """Run one case in its directory; a server that died of it, or complained, is replaced for the next one."""
        try:
            with Patience(self.stack.merged):
                row.run(self._place(row, origin))
            assert not self.stack.complaints()
        finally:
            if self.stack.complaints() or not self.stack.answers():
                with suppress(AssertionError):
                    self.stack.unmount()
                self.stack.mount()

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
    made.stack.unmount()
