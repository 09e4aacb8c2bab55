"""A package with users of its own, installed by who may not even change an owner: dpkg, in a stack over the machine."""

from __future__ import annotations

import os
import stat
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.mounts import LIMIT_S
from tests.support.probes import requires
from unionfs import idmap
from unionfs.idmap import Override

from .person import RANGE

if TYPE_CHECKING:
    from pathlib import Path

    from .person import Person

pytestmark = requires("root", "userns", "dpkg-deb")

CONTROL = """\
Package: unionfs-sample
Version: 1
Architecture: all
Maintainer: nobody <nobody@localhost>
Description: files of several owners
"""
POSTINST = """\
#!/bin/sh
set -e
install -d -o 161 -g 162 -m 2750 /var/lib/unionfs-sample
install -o 163 -g 164 -m 4711 /bin/true /usr/lib/unionfs-sample/helper
mknod /usr/lib/unionfs-sample/null c 1 3
chown -h 165 /usr/lib/unionfs-sample/link
"""


@pytest.fixture
def package(base: Path) -> Path:
    """A package, built by root, whose files belong to 61:62."""
    tree = base / "tree"
    files = tree / "usr/lib/unionfs-sample"
    files.mkdir(parents=True)
    (files / "data").write_text("data")
    (files / "set-id").write_text("set-id")
    (files / "link").symlink_to("data")
    for path in (files, files / "data", files / "set-id"):
        os.chown(path, 61, 62)
    (files / "set-id").chmod(0o6755)
    (tree / "DEBIAN").mkdir(mode=0o755)
    (tree / "DEBIAN/control").write_text(CONTROL)
    (tree / "DEBIAN/postinst").write_text(POSTINST)
    (tree / "DEBIAN/postinst").chmod(0o755)
    command = ["dpkg-deb", "--build", str(tree), str(base / "sample.deb")]
    subprocess.run(command, check=True, capture_output=True, timeout=LIMIT_S)
    return base / "sample.deb"


def install(person: Person, package: Path) -> tuple[Path, list[str]]:
    """Install it; return the writable layer, and what is shown inside."""
    lower, upper = person.make("lower", "upper")
    upper.chmod(0o755)
    for name in ("info", "updates", "triggers"):
        (lower / "packages" / name).mkdir(parents=True)
    (lower / "packages/status").touch()
    (lower / "sample.deb").write_bytes(package.read_bytes())
    script = """
        dpkg --admindir=/packages --log=/dev/null --install /sample.deb >/tmp/log 2>&1 || cat /tmp/log
        dpkg --admindir=/packages --verify unionfs-sample
        cd /usr/lib/unionfs-sample; stat -c '%n %a %u:%g %F' . data set-id link helper null /var/lib/unionfs-sample
    """
    words = ("--upper", upper, "--lower", lower, "--lower", "/")
    return upper, person.inside(script, *words).splitlines()


def test_with_one_id(alone: Person, package: Path) -> None:
    upper, shown = install(alone, package)
    assert shown == [
        ". 755 0:0 directory",
        "data 644 0:0 regular file",
        "set-id 6755 0:0 regular file",
        "link 777 0:0 symbolic link",
        "helper 4711 0:0 regular file",
        "null 644 0:0 character special file",
        "/var/lib/unionfs-sample 2750 0:0 directory",
    ]
    files = upper / "usr/lib/unionfs-sample"
    places = [
        files,
        files / "data",
        files / "set-id",
        files / "helper",
        files / "null",
        upper / "var/lib/unionfs-sample",
    ]
    found = [idmap.decode_override(os.getxattr(path, os.fsdecode(idmap.CONTAINERS_OVERRIDE))) for path in places]
    assert found == [
        Override(61, 62, stat.S_IFDIR | 0o755),
        Override(61, 62, stat.S_IFREG | 0o644),
        Override(61, 62, stat.S_IFREG | 0o6755),
        Override(163, 164, stat.S_IFREG | 0o4711),
        Override(0, 0, stat.S_IFCHR | 0o644, os.makedev(1, 3)),
        Override(161, 162, stat.S_IFDIR | 0o2750),
    ]


def test_with_many_ids(granted: Person, package: Path) -> None:
    upper, shown = install(granted, package)
    assert shown == [
        ". 755 61:62 directory",
        "data 644 61:62 regular file",
        "set-id 6755 61:62 regular file",
        "link 777 165:0 symbolic link",
        "helper 4711 163:164 regular file",
        "null 644 0:0 character special file",
        "/var/lib/unionfs-sample 2750 161:162 directory",
    ]
    state = (upper / "usr/lib/unionfs-sample/data").stat()
    assert (state.st_uid, state.st_gid) == (RANGE[0] + 60, RANGE[0] + 61)
