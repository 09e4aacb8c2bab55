"""Layers for the tests of the engine, and what must hold of them after each test."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

import unionfs
from tests.support.trees import digest_of_layer
from unionfs import ondisk
from unionfs.layers.writable import WritableLayer
from unionfs.union.check import check

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Layers:
    """The directories of a stack; ``lowers`` topmost first."""

    def __init__(self, base: Path) -> None:
        self.lowers = [base / f"lower{index}" for index in range(3)]
        self.upper = base / "upper"
        self.work = base / "work"
        for directory in (*self.lowers, self.upper, self.work):
            directory.mkdir()
        self._before: list[str] | None = None

    def union(self, **more: Any) -> unionfs.Union:
        """Open the stack; from now on its lower layers must not change."""
        if self._before is None:
            self._before = list(map(digest_of_layer, self.lowers))
        return unionfs.Union(lower=self.lowers, upper=self.upper, workdir=self.work, **{"volatile": True, **more})

    def write(self, files: dict[str, str]) -> None:
        """Write files: "1/a/b" is a/b in the second layer from the top, "upper/a" in the upper; "a/" is a directory."""
        for name, text in files.items():
            layer, _, path = name.partition("/")
            place = (self.upper if layer == "upper" else self.lowers[int(layer)]) / path
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.endswith("/"):
                place.mkdir(exist_ok=True)
            else:
                place.write_text(text)

    def examine(self) -> None:
        """See that the upper is sound and that the lower layers are as they were."""
        lowers = [os.fsencode(layer) for layer in self.lowers]
        assert list(map(str, check(os.fsencode(self.upper), os.fsencode(self.work), lowers))) == []
        if self._before is not None:
            assert list(map(digest_of_layer, self.lowers)) == self._before, "a lower layer was changed"


@pytest.fixture
def layers(tmp_path: Path) -> Iterator[Layers]:
    """Three lower layers, an upper and a workdir, sound at the end."""
    made = Layers(tmp_path)
    yield made
    made.examine()


@pytest.fixture(params=[dialect.name for dialect in ondisk.DIALECTS])
def dialect(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ondisk.Dialect:
    """Each way to write deletions in turn, whatever the file system could hold."""
    chosen = next(dialect for dialect in ondisk.DIALECTS if dialect.name == request.param)
    if chosen is ondisk.OVERLAY and os.geteuid() != 0:
        pytest.skip("not run as root: trusted.* attributes cannot be written")
    monkeypatch.setattr(WritableLayer, "probe_dialect", lambda _self: chosen)
    return chosen
