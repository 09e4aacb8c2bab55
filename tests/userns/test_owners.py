"""Owners in a user namespace: who exists is shown, and what was asked for is remembered in the writable layer."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

import pytest

from unionfs import idmap
from unionfs.idmap import Override

from .person import ID, RANGE

if TYPE_CHECKING:
    from pathlib import Path

    from .person import Person

ATTRIBUTE = os.fsdecode(idmap.CONTAINERS_OVERRIDE)


def remembered(path: Path) -> Override | None:
    """Return what the layers remember of a file."""
    try:
        value = os.getxattr(path, ATTRIBUTE, follow_symlinks=False)
    except OSError:
        return None
    return idmap.decode_override(value)


class Stack:
    """A layer that root has filled, over the machine's root, and a writable layer of the user's own."""

    def __init__(self, person: Person) -> None:
        self.person = person
        self.lower, self.upper = person.make("lower", "upper")
        self.upper.chmod(0o755)

    def file(self, name: str, owner: int = 0, mode: int = 0o644) -> Path:
        path = self.lower / name
        path.write_text(f"this is {name}")
        os.chown(path, owner, owner)
        path.chmod(mode)
        return path

    def inside(self, script: str) -> list[str]:
        words = ("--upper", self.upper, "--lower", self.lower, "--lower", "/")
        return self.person.inside(script, *words).splitlines()


@pytest.fixture
def stack(alone: Person) -> Stack:
    """A stack of a user whose namespace has one id."""
    return Stack(alone)


@pytest.fixture
def wide(granted: Person) -> Stack:
    """A stack of a user whose namespace has many."""
    return Stack(granted)


# -- one id ----------------------------------------------------------------------------------------------------------


def test_all_owners_are_shown_as_root(stack: Stack) -> None:
    stack.file("root-s", 0)
    stack.file("other-s", 4242)
    stack.file("nobody-s", 65534)
    stack.file("own", ID)
    assert stack.inside("stat -c '%u:%g' / /root-s /other-s /nobody-s /own /etc/passwd") == ["0:0"] * 6


def test_files_of_others_can_be_changed(stack: Stack) -> None:
    path = stack.file("other-s", 4242, 0o4755)
    before = path.stat()[:7], path.stat().st_ctime_ns
    shown = stack.inside("stat -c %a /other-s; chmod g+w /other-s; echo more >> /other-s; stat -c '%a %u' /other-s")
    assert shown == ["4755", "775 0"]
    assert (path.stat()[:7], path.stat().st_ctime_ns) == before
    assert (stack.upper / "other-s").read_text() == "this is other-smore\n"
    assert (stack.upper / "other-s").stat().st_uid == ID
    assert remembered(stack.upper / "other-s") is None, "nobody has changed its owner"


def test_a_change_of_mode_keeps_set_id_bits_as_asked(stack: Stack) -> None:
    stack.file("tool", 0, 0o755)
    assert stack.inside("chmod 6755 /tool; stat -c %a /tool") == ["6755"]


def test_a_change_of_owner_is_remembered(stack: Stack) -> None:
    stack.file("lower", 0, 0o604)
    script = """
        touch /new; mkdir /dir; chmod 2775 /dir
        chown 101:102 /lower; chown 103 /new; chgrp 104 /dir
        stat -c '%u:%g %a' /lower /new /dir
    """
    assert stack.inside(script) == ["0:0 604", "0:0 644", "0:0 2775"]
    assert remembered(stack.upper / "lower") == Override(101, 102, stat.S_IFREG | 0o604)
    assert remembered(stack.upper / "new") == Override(103, 0, stat.S_IFREG | 0o644)
    assert remembered(stack.upper / "dir") == Override(0, 104, stat.S_IFDIR | 0o2775)
    root = remembered(stack.upper)
    assert root is not None
    assert (root.uid, root.gid) == (0, 0)
    assert (stack.upper / "lower").stat().st_uid == ID


def test_what_is_remembered_is_kept_by_later_changes(stack: Stack) -> None:
    stack.inside("touch /f; chown 101:102 /f; chmod 4711 /f; stat -c %a /f")
    assert remembered(stack.upper / "f") == Override(101, 102, stat.S_IFREG | 0o4711)
    assert stack.inside("stat -c '%a %u' /f; mv /f /g; ln /g /h; stat -c '%a %h' /h") == ["4711 0", "4711 2"]
    assert remembered(stack.upper / "h") == Override(101, 102, stat.S_IFREG | 0o4711)
    stack.inside("chown 0:0 /g")
    assert remembered(stack.upper / "h") == Override(0, 0, stat.S_IFREG | 0o711)


def test_no_real_file_is_set_id_for_who_is_remembered(stack: Stack) -> None:
    stack.inside("cp /usr/bin/true /t; chown 101 /t; chmod 6755 /t")
    assert not (stack.upper / "t").stat().st_mode & (stat.S_ISUID | stat.S_ISGID)


def test_a_change_of_owner_clears_set_id_bits(stack: Stack) -> None:
    script = "touch /f /g; chmod 6755 /f; chmod 6745 /g; mkdir -m 2755 /d; chown 5 /f /g /d; stat -c %a /f /g /d"
    assert stack.inside(script) == ["755", "2745", "2755"]


def test_every_form_of_the_call(stack: Stack) -> None:
    stack.inside("""
        mkdir -p /a/b; touch /a/one /a/b/two /three /four /five; ln -s /a/one /link; ln -s nowhere /dangling
        cd /a/b; chown 7 ../one; chown 8 two; chown -h 9 /link /dangling; chown 10 /link
        python3 - <<END
import os
directory = os.open("/a", os.O_RDONLY)
os.chown("b", 11, -1, dir_fd=directory)
os.fchown(os.open("/three", os.O_RDONLY), 12, -1)
os.chown("/proc/self/fd/%d" % os.open("/four", os.O_PATH), 13, -1)
os.chdir("/")
os.chroot("/a")
os.chown("/b/two", -1, 14)
os.chdir("/b")
os.chown("../../../one", -1, 15)
os.chown("two", 16, -1)
END
    """)
    found = {name: remembered(stack.upper / name) for name in ("a/one", "a/b/two", "a/b", "three", "four", "five")}
    owners = {name: override and (override.uid, override.gid) for name, override in found.items()}
    expected = {"a/one": (10, 15), "a/b/two": (16, 14), "a/b": (11, 0), "three": (12, 0), "four": (13, 0), "five": None}
    assert owners == expected


def test_errors_are_those_of_the_system_call(stack: Stack) -> None:
    shown = stack.inside("""
        python3 - <<END
import errno, os
def attempt(*arguments, **words):
    try:
        os.chown(*arguments, **words)
    except OSError as error:
        print(errno.errorcode[error.errno])
attempt("/missing", 5, 5)
attempt("", 5, 5)
attempt("/etc/passwd/x", 5, 5)
attempt("/" + "x" * 300, 5, 5)
attempt("relative", 5, 5, dir_fd=77)
attempt(77, 5, 5)
attempt("/proc/version", 5, 5)
END
    """)
    assert shown == ["ENOENT", "ENOENT", "ENOTDIR", "ENAMETOOLONG", "EBADF", "EBADF", "EPERM"]


def test_files_elsewhere_are_given_away_in_vain(stack: Stack) -> None:
    assert stack.inside("touch /tmp/x; chown 5:5 /tmp/x; stat -c %u:%g /tmp/x") == ["0:0"]


# -- devices ---------------------------------------------------------------------------------------------------------


def test_devices_are_remembered(stack: Stack) -> None:
    script = """
        mknod /null c 1 3; mknod -m 660 /disk b 8 17; chgrp 6 /disk; umask 077; mknod /etc/zero c 1 5; cd /etc
        stat -c '%n %F %a %t:%T %s' /null /disk zero; find / /etc -maxdepth 1 -type c -o -maxdepth 1 -type b | sort
    """
    devices = [
        "/null character special file 644 1:3 0",
        "/disk block special file 660 8:11 0",
        "zero character special file 600 1:5 0",
    ]
    listed = ["/disk", "/etc/zero", "/null"]
    assert stack.inside(script) == devices + listed
    assert remembered(stack.upper / "disk") == Override(0, 6, stat.S_IFBLK | 0o660, os.makedev(8, 17))
    assert stat.S_ISREG((stack.upper / "disk").stat().st_mode)
    again = "stat -c '%n %F %a %t:%T %s' /null /disk /etc/zero; ls / | grep -c -e '^null$' -e '^disk$'"
    assert stack.inside(again) == [*devices[:2], "/etc/" + devices[2], "2"]


def test_devices_can_be_moved_linked_and_removed(stack: Stack) -> None:
    stack.inside("mknod /a c 1 3; mknod /b c 1 5; mv /a /b; ln /b /c; mkdir /d; mv /c /d; chmod 600 /b; touch /d/c")
    assert stack.inside(
        "stat -c '%F %t:%T %h %a' /b /d/c; rm /b; ls /b 2>&1 || true; mknod /b b 1 1; stat -c %F /b"
    ) == [
        "character special file 1:3 2 600",
        "character special file 1:3 2 600",
        "ls: cannot access '/b': No such file or directory",
        "block special file",
    ]


def test_errors_of_mknod(stack: Stack) -> None:
    stack.file("there")
    shown = stack.inside("""
        for name in /there /missing/x /there/x / /dev/mine /proc/mine; do mknod $name c 1 3 2>&1 || true; done
        mknod /nested c 0 0; mkfifo /fifo; stat -c '%F: %t:%T' /nested /fifo
    """)
    reasons = ["File exists", "No such file or directory", "Not a directory", "File exists"]
    reasons += ["Operation not permitted"] * 2 + ["0:0", "0:0"]  # a character device, a FIFO
    assert [line.rpartition(": ")[2] for line in shown] == reasons


# -- layers that others wrote ----------------------------------------------------------------------------------------


def test_layers_of_podman_s_tools_are_read(stack: Stack) -> None:
    """containers/storage marks the root of such a layer; a layer without that mark is taken as it is."""
    for name, value in {
        ".": b"0:0:0555:dir",
        "set-id": b"0:0:4755",
        "device": b"0:0:0622:char-5-1",
        "own": b"7:8:0640:file",
    }.items():
        (stack.lower / name).touch()
        os.setxattr(stack.lower / name, ATTRIBUTE, value)
    shown = stack.inside("""
        cd /; stat -c '%n %F %a %u:%g' set-id device own
        chmod 600 device own; mv set-id moved; touch moved
        stat -c '%n %F %a %u:%g %t:%T' moved device own; python3 -c 'import os; print(os.listxattr("/own"))'
    """)
    assert shown == [
        "set-id regular empty file 4755 0:0",
        "device character special file 622 0:0",
        "own regular empty file 640 0:0",
        "moved regular empty file 4755 0:0 0:0",
        "device character special file 600 0:0 5:1",
        "own regular empty file 600 0:0 0:0",
        "[]",
    ]
    assert remembered(stack.upper / "own") == Override(7, 8, stat.S_IFREG | 0o600)
    assert remembered(stack.upper / "device") == Override(0, 0, stat.S_IFCHR | 0o600, os.makedev(5, 1))


def test_nobody_inside_can_write_what_is_remembered(stack: Stack) -> None:
    shown = stack.inside("""
        touch /f; python3 - <<END
import errno, os
for name in ("user.containers.override_stat", "user.fuseoverlayfs.override_stat"):
    try:
        os.setxattr("/f", name, b"5:5:0777:char-1-3")
    except OSError as error:
        print(errno.errorcode[error.errno])
END
    """)
    assert shown == ["EPERM", "EPERM"]
    assert remembered(stack.upper / "f") is None


# -- many ids --------------------------------------------------------------------------------------------------------


def test_ids_that_exist_are_given_really(wide: Stack) -> None:
    wide.file("lower", 4242)
    shown = wide.inside(
        "touch /f; chown 5:7 /f /lower; mkdir -m 2775 /d; chgrp 9 /d; touch /d/x; stat -c %u:%g /f /lower /d /d/x"
    )
    assert shown == ["5:7", "5:7", "0:9", "0:9"]
    state = (wide.upper / "f").stat()
    assert (state.st_uid, state.st_gid) == (RANGE[0] + 4, RANGE[0] + 6)
    assert remembered(wide.upper / "f") is remembered(wide.upper) is None


def test_other_ids_are_remembered(wide: Stack) -> None:
    assert wide.inside("touch /f; chown 5 /f; chown 100000 /f; stat -c %u /f; chown 65534 /f; stat -c %u /f") == [
        "0",
        "65534",
    ]
    assert remembered(wide.upper / "f") == Override(65534, 0, stat.S_IFREG | 0o644)


def test_nobody_s_files_are_told_from_strangers_files(wide: Stack) -> None:
    wide.file("stranger-s", 4242)
    nobody = RANGE[0] + 65533
    for name in ("lower", "copied"):
        wide.file(name, nobody, 0o600)
    script = "touch /f; chown 65534:65534 /f; touch /copied; stat -c %u:%g /f /stranger-s /lower /copied"
    assert wide.inside(script) == ["65534:65534", "0:0", "65534:65534", "65534:65534"]
    assert (wide.upper / "copied").stat().st_uid == nobody


def test_who_may_not_give_away_is_not_helped(wide: Stack) -> None:
    shown = wide.inside("""
        touch /f; chown 5 /f; chmod 777 /
        setpriv --reuid 5 --regid 5 --clear-groups python3 - <<END
import errno, os, stat
for call in (lambda: os.chown("/f", 100000, -1), lambda: os.mknod("/c", stat.S_IFCHR, os.makedev(1, 3))):
    try:
        call()
    except OSError as error:
        print(errno.errorcode[error.errno])
for name in ("security.unionfs.owner", "security.unionfs.node"):
    try:
        os.setxattr("/f", name, b"0:0:")
    except OSError as error:
        print(errno.errorcode[error.errno])
END
        stat -c %u /f
    """)
    assert shown == ["EPERM", "EPERM", "EPERM", "EPERM", "5"]


# -- the process that helps ------------------------------------------------------------------------------------------


def test_it_cannot_be_seen_from_inside(stack: Stack) -> None:
    assert stack.inside(
        "ls /proc | grep -c '^[0-9]' >/tmp/n; for p in /proc/[0-9]*; do basename $p; done | sort -n | head -2"
    ) == ["1", "2"]


def test_many_at_once(stack: Stack) -> None:
    script = """
        mkdir /d
        for i in 1 2 3 4; do (for j in 1 2 3 4 5 6 7 8 9; do touch /d/$i$j; chown $i:$j /d/$i$j; done) & done; wait
        ls /d | wc -l
    """
    assert stack.inside(script) == ["36"]
    found = [(remembered(path), path.name) for path in (stack.upper / "d").iterdir()]
    assert all(override and (override.uid, override.gid) == (int(name[0]), int(name[1])) for override, name in found)
