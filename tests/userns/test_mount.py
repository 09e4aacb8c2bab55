"""A mount by an ordinary user: through fusermount3, and with mount(2) in a user namespace of their own."""

from __future__ import annotations

import os
import shlex
from typing import TYPE_CHECKING

import pytest

from tests.support.probes import need

from .person import ID

if TYPE_CHECKING:
    from .person import Person

#: What stands around the script, what it sees as its owner, what the kernel says of the mount, and its mode.
WAYS = {
    "fusermount3": ((), ID, "nosuid,nodev", "opened"),
    "namespace": (("unshare", "--user", "--map-root-user", "--mount"), 0, "allow_other", "write-through"),
}
SCRIPT = """
set -e
unionmount -o lowerdir=one:two,upperdir=upper,workdir=work point
grep " $PWD/point " /proc/self/mountinfo
python3 -c 'import json, os; print(json.loads(os.getxattr("point", "user.unionfs.config"))["mode"])'
cat point/file point/dir/below
stat -c '%u %F' point/file point/dir point/missing 2>&1 || true
echo new > point/new; echo more >> point/file; rm point/gone; mv point/dir point/moved
mkdir point/gone; ln point/new point/link; ln -s new point/symbolic; mkfifo point/fifo
chmod 600 point/new; truncate -s 1M point/new; touch -d @5 point/new
find point | sort; stat -c '%a %h %Y %s' point/new; cat point/moved/below
unionmount umount point
ls -A point; ls work/work
unionmount -o lowerdir=one:two,upperdir=upper,workdir=work point
cat point/file point/moved/below; ls point
unionmount umount point
"""


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[tuple[str, ...], int, str, str]:
    """Both ways to mount."""
    need(*(["fusermount3"] if request.param == "fusermount3" else ["userns"]))
    return WAYS[request.param]


def run(person: Person, wrapper: tuple[str, ...], script: str) -> list[str]:
    function = f'unionmount() {{ {shlex.join(person.unionmount())} "$@"; }}\n'
    return person.output(*wrapper, "sh", "-c", function + script).splitlines()


def fill(person: Person) -> None:
    one, two, *_ = person.make("one", "two", "upper", "work", "point")
    (one / "file").write_text("in one\n")
    (two / "file").write_text("in two\n")
    (two / "gone").write_text("gone\n")
    (two / "dir").mkdir()
    (two / "dir/below").write_text("below\n")
    person.own(two / "file", two / "dir", two / "dir/below", one / "file")


def test_a_whole_life(alone: Person, way: tuple[tuple[str, ...], int, str, str]) -> None:
    wrapper, owner, option, mode = way
    fill(alone)
    table, *shown = run(alone, wrapper, SCRIPT)
    assert " fuse.unionmount unionmount " in table
    assert option in table
    assert shown == [
        mode, "in one", "below", f"{owner} regular file", f"{owner} directory",
        "stat: cannot statx 'point/missing': No such file or directory",
        "point", "point/fifo", "point/file", "point/gone", "point/link", "point/moved", "point/moved/below",
        "point/new", "point/symbolic", "600 2 5 1048576", "below",
        "in one", "more", "below", "fifo", "file", "gone", "link", "moved", "new", "symbolic",
    ]  # fmt: skip
    assert (alone.home / "two/gone").read_text() == "gone\n"
    assert (alone.home / "upper/new").stat().st_uid == ID


MODES = """
import os
for name in ("one", "two"):
    open(name, "a").write("old")
    os.chmod(name, 0o444)
    reader = os.open(name, os.O_RDONLY)
    os.chmod(name, 0o644)
    writer = os.open(name, os.O_WRONLY)
    os.write(writer, b"N")
    print(os.pread(reader, 9, 0).decode())
    os.close(reader); os.close(writer)
    os.chmod(name, 0o200)
    writer = os.open(name, os.O_WRONLY)
    os.chmod(name, 0)
    os.write(writer, b"W")
    os.close(writer)
    print(oct(os.stat(name).st_mode & 0o777))
    os.chmod(name, 0o444)
    print(open(name).read())
    before = os.stat(name)
    open(name).close()
    print(os.stat(name) == before)
"""


def test_modes_forbid_the_owner_what_they_say_and_no_more(alone: Person, way: tuple[tuple[str, ...], int, str]) -> None:
    """Who opened a file to read that may not be written binds nobody who opens it later; nor is the file changed."""
    one, *_ = alone.make("one", "upper", "work", "point")
    (one / "one").write_text("lower")
    (alone.home / "modes.py").write_text(MODES)
    alone.own(one / "one")
    script = """
        unionmount -o lowerdir=one,upperdir=upper,workdir=work point
        (cd point; python3 ../modes.py)
        unionmount umount point
    """
    shown = ["Nowerold", "0o0", "Wowerold", "True", "Nld", "0o0", "Wld", "True"]
    assert run(alone, way[0], script) == shown


def test_reading_a_lower_file_leaves_its_access_time(alone: Person, way: tuple[tuple[str, ...], int, str]) -> None:
    """Also another's file, as far as the kernel lets us: it can be read at least."""
    fill(alone)
    own, other = alone.home / "one/file", alone.home / "one/root-s"
    other.write_text("root's\n")
    other.chmod(0o644)
    os.utime(own, (1, 1))
    script = "unionmount -o lowerdir=one,upperdir=upper,workdir=work point; cat point/*; unionmount umount point"
    assert run(alone, way[0], script) == ["in one", "root's"]
    assert own.stat().st_atime == 1


def test_no_owner_is_mapped_outside_of_a_namespace(alone: Person) -> None:
    need("fusermount3")
    fill(alone)
    (alone.home / "one/root-s").touch(mode=0o644)
    script = """
        unionmount -o lowerdir=one,upperdir=upper,workdir=work point
        stat -c %u point/root-s
        chown 0 point/file 2>&1 || true; echo x 2>&1 >> point/root-s || true; rm point/root-s; ls point
        unionmount umount point
    """
    shown = run(alone, (), "exec 2>&1\n" + script)
    assert shown[0] == "0"
    assert shown[1].endswith("Operation not permitted")
    assert shown[2].endswith("Permission denied")
    assert shown[3:] == ["file"]


def test_what_is_wrong_is_said(alone: Person) -> None:
    need("fusermount3")
    fill(alone)
    (alone.home / "point").chmod(0o555)
    alone.disown(alone.home / "point")
    done = alone.run(*alone.unionmount("-o", "lowerdir=one,upperdir=upper,workdir=work", "point"))
    assert done.returncode == 1
    assert done.stderr.startswith(f"unionmount: {alone.home}/point: ")
    assert "fusermount3" in done.stderr
    assert len(done.stderr.splitlines()) == 1
