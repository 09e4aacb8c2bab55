"""The stack that every test of this directory changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.trees import digest_of_layer

from .operations import prepare

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two lower layers, and a writable one with changes; the writable one is copied for each death."""
    base = tmp_path_factory.mktemp("crash")
    prepare(base)
    return base


@pytest.fixture
def stack(layers: Path, tmp_path: Path) -> Iterator[Path]:
    """A stack of the same lower layers, which must be as they were afterwards, and room for copies of the upper one."""
    before = [digest_of_layer(layers / name) for name in ("lower0", "lower1")]
    for name in ("lower0", "lower1"):
        (tmp_path / name).symlink_to(layers / name)
    yield tmp_path
    assert [digest_of_layer(layers / name) for name in ("lower0", "lower1")] == before
