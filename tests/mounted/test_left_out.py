"""What a mount may be asked to leave out, in the words of fuse-overlayfs: ``noxattrs``, ``noacl``, ``static_nlink``."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conformance.cases.xattrs import acl
from tests.support.mounts import LIMIT_S
from tests.support.probes import requires

from .command import mounted, stack, unionmount

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = requires("root", "fuse")

JOE = 1000
FOR_JOE = acl("u:6", f"user:{JOE}:4", "g:0", "m:4", "o:0")
TRANSPORTS = [
    pytest.param((), id="direct"),
    pytest.param(("--transport=fusepy",), id="fusepy", marks=requires("libfuse2")),
]


def readable_by_joe(point: Path) -> bool:
    """Tell whether somebody else may read ``file0``."""
    done = subprocess.run(
        ["cat", "file0"], cwd=point, user=JOE, group=JOE, extra_groups=[], capture_output=True, timeout=LIMIT_S
    )
    return done.returncode == 0


@pytest.fixture
def options(tmp_path: Path) -> str:
    """A stack with a lower file that has attributes and an ACL, and a directory of two."""
    words = stack(tmp_path)
    file = tmp_path / "lower0/file0"
    os.chmod(file, 0o600)
    os.setxattr(file, "user.kept", b"1")
    os.setxattr(file, "system.posix_acl_access", FOR_JOE)
    (tmp_path / "lower0/directory/below").mkdir(parents=True)
    return words


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("word", ["noxattrs=1", "noxattrs"])
def test_no_attributes(tmp_path: Path, options: str, word: str, transport: tuple[str, ...]) -> None:
    """None is shown or taken; those that the layers have stay, and commands still learn what is mounted."""
    point = tmp_path / "m"
    with mounted(point, *transport, "-o", f"{options},{word}", point):
        for place in (point, point / "file0"):
            for refused in (
                lambda at: os.listxattr(at),
                lambda at: os.getxattr(at, "user.kept"),
                lambda at: os.getxattr(at, "system.posix_acl_access"),
                lambda at: os.setxattr(at, "user.a", b"1"),
                lambda at: os.setxattr(at, "system.posix_acl_access", FOR_JOE),
                lambda at: os.removexattr(at, "user.kept"),
            ):
                with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
                    refused(place)
                assert caught.value.errno == errno.EOPNOTSUPP
        assert not readable_by_joe(point)
        with (point / "file0").open("a") as stream:
            stream.write("more")
        assert json.loads(os.getxattr(point, "user.unionfs.config"))["upper"] == str(tmp_path / "upper")
        assert unionmount("diff", point).stdout == "C /file0\n"
    assert os.getxattr(tmp_path / "upper/file0", "user.kept") == b"1"


@pytest.mark.parametrize("word", ["", "noxattrs=0"])
def test_attributes_otherwise(tmp_path: Path, options: str, word: str) -> None:
    point = tmp_path / "m"
    with mounted(point, "-o", f"{options},{word}", point):
        assert os.getxattr(point / "file0", "user.kept") == b"1"
        assert readable_by_joe(point)


def test_what_is_absent_is_asked_for_once(tmp_path: Path, options: str) -> None:
    """The kernel remembers ENOSYS."""
    point = tmp_path / "m"
    with mounted(point, "-o", f"{options},noxattrs=1", point):
        for name in ("file0", "directory", "file0"):
            with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
                os.listxattr(point / name)
        assert "LISTXATTR" not in json.loads(os.getxattr(point, "user.unionfs.stats"))["requests"]


def test_acls_that_do_not_count(tmp_path: Path, options: str) -> None:
    """They are kept as other attributes are."""
    point = tmp_path / "m"
    with mounted(point, "-o", f"{options},noacl", point):
        assert os.getxattr(point / "file0", "system.posix_acl_access") == FOR_JOE
        assert not readable_by_joe(point)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_links_of_directories(tmp_path: Path, options: str, transport: tuple[str, ...]) -> None:
    """Each has one, whatever its layer says, also after a copy-up."""
    point = tmp_path / "m"
    with mounted(point, *transport, "-o", f"{options},static_nlink", point):
        assert [os.stat(point / name).st_nlink for name in ("", "directory", "directory/below")] == [1, 1, 1]
        (point / "directory/new").mkdir()
        os.link(point / "file0", point / "second")
        assert [os.stat(point / name).st_nlink for name in ("directory", "directory/new", "second")] == [1, 1, 2]
