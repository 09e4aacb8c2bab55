"""A test with its own copy-on-write view of a fixture directory, however large: nothing is copied, nothing is spoiled.

    pytest examples/cow_fixture.py

``data`` is for code that is given the object to read and write with; ``data_path`` is a mounted directory, for code
that takes a path, C libraries and other programs included. Every test starts from the same files.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import unionfs

if TYPE_CHECKING:
    from collections.abc import Iterator

FILES = {"config.ini": "[app]\nmode = fast\n", "users/ada.txt": "ada\n", "users/bob.txt": "bob\n"}


@pytest.fixture(scope="session")
def fixture_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that all tests start from; a real project has them in its repository."""
    directory = tmp_path_factory.mktemp("fixture")
    for name, text in FILES.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(text)
    return directory


@pytest.fixture
def data(fixture_directory: Path, tmp_path: Path) -> Iterator[unionfs.Union]:
    """A view of the fixture directory that a test may change as it likes: with no mount and no privilege."""
    (tmp_path / "changes").mkdir()
    with unionfs.Union(lower=fixture_directory, upper=tmp_path / "changes", volatile=True) as union:
        yield union


@pytest.fixture
def data_path(fixture_directory: Path, tmp_path: Path) -> Iterator[Path]:
    """The same as a directory of the machine."""
    (tmp_path / "changes").mkdir()
    with ExitStack() as stack:
        try:
            mounted = unionfs.mount(lower=fixture_directory, upper=tmp_path / "changes", volatile=True)
            path = stack.enter_context(mounted)
        except unionfs.UnionfsError as error:
            pytest.skip(f"nothing can be mounted here: {error}")
        yield path


def test_that_deletes(data: unionfs.Union) -> None:
    """One test may delete what the next one needs."""
    data.rmtree("users")
    data.write_text("config.ini", "[app]\nmode = slow\n")
    assert [str(change) for change in data.changes()] == ["C /config.ini", "D /users"]


def test_that_starts_afresh(data: unionfs.Union) -> None:
    """Nothing of what the one before did is here."""
    assert data.read_text("config.ini") == FILES["config.ini"]
    assert sorted(data.listdir("users")) == ["ada.txt", "bob.txt"]


def test_with_real_paths(data_path: Path, fixture_directory: Path) -> None:
    """What is done to the mounted directory is not done to the fixture."""
    (data_path / "users" / "ada.txt").unlink()
    (data_path / "users" / "eve.txt").write_text("eve\n")
    assert sorted(path.name for path in (data_path / "users").iterdir()) == ["bob.txt", "eve.txt"]
    assert sorted(path.name for path in (fixture_directory / "users").iterdir()) == ["ada.txt", "bob.txt"]
