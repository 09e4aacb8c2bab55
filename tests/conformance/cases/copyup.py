"""What a copy-up must keep, and what descriptors and mappings see that were made before it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from ..calls import append, child, inside, listing, mapped, opened, outcome, umask, write_at
from ..table import Place, case
from ..trees import LONG_AGO_NS, file, folder, symlink

RICH = {
    "d": folder(0o2751, owner=(7, 8), xattrs={"user.dir": b"kept"}),
    "d/f": file(b"content", 0o6754, owner=(12, 34), xattrs={"user.k": b"v", "trusted.t": b"\0\1\2", "user.empty": b""}),
    "d/l": symlink("f"),
}
STALE = {"overlayfs:lower": "a mapping of a lower file stays there after the copy-up (its documentation says so)"}
CHUNKS = "copies a MiB where each piece of data begins"
ONE = {"f": file(b"0123456789")}


def facts(path: Path) -> tuple[object, ...]:
    """Return what a copy-up must not change, apart from size and times."""
    found = os.lstat(path)
    xattrs = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
    return found.st_mode, found.st_uid, found.st_gid, found.st_nlink, xattrs


@case("basic", RICH, origins=("lower", "copied"))
def metadata_survives_a_write(at: Place) -> None:
    before = facts(at.path / "d/f")
    append(at.path / "d/f", b"!")
    assert (at.path / "d/f").read_bytes() == b"content!"
    assert facts(at.path / "d/f") == before
    at.remount()
    assert facts(at.path / "d/f") == before


@case("basic", RICH, origins=("lower",))
def metadata_survives_a_chmod(at: Place) -> None:
    os.chmod(at.path / "d/f", 0o640)
    found = os.stat(at.path / "d/f")
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns) == (0o640, 12, 34, LONG_AGO_NS)
    assert (at.path / "d/f").read_bytes() == b"content"


@case("basic", RICH, origins=("lower",))
def metadata_survives_a_rename(at: Place) -> None:
    before, directory = facts(at.path / "d/f"), facts(at.path / "d")
    os.rename(at.path / "d/f", at.path / "f")
    assert facts(at.path / "f") == before
    assert os.stat(at.path / "f").st_mtime_ns == LONG_AGO_NS
    os.rename(at.path / "d", at.path / "e")
    assert facts(at.path / "e")[:3] == directory[:3]
    assert facts(at.path / "e")[4] == directory[4]
    assert os.lstat(at.path / "e/l").st_mtime_ns == LONG_AGO_NS


@case("basic", RICH, origins=("lower",))
def parents_keep_their_metadata(at: Place) -> None:
    write_at(at.path / "d/f", b"C")
    found = os.stat(at.path / "d")
    assert (found.st_mode & 0o7777, found.st_uid, found.st_gid, found.st_mtime_ns) == (0o2751, 7, 8, LONG_AGO_NS)
    assert os.getxattr(at.path / "d", "user.dir") == b"kept"


@case("basic", ONE, origins=("lower", "copied"))
def opening_for_writing_changes_nothing(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        assert os.fstat(f).st_mtime_ns == LONG_AGO_NS
        assert os.pread(f, 100, 0) == b"0123456789"
    assert os.stat(at.path / "f").st_mtime_ns == LONG_AGO_NS


@case(
    "basic",
    {"holes": file(b"", holes=((1 << 20, b"x"), (8 << 20, b"y"), (16 << 20, b"z")))},
    deviates={"overlayfs:lower": CHUNKS, "overlayfs:copied": CHUNKS},
)
def holes_survive(at: Place) -> None:
    append(at.path / "holes", b"end")
    found = os.stat(at.path / "holes")
    assert found.st_size == (16 << 20) + 4
    assert found.st_blocks * 512 < 1 << 20
    with opened(at.path / "holes", os.O_RDONLY) as f:
        assert os.pread(f, 3, (8 << 20) - 1) == b"\0y\0"
        assert os.pread(f, 10, 16 << 20) == b"zend"


@case("basic", {"tail": file(b"data", holes=((1 << 16, b"x"),))})
def a_hole_at_the_end_survives(at: Place) -> None:
    os.truncate(at.path / "tail", 3 << 20)
    append(at.path / "tail", b"!")
    data = (at.path / "tail").read_bytes()
    assert data == b"data".ljust(1 << 16, b"\0") + b"x".ljust((3 << 20) - (1 << 16), b"\0") + b"!"


@case("basic", {"f": file(b"x" * 100_000, 0o444), "d": folder(0o555), "d/g": file(b"g", 0o000)})
def root_needs_no_permission_bits(at: Place) -> None:
    append(at.path / "f", b"!")
    append(at.path / "d/g", b"!")
    assert (at.path / "f").read_bytes() == b"x" * 100_000 + b"!"
    assert (at.path / "d/g").read_bytes() == b"g!"
    os.unlink(at.path / "d/g")
    assert os.stat(at.path / "d").st_mode & 0o777 == 0o555
    assert os.stat(at.path / "f").st_mode & 0o777 == 0o444


@case(
    "basic",
    {
        "d": folder(owner=(1000, 1000)),
        "d/a": file(b"a", 0o444, owner=(1000, 1000)),
        "d/b": file(b"b", 0o400),
        "d/c": file(),
    },
)
def owners_of_a_directory_replace_files_they_cannot_write(at: Place) -> None:
    def replace() -> None:
        os.rename("a", "moved")
        os.unlink("b")
        with open("new", "wb") as new:
            new.write(b"new")
        os.rename("new", "c")

    with inside(at.path / "d"):
        child(replace, user=1000, group=1000)
    assert listing(at.path / "d") == ["c", "moved"]
    assert (at.path / "d/c").read_bytes() == b"new"
    assert os.stat(at.path / "d/moved").st_uid == 1000


@case("basic", {"f": file(b"0" * 300_000)})
def copy_file_range_reads_any_layer(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as source, opened(at.path / "new", os.O_CREAT | os.O_RDWR) as target:
        copied = 0
        while step := os.copy_file_range(source, target, 300_000):
            copied += step
        assert copied == 300_000
    assert (at.path / "new").read_bytes() == b"0" * 300_000


@case("posix", ONE)
def a_descriptor_sees_what_is_written_later(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as early:
        assert os.pread(early, 3, 0) == b"012"
        write_at(at.path / "f", b"abc")
        assert os.pread(early, 100, 0) == b"abc3456789"
        append(at.path / "f", b"!")
        assert os.pread(early, 100, 0) == b"abc3456789!"
        os.truncate(at.path / "f", 1)
        assert os.pread(early, 100, 0) == b"a"
        assert os.fstat(early).st_size == 1


@case("posix", ONE, deviates=STALE)
def a_shared_mapping_sees_what_is_written_later(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as early, mapped(early, 10, mmap.PROT_READ) as view:
        assert view[:3] == b"012"
        write_at(at.path / "f", b"abc")
        assert view[:] == b"abc3456789"


@case("posix", ONE)
def a_mapping_and_a_descriptor_see_each_other(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as early:
        assert os.pread(early, 3, 0) == b"012"
        with opened(at.path / "f", os.O_RDWR) as f, mapped(f, 10) as mapping:
            mapping[0:3] = b"abc"
            assert os.pread(early, 100, 0) == b"abc3456789"
            write_at(at.path / "f", b"X", 9)
            assert mapping[9:10] == b"X"
    assert (at.path / "f").read_bytes() == b"abc345678X"


@case("posix", ONE)
def a_descriptor_follows_metadata(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as early:
        ino = os.fstat(early).st_ino
        os.chmod(at.path / "f", 0o604)
        os.chown(at.path / "f", 12, 34)
        os.setxattr(at.path / "f", "user.k", b"v")
        found = os.fstat(early)
        assert (found.st_mode & 0o777, found.st_uid, found.st_gid, found.st_ino) == (0o604, 12, 34, ino)
        assert os.getxattr(early, "user.k") == b"v"
        os.fchmod(early, 0o640)
    assert os.stat(at.path / "f").st_mode & 0o777 == 0o640


@case("posix", {"f": file(b"secret", 0o600), "d": folder(0o700)})
def nothing_of_a_copy_is_ever_visible(at: Place) -> None:
    with umask(0):
        append(at.path / "f", b"!")
        (at.path / "d/x").write_bytes(b"")
    assert os.stat(at.path / "f").st_mode & 0o777 == 0o600
    assert listing(at.path) == ["d", "f"]
    assert listing(at.path / "d") == ["x"]


@case("posix", {"d": folder(0o1777), "d/f": file(b"x", 0o200, owner=(1000, 1000))})
def a_file_its_owner_cannot_read_is_written(at: Place) -> None:
    def write() -> None:
        append_at = os.open("f", os.O_WRONLY | os.O_APPEND)
        os.write(append_at, b"y")
        assert outcome(os.open, "f", os.O_RDONLY)

    with inside(at.path / "d"):
        child(write, user=1000, group=1000)
    assert (at.path / "d/f").read_bytes() == b"xy"
