"""Files that have no name: unlinked while open, and O_TMPFILE. unlink(2), open(2)."""

from __future__ import annotations

import errno
import os
import stat

from ..calls import append, listing, mapped, name_it, opened, refused
from ..table import Place, case, libfuse2
from ..trees import file, folder, node

NO_TMPFILE = libfuse2("knows no O_TMPFILE")
ONE = {"f": file(b"0123456789"), "d": folder()}


@case("basic", ONE)
def an_unlinked_file_is_read(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as f:
        os.unlink(at.path / "f")
        assert os.pread(f, 100, 0) == b"0123456789"
        assert os.fstat(f).st_size == 10
        (at.path / "f").write_bytes(b"another")
        assert os.pread(f, 100, 0) == b"0123456789"
        assert os.fstat(f).st_ino != os.stat(at.path / "f").st_ino
    assert (at.path / "f").read_bytes() == b"another"


@case("posix", ONE, deviates={"overlayfs:lower": "fstat counts the names in the layer"})
def an_unlinked_file_has_no_links(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as f:
        os.unlink(at.path / "f")
        assert os.fstat(f).st_nlink == 0


@case("basic", ONE)
def an_unlinked_file_is_written(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f, opened(at.path / "f", os.O_RDWR) as same:
        os.unlink(at.path / "f")
        os.pwrite(f, b"abc", 8)
        assert os.pread(f, 100, 0) == b"01234567abc"
        os.ftruncate(f, 4)
        assert os.pread(f, 100, 0) == b"0123"
        assert os.fstat(f).st_size == 4
        assert os.pread(same, 100, 0) == b"0123"
    assert listing(at.path) == ["d"]


@case("posix", ONE)
def an_unlinked_file_changes_its_metadata(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        os.unlink(at.path / "f")
        os.fchmod(f, 0o604)
        os.fchown(f, 12, 34)
        os.utime(f, ns=(1, 2))
        os.setxattr(f, b"user.k", b"v")
        found = os.fstat(f)
        assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns) == (0o604, 12, 34, 2)
        assert os.getxattr(f, b"user.k") == b"v"
    assert listing(at.path) == ["d"]


@case("posix", ONE, deviates={"overlayfs:lower": "fchmod cannot copy up a file that has no name left: ENOENT"})
def an_unlinked_file_opened_for_reading_changes_its_metadata(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as f:
        os.unlink(at.path / "f")
        os.fchmod(f, 0o604)
        assert os.fstat(f).st_mode & 0o7777 == 0o604


@case("posix", {"p": node(stat.S_IFIFO)}, deviates=libfuse2("has no path of it"))
def an_unlinked_fifo_changes_its_metadata(at: Place) -> None:
    with opened(at.path / "p", os.O_RDWR) as p:
        os.unlink(at.path / "p")
        os.fchmod(p, 0o604)
        assert os.fstat(p).st_mode & 0o7777 == 0o604


@case("basic", ONE)
def an_unlinked_file_gets_no_new_name(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        os.unlink(at.path / "f")
        refused(errno.ENOENT, name_it, f, at.path / "again")


@case("posix", ONE)
def an_open_file_gets_another_name(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as f:
        name_it(f, at.path / "d/g")
    append(at.path / "d/g", b"!")
    assert (at.path / "f").read_bytes() == b"0123456789!"


@case("posix", ONE)
def an_unlinked_file_is_opened_again_through_proc(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        os.unlink(at.path / "f")
        with opened(f"/proc/self/fd/{f}", os.O_RDWR) as again:
            os.pwrite(again, b"#", 0)
        assert os.pread(f, 100, 0) == b"#123456789"


@case("posix", ONE)
def an_unlinked_file_stays_mapped(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f, mapped(f, 10) as mapping:
        os.unlink(at.path / "f")
        mapping[0] = ord("#")
        assert mapping[:] == b"#123456789"


@case("posix", ONE)
def many_unlinked_files_at_once(at: Place) -> None:
    held = []
    for n in range(50):
        held.append(os.open(at.path / "same", os.O_CREAT | os.O_RDWR))
        os.write(held[-1], b"%d" % n)
        os.unlink(at.path / "same")
    assert [os.pread(f, 10, 0) for f in held] == [b"%d" % n for n in range(50)]
    for f in held:
        os.close(f)


@case("posix", ONE, deviates=NO_TMPFILE)
def a_nameless_file_is_given_a_name(at: Place) -> None:
    with opened(at.path / "d", os.O_TMPFILE | os.O_RDWR, 0o640) as f:
        os.write(f, b"was nameless")
        assert os.fstat(f).st_nlink == 0
        assert listing(at.path / "d") == []
        name_it(f, at.path / "d/named")
        assert os.fstat(f).st_nlink == 1
        refused(errno.EEXIST, name_it, f, at.path / "f")
        append(at.path / "d/named", b"!")
        assert os.pread(f, 100, 0) == b"was nameless!"
    assert listing(at.path / "d") == ["named"]
    assert os.stat(at.path / "d/named").st_mode & 0o7777 == 0o640


@case("posix", ONE, deviates=NO_TMPFILE)
def a_nameless_file_that_stays_nameless(at: Place) -> None:
    with opened(at.path, os.O_TMPFILE | os.O_WRONLY | os.O_EXCL) as f:
        os.write(f, b"x")
        refused(errno.ENOENT, name_it, f, at.path / "named")
    refused(errno.ENOTDIR, os.open, at.path / "f", os.O_TMPFILE | os.O_RDWR)
    refused(errno.EINVAL, os.open, at.path / "d", os.O_TMPFILE | os.O_RDONLY)
    assert listing(at.path) == ["d", "f"]
