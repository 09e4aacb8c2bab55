"""Runs of the sandbox as root and as an ordinary user, and a check after each test that nothing of them is left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sandbox.running import ORDINARY_ID, Sandbox, sandbox_of


def checked(sandbox: Sandbox) -> Iterator[Sandbox]:
    yield sandbox
    sandbox.wait_until_nothing_is_left()
    sandbox.runtime.rmdir()


@pytest.fixture(params=["root", "user"])
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    """Runs as root, and as an ordinary user in a user namespace."""
    ordinary = ORDINARY_ID if os.geteuid() == 0 else os.geteuid()
    yield from checked(sandbox_of(0 if request.param == "root" else ordinary))


@pytest.fixture
def root_sandbox() -> Iterator[Sandbox]:
    """Runs as root."""
    yield from checked(sandbox_of(0))


@pytest.fixture
def user_sandbox() -> Iterator[Sandbox]:
    """Runs as an ordinary user."""
    yield from checked(sandbox_of(ORDINARY_ID if os.geteuid() == 0 else os.geteuid()))


@pytest.fixture
def usr_root(tmp_path: Path) -> Path:
    """A directory that is a root once /usr is mounted in it; it lacks /proc, /dev, /sys and /tmp."""
    root = tmp_path / "root"
    (root / "usr").mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    return root
