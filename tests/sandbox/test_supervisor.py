"""The supervisor removes what it has made, whether its caller is still there or not."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

import pytest

from unionfs import errors
from unionfs.sandbox import namespaces, supervisor
from unionfs.sandbox.plan import Plan

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = -1


@pytest.mark.parametrize("caller", [NOBODY, os.getppid()], ids=["orphan", "not"])
def test_who_gets_no_namespaces_leaves_no_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caller: int
) -> None:
    """As one whose caller was killed while it mapped ids, or is killed now."""
    place = tmp_path / "place"

    def refuse(*_: object) -> None:
        assert place.is_dir()
        raise errors.NamespacesForbidden(kind="user", reason="nobody has mapped ids")

    monkeypatch.setattr(namespaces, "enter", refuse)
    unused = cast("Any", None)
    plan = Plan(unused, unused, [os.fsencode(place)], False, unused, False, unused, caller, unused)
    with pytest.raises(errors.NamespacesForbidden):
        supervisor.run(plan, None)
    assert not place.exists()
