"""The table of cases, on everything that it can be run on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.probes import requires

from .subjects import SUBJECTS
from .table import Place
from .trees import build

if TYPE_CHECKING:
    from pathlib import Path

    from .conftest import View
    from .table import Case


def expect(request: pytest.FixtureRequest, row: Case, *subjects: str) -> None:
    """Turn a deviation that the table names into an expected failure, and an unexpected success into a real one."""
    for subject in subjects:
        if subject in row.deviates:
            request.applymarker(pytest.mark.xfail(reason=row.deviates[subject], strict=True))


@requires("root", "trusted-xattrs", "user-xattrs")
def test_plain_directory(row: Case, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The cases are true of a plain directory: this tests the tests."""
    expect(request, row, "plain")
    build(tmp_path / "case", row.tree)
    (tmp_path / "plain").mkdir()
    row.run(Place(tmp_path / "case", tmp_path / "plain", lambda: None))


def test_mount(view: View, row: Case, origin: str, request: pytest.FixtureRequest) -> None:
    """The cases are true of a mount, wherever what they start from comes from."""
    expect(request, row, view.subject, f"{view.subject}:{origin}", SUBJECTS[view.subject].like)
    view.run(row, origin)


def test_mount_left_the_lower_layers_alone(view: View) -> None:
    """After all cases of a mount, its lower layers are as they were."""
    assert view.stack.digest() == view.lower_before
