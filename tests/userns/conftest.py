"""Ordinary users, with and without ids of their own."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.probes import need

from .person import Person, new_base

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that every user may enter."""
    directory = new_base()
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def alone(base: Path) -> Person:
    """A user to whom no ids are granted: their user namespace has one."""
    need("root", "userns")
    return Person(base, granted=False)


@pytest.fixture
def granted(base: Path) -> Person:
    """A user with a range of ids in /etc/subuid."""
    need("root", "userns", "newuidmap")
    return Person(base, granted=True)


@pytest.fixture(params=["alone", "granted"])
def person(request: pytest.FixtureRequest) -> Person:
    """Each of the two."""
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Person)
    return found
