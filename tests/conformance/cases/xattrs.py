"""Extended attributes and POSIX ACLs. xattr(7), acl(5), capabilities(7)."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from struct import pack

from ..calls import child, inside, outcome, refused, umask, write_at, xattr_sizes
from ..table import Place, case, libfuse2
from ..trees import file, folder, node, symlink

ALL = {
    "f": file(xattrs={"user.old": b"kept", "trusted.old": b"\0\xff"}), "d": folder(xattrs={"user.old": b"kept"}),
    "l": symlink("f"), "p": node(stat.S_IFIFO),
}  # fmt: skip
#: struct vfs_cap_data of revision 2 with CAP_NET_RAW permitted and effective: linux/capability.h.
NET_RAW = pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
CAPABLE = file(b"program", 0o755, xattrs={"security.capability": NET_RAW})
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_TAGS = {"u": 0x01, "user": 0x02, "g": 0x04, "group": 0x08, "m": 0x10, "o": 0x20}


def acl(*entries: str) -> bytes:
    """Return an ACL from entries as ``u:6``, ``user:1000:4``, ``m:7``: the layout is linux/posix_acl_xattr.h's."""
    packed = [entry.split(":") for entry in entries]
    return pack("<I", 2) + b"".join(
        pack("<HHI", _TAGS[tag], int(rights), int(*number or ["4294967295"])) for tag, *number, rights in packed
    )


NAMED = acl("u:6", "user:1000:4", "g:0", "m:4", "o:0")
TWO = acl("u:7", "user:1000:7", "g:5", "m:7", "o:0")


@case("basic", ALL)
def xattrs_are_set_listed_and_removed(at: Place) -> None:
    for name in ("f", "d"):
        path = at.path / name
        os.setxattr(path, "user.a", b"1")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.old", b"changed")
        os.setxattr(path, "trusted.t", bytes(range(256)))
        found = {key: os.getxattr(path, key) for key in os.listxattr(path)}
        assert found.pop("trusted.old", b"\0\xff") == b"\0\xff"
        assert found == {"user.a": b"1", "user.empty": b"", "user.old": b"changed", "trusted.t": bytes(range(256))}
        os.removexattr(path, "user.a")
        refused(errno.ENODATA, os.getxattr, path, "user.a")
        refused(errno.ENODATA, os.removexattr, path, "user.a")
    at.remount()
    assert os.getxattr(at.path / "d", "user.old") == b"changed"
    assert "user.a" not in os.listxattr(at.path / "f")


@case("basic", ALL)
def xattrs_of_a_layer_are_shown_and_removed(at: Place) -> None:
    assert sorted(os.listxattr(at.path / "f")) == ["trusted.old", "user.old"]
    assert os.getxattr(at.path / "f", "trusted.old") == b"\0\xff"
    os.removexattr(at.path / "f", "user.old")
    assert os.listxattr(at.path / "f") == ["trusted.old"]
    assert (at.path / "f").read_bytes() == b"0123456789"


@case("basic", ALL)
def creating_and_replacing_are_told_apart(at: Place) -> None:
    refused(errno.EEXIST, os.setxattr, at.path / "f", "user.old", b"", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, at.path / "f", "user.new", b"", os.XATTR_REPLACE)
    os.setxattr(at.path / "f", "user.old", b"2", os.XATTR_REPLACE)
    os.setxattr(at.path / "f", "user.new", b"3", os.XATTR_CREATE)
    assert os.getxattr(at.path / "f", "user.old") == b"2"


@case("posix", ALL)
def sizes_and_names_have_their_limits(at: Place) -> None:
    f = at.path / "f"
    refused(errno.E2BIG, os.setxattr, f, "user.big", b"x" * 65537)
    refused(errno.ERANGE, os.setxattr, f, "user." + "n" * 251, b"")
    refused(errno.EOPNOTSUPP, os.setxattr, f, "unknown.name", b"")
    refused(errno.EINVAL, os.setxattr, f, "user.", b"")
    refused(errno.EINVAL, os.setxattr, f, "user.a", b"", 8)
    os.setxattr(f, "user." + "n" * 250, b"long")
    os.setxattr(f, "user.k", b"v" * 2000)
    assert xattr_sizes(f, b"user.k", 0) == 2000
    assert xattr_sizes(f, b"user.k", 2000) == 2000
    refused(errno.ERANGE, xattr_sizes, f, b"user.k", 1999)


@case("posix", ALL)
def a_large_value_is_what_the_layers_file_system_makes_of_it(at: Place) -> None:
    (at.plain / "f").write_bytes(b"")
    for size in (2000, 30_000, 65_536):
        expected = outcome(os.setxattr, at.plain / "f", "user.big", b"x" * size)
        assert outcome(os.setxattr, at.path / "f", "user.big", b"x" * size) == expected
        if not expected:
            assert os.getxattr(at.path / "f", "user.big") == b"x" * size


@case("posix", ALL)
def links_and_nodes_take_no_user_xattrs(at: Place) -> None:
    for name in ("l", "p"):
        refused(errno.EPERM, os.setxattr, at.path / name, "user.a", b"1", follow_symlinks=False)
        os.setxattr(at.path / name, "trusted.a", b"1", follow_symlinks=False)
        assert os.listxattr(at.path / name, follow_symlinks=False) == ["trusted.a"]
    at.remount()
    assert os.getxattr(at.path / "l", "trusted.a", follow_symlinks=False) == b"1"


@case("posix", {"d": folder(0o777), "d/f": file(b"", 0o666, xattrs={"trusted.old": b"1", "user.old": b"2"})})
def trusted_xattrs_are_for_root(at: Place) -> None:
    def look() -> None:
        assert os.listxattr("f") == ["user.old"]
        refused(errno.ENODATA, os.getxattr, "f", "trusted.old")
        refused(errno.EPERM, os.setxattr, "f", "trusted.new", b"")
        os.setxattr("f", "user.new", b"")

    with inside(at.path / "d"):
        child(look, user=1000, group=1000)


@case("posix", {"f": file(b"", 0o644), "d": folder(0o1777)})
def user_xattrs_follow_the_mode(at: Place) -> None:
    def look() -> None:
        refused(errno.EACCES, os.setxattr, "f", "user.a", b"")
        refused(errno.EPERM, os.setxattr, "d", "user.a", b"")
        refused(errno.ENODATA, os.getxattr, "f", "user.a")

    with inside(at.path):
        child(look, user=1000, group=1000)


@case("posix", {"f": file(b"program", 0o755), "g": CAPABLE, "h": CAPABLE._replace(owner=(12, 34))})
def file_capabilities_are_kept_until_the_file_changes(at: Place) -> None:
    os.setxattr(at.path / "f", "security.capability", NET_RAW)
    for name in ("f", "g", "h"):
        os.chmod(at.path / name, 0o700)
        os.rename(at.path / name, at.path / "moved")
        assert os.getxattr(at.path / "moved", "security.capability") == NET_RAW
        write_at(at.path / "moved", b"P")
        refused(errno.ENODATA, os.getxattr, at.path / "moved", "security.capability")
        os.setxattr(at.path / "moved", "security.capability", NET_RAW)
        os.chown(at.path / "moved", 5, 5)
        refused(errno.ENODATA, os.getxattr, at.path / "moved", "security.capability")


@case("posix", {"f": file(b"program", 0o755)})
def attributes_appear_where_there_were_none(at: Place) -> None:
    for _ in range(2):
        refused(errno.ENODATA, os.getxattr, at.path / "f", "security.capability")
        assert os.listxattr(at.path / "f") == []
        os.setxattr(at.path / "f", "user.a", b"1")
        assert os.listxattr(at.path / "f") == ["user.a"]
        refused(errno.ENODATA, os.getxattr, at.path / "f", "security.capability")
        os.setxattr(at.path / "f", "security.capability", NET_RAW)
        assert os.getxattr(at.path / "f", "security.capability") == NET_RAW
        assert sorted(os.listxattr(at.path / "f")) == ["security.capability", "user.a"]
        for name in ("user.a", "security.capability"):
            os.removexattr(at.path / "f", name)


@case("posix", {"d": folder(), "d/a": file(), "d/sub": folder(), "d/sub/x": file(), "f": file()})
def the_formats_own_xattrs_are_not_shown(at: Place) -> None:
    write_at(at.path / "f", b"x")
    os.rename(at.path / "d/sub", at.path / "moved")
    os.unlink(at.path / "d/a")
    os.rmdir(at.path / "d")
    os.mkdir(at.path / "d")
    for name in ("d", "moved", "f", "."):
        assert os.listxattr(at.path / name) == []
        for key in ("trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.origin"):
            refused(errno.ENODATA, os.getxattr, at.path / name, key)


@case("posix", {"d": folder(), "d/a": file()})
def the_formats_own_xattrs_cannot_be_made_by_accident(at: Place) -> None:
    if not outcome(os.setxattr, at.path / "d", "trusted.overlay.opaque", b"y"):
        assert os.getxattr(at.path / "d", "trusted.overlay.opaque") == b"y"
        assert os.listxattr(at.path / "d") == ["trusted.overlay.opaque"]
    os.mkdir(at.path / "e")
    outcome(os.setxattr, at.path / "e", "trusted.overlay.redirect", b"d")
    at.remount()
    assert os.listdir(at.path / "d") == ["a"]
    assert os.listdir(at.path / "e") == []


@case("posix", {"f": file(b"data", 0o600), "d": folder(0o700)})
def acls_are_kept_and_shown_in_the_mode(at: Place) -> None:
    os.setxattr(at.path / "f", ACCESS, NAMED)
    assert os.stat(at.path / "f").st_mode & 0o777 == 0o640
    os.chmod(at.path / "f", 0o660)
    assert os.getxattr(at.path / "f", ACCESS) == acl("u:6", "user:1000:4", "g:0", "m:6", "o:0")
    os.setxattr(at.path / "d", DEFAULT, TWO)
    at.remount()
    assert os.getxattr(at.path / "f", ACCESS) == acl("u:6", "user:1000:4", "g:0", "m:6", "o:0")
    assert os.getxattr(at.path / "d", DEFAULT) == TWO
    assert os.stat(at.path / "d").st_mode & 0o777 == 0o700
    os.setxattr(at.path / "f", ACCESS, acl("u:6", "g:4", "o:0"))
    assert os.stat(at.path / "f").st_mode & 0o777 == 0o640
    refused(errno.ENODATA, os.getxattr, at.path / "f", ACCESS)


ABSENT = "removing an ACL that a lower file does not have fails with ENODATA, on others it does not"


@case("posix", {"f": file(), "d": folder(), "l": symlink("f")}, deviates={"overlayfs:lower": ABSENT})
def acls_are_checked(at: Place) -> None:
    refused(errno.EOPNOTSUPP, os.setxattr, at.path / "f", ACCESS, b"another version")
    refused(errno.EINVAL, os.setxattr, at.path / "f", ACCESS, NAMED + b"x")
    refused(errno.EINVAL, os.setxattr, at.path / "f", ACCESS, acl("u:6", "user:1000:4", "g:4", "o:4"))
    refused(errno.EACCES, os.setxattr, at.path / "f", DEFAULT, TWO)
    refused(errno.EOPNOTSUPP, os.setxattr, at.path / "l", ACCESS, NAMED, follow_symlinks=False)
    refused(errno.ENODATA, os.getxattr, at.path / "d", DEFAULT)
    os.removexattr(at.path / "d", DEFAULT)
    os.removexattr(at.path / "f", ACCESS)
    assert os.listxattr(at.path / "d") == []


@case(
    "posix",
    {"f": file(b"data", 0o600, xattrs={ACCESS: NAMED}), "g": file(b"data", 0o600)},
    deviates=libfuse2("does not let the kernel check ACLs"),
)
def acls_are_obeyed(at: Place) -> None:
    def work() -> None:
        for name in ("f", "g"):
            with open(name, "rb") as readable:
                assert readable.read() == b"data"
            refused(errno.EACCES, os.open, name, os.O_WRONLY)

    os.setxattr(at.path / "g", ACCESS, NAMED)
    with inside(at.path):
        child(work, user=1000, group=1000)
        child(lambda: refused(errno.EACCES, os.open, "f", os.O_RDONLY), user=1001, group=1001)
    os.chown(at.path / "f", 7, 7)
    assert os.getxattr(at.path / "f", ACCESS) == NAMED


@case("posix", {"d": folder(0o755, xattrs={DEFAULT: TWO}), "e": folder()})
def default_acls_are_inherited_in_place_of_the_umask(at: Place) -> None:
    os.setxattr(at.path / "e", DEFAULT, TWO)
    for name in ("d", "e"):
        with umask(0o077):
            os.close(os.open(at.path / name / "f", os.O_CREAT | os.O_WRONLY, 0o666))
            os.mkdir(at.path / name / "sub", 0o777)
            os.mkfifo(at.path / name / "p", 0o666)
        assert os.getxattr(at.path / name / "f", ACCESS) == acl("u:6", "user:1000:7", "g:5", "m:6", "o:0")
        assert os.stat(at.path / name / "f").st_mode & 0o777 == 0o660
        assert os.getxattr(at.path / name / "sub", DEFAULT) == TWO
        assert os.getxattr(at.path / name / "sub", ACCESS) == TWO
        assert os.stat(at.path / name / "p").st_mode & 0o777 == 0o660


GIVING = {"d": folder(0o2777, owner=(0, 500), xattrs={DEFAULT: TWO}), "d/f": file(), "d/sub": folder(), "d/p": file()}


@case("posix", {"d": folder(0o1777, xattrs={DEFAULT: TWO}), "d/gone": file()})
def a_set_id_file_inherits_as_any_other(at: Place) -> None:
    def make() -> None:
        os.unlink("gone")
        for name in ("gone", "new"):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o4711))

    os.chmod(at.path / "d", 0o777)
    with inside(at.path / "d"):
        child(make, user=1000, group=1000)
    expected = acl("u:7", "user:1000:7", "g:5", "m:1", "o:0")
    for name in ("new", "gone"):
        assert _inherited(at.path / "d" / name) == (stat.S_IFREG | 0o4710, 1000, 1000, {ACCESS: expected})


@case("posix", GIVING)
def a_name_that_was_deleted_inherits_as_any_other(at: Place) -> None:
    def replace() -> None:
        os.unlink("f")
        os.rmdir("sub")
        os.unlink("p")
        for name in ("f", "other f"):
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o4711))
        for name in ("sub", "other sub"):
            os.mkdir(name, 0o775)
        for name in ("p", "other p"):
            os.mkfifo(name, 0o600)

    with inside(at.path / "d"), umask(0o022):
        child(replace, user=1000, group=1000)
    for name in ("f", "sub", "p"):
        assert _inherited(at.path / "d" / name) == _inherited(at.path / "d" / f"other {name}")
        assert os.stat(at.path / "d" / name).st_gid == 500


def _inherited(path: Path) -> tuple[object, ...]:
    found = os.stat(path)
    return found.st_mode, found.st_uid, found.st_gid, {key: os.getxattr(path, key) for key in os.listxattr(path)}


@case("posix", {"d": folder(xattrs={DEFAULT: TWO}), "d/f": file(b"data", 0o600), "d/sub": folder(), "d/sub/x": file()})
def a_copy_up_does_not_inherit(at: Place) -> None:
    write_at(at.path / "d/f", b"D")
    write_at(at.path / "d/sub/x", b"X")
    os.chmod(at.path / "d/f", 0o640)
    for name in ("d/f", "d/sub", "d/sub/x"):
        refused(errno.ENODATA, os.getxattr, at.path / name, ACCESS)
    refused(errno.ENODATA, os.getxattr, at.path / "d/sub", DEFAULT)
    os.rename(at.path / "d/f", at.path / "d/g")
    assert os.stat(at.path / "d/g").st_mode & 0o777 == 0o640
