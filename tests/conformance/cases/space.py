"""Space: holes, fallocate, copying within the kernel, direct I/O, syncing. fallocate(2), lseek(2), statvfs(3)."""

from __future__ import annotations

import errno
import mmap
import os
from fcntl import F_SETFL, fcntl
from pathlib import Path

from unionfs.syscalls import files as raw

from ..calls import inode_flags, mapped, opened, outcome, refused, set_inode_flags
from ..table import Place, case, libfuse2
from ..trees import file, folder

KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO, INSERT, UNSHARE = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
MODES = (0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO, ZERO | KEEP_SIZE, PUNCH_HOLE, 1 << 10)
RARE_MODES = (COLLAPSE, INSERT, UNSHARE)
#: fuse_file_fallocate in fs/fuse/file.c.
FUSE_LACKS = dict.fromkeys(("direct", "fusepy"), "the kernel's FUSE passes on no other modes of fallocate")
BLOCKS = b"".join(bytes([65 + n]) * 4096 for n in range(8))
HOLES = file(b"", holes=((1 << 20, b"data" * 1024), (3 << 20, b"more" * 1024)))


@case("posix", {f"f{mode}": file(BLOCKS) for mode in MODES})
def fallocate_does_what_the_layers_file_system_does(at: Place) -> None:
    for mode in MODES:
        assert _fallocated(at.path / f"f{mode}", mode) == _fallocated(at.plain / f"f{mode}", mode), f"mode {mode:#x}"


@case("posix", {f"f{mode}": file(BLOCKS) for mode in RARE_MODES}, deviates=FUSE_LACKS)
def fallocate_knows_rare_modes(at: Place) -> None:
    for mode in RARE_MODES:
        assert _fallocated(at.path / f"f{mode}", mode) == _fallocated(at.plain / f"f{mode}", mode), f"mode {mode:#x}"


def _fallocated(path: Path, mode: int) -> tuple[int, int, int, bytes]:
    """Return what came of it within the file and beyond its end."""
    if not path.exists():
        path.write_bytes(BLOCKS)
    with opened(path, os.O_RDWR) as f:
        within, beyond = outcome(raw.fallocate, f, mode, 4096, 8192), outcome(raw.fallocate, f, mode, 40960, 4096)
        return within, beyond, os.fstat(f).st_size, path.read_bytes()


@case("posix", {"f": file(BLOCKS)})
def fallocate_refuses_what_it_must(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        refused(errno.EINVAL, raw.fallocate, f, 0, 0, 0)
        refused(errno.EINVAL, raw.fallocate, f, 0, -1, 10)
        refused(errno.EFBIG, raw.fallocate, f, 0, (1 << 63) - 2, 10)
    with opened(at.path / "f", os.O_RDONLY) as f:
        refused(errno.EBADF, raw.fallocate, f, 0, 0, 10)
    assert (at.path / "f").read_bytes() == BLOCKS


NO_LSEEK = libfuse2("does not pass on lseek: everything is data") | {
    "write-back": "the kernel asks for holes without having written its pages back: everything is data"
}
CHUNKS = "a copy-up copies a MiB where each piece of data begins"


@case("posix", {"f": HOLES}, deviates={"overlayfs:lower": CHUNKS, "overlayfs:copied": CHUNKS, **NO_LSEEK})
def holes_are_found(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        size = os.fstat(f).st_size
        for _ in range(2):
            assert os.lseek(f, 0, os.SEEK_DATA) == 1 << 20
            assert os.lseek(f, 1 << 20, os.SEEK_HOLE) == (1 << 20) + 4096
            assert os.lseek(f, 2 << 20, os.SEEK_DATA) == 3 << 20
            assert os.lseek(f, 3 << 20, os.SEEK_HOLE) == size
            refused(errno.ENXIO, os.lseek, f, size, os.SEEK_DATA)
            os.fchmod(f, 0o600)


@case("posix", {"f": file(BLOCKS)}, deviates=NO_LSEEK)
def a_punched_hole_is_a_hole(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        raw.fallocate(f, PUNCH_HOLE | KEEP_SIZE, 4096, 8192)
        assert os.lseek(f, 0, os.SEEK_HOLE) == 4096
        assert os.pread(f, 4, 12286) == b"\0\0DD"
        assert os.fstat(f).st_size == len(BLOCKS)


@case("posix", {"f": file(BLOCKS), "g": file(b"target" * 100)})
def copy_file_range_within_the_mount(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as f, opened(at.path / "g", os.O_RDWR) as g:
        assert os.copy_file_range(f, g, 8192, 4000, 100) == 8192
        assert os.pread(g, 8192, 100) == BLOCKS[4000:12192]
        assert os.pread(g, 100, 0) == (b"target" * 100)[:100]
        assert os.copy_file_range(f, g, 100, len(BLOCKS), 0) == 0
    with opened(at.path / "f", os.O_RDWR) as f:
        assert os.copy_file_range(f, f, 4096, 0, 8192) == 4096
        refused(errno.EINVAL, os.copy_file_range, f, f, 8192, 0, 4096)
        assert os.pread(f, 4096, 8192) == b"A" * 4096


@case("posix", {"f": file(BLOCKS)})
def copy_file_range_out_of_and_into_the_mount(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f, opened(at.plain / "out", os.O_CREAT | os.O_RDWR) as out:
        assert os.sendfile(out, f, 0, 8192) == 8192
        assert os.pread(out, 8192, 0) == BLOCKS[:8192]
        if not outcome(os.copy_file_range, out, f, 4096, 0, 4096):
            assert os.pread(f, 4096, 4096) == b"A" * 4096


@case("posix", {"f": file(BLOCKS)})
def direct_io(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR | os.O_DIRECT) as f, mmap.mmap(-1, 8192) as buffer:
        assert os.preadv(f, [buffer], 4096) == 8192
        assert buffer[:] == BLOCKS[4096:12288]
        buffer[:] = b"x" * 8192
        assert os.pwritev(f, [buffer], 0) == 8192
    assert (at.path / "f").read_bytes() == b"x" * 8192 + BLOCKS[8192:]


@case("posix", {"f": file(BLOCKS)})
def direct_and_cached_io_agree(at: Place) -> None:
    flags = os.O_RDWR | os.O_DIRECT
    with (
        opened(at.path / "f", os.O_RDWR) as cached,
        opened(at.path / "f", flags) as direct,
        mmap.mmap(-1, 4096) as page,
    ):
        os.pread(cached, 4096, 0)
        page[:] = b"d" * 4096
        os.pwritev(direct, [page], 0)
        assert os.pread(cached, 4096, 0) == b"d" * 4096
        os.pwrite(cached, b"c" * 4096, 0)
        os.preadv(direct, [page], 0)
        assert page[:] == b"c" * 4096


@case("posix", {"f": file(BLOCKS)})
def a_direct_writer_may_stop_being_one(at: Place) -> None:
    """dd(1) takes O_DIRECT away to write an end that is no whole block."""
    with opened(at.path / "f", os.O_WRONLY | os.O_DIRECT | os.O_TRUNC) as f, mmap.mmap(-1, 8192) as pages:
        pages[:] = b"d" * 8192
        assert os.write(f, pages) == 8192
        fcntl(f, F_SETFL, 0)
        assert os.write(f, b"end") == 3
        assert os.fstat(f).st_size == 8195
        os.ftruncate(f, 4096)
        fcntl(f, F_SETFL, os.O_DIRECT | os.O_APPEND)
        assert os.write(f, pages) == 8192
        assert os.lseek(f, 0, os.SEEK_CUR) == os.fstat(f).st_size == 12288
        os.fsync(f)
    assert (at.path / "f").read_bytes() == b"d" * 12288


@case("posix", {"f": file(BLOCKS)})
def a_direct_writer_agrees_with_mappings(at: Place) -> None:
    with (
        opened(at.path / "f", os.O_RDWR) as cached,
        opened(at.path / "f", os.O_WRONLY | os.O_DIRECT) as direct,
        mapped(cached, 32768) as mapping,
        mmap.mmap(-1, 4096) as page,
    ):
        assert mapping[4096:8192] == BLOCKS[4096:8192]
        mapping[0:5] = b"first"
        page[:] = b"d" * 4096
        raw.fallocate(direct, PUNCH_HOLE | KEEP_SIZE, 8192, 4096)
        assert os.pwrite(direct, page, 4096) == 4096
        assert mapping[:12288] == b"first" + BLOCKS[5:4096] + page[:] + bytes(4096)
        assert os.pread(cached, 4096, 4096) == page[:]


@case("basic", {"f": file(), "d": folder(), "d/g": file()})
def syncing_works_everywhere(at: Place) -> None:
    for name in ("f", "d", "d/g", "."):
        with opened(at.path / name, os.O_RDONLY) as descriptor:
            os.fsync(descriptor)
            os.fdatasync(descriptor)
    with opened(at.path / "f", os.O_RDWR) as f:
        os.write(f, b"x")
        os.fsync(f)
        os.fdatasync(f)
        raw.syncfs(f)
    with opened(at.path / "f", os.O_WRONLY | os.O_SYNC) as f:
        os.write(f, b"y")


@case("posix", {"f": file(), "d": folder()})
def statfs_tells_of_the_writable_file_system(at: Place) -> None:
    ours, theirs = os.statvfs(at.path / "f"), os.statvfs(at.plain)
    assert (ours.f_frsize, ours.f_blocks, ours.f_namemax) == (theirs.f_frsize, theirs.f_blocks, 255)
    assert os.statvfs(at.path / "d").f_fsid == ours.f_fsid
    assert ours.f_bavail


@case("posix", {"f": file()})
def a_write_past_the_limit_is_refused(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        refused(errno.EINVAL, os.pwrite, f, b"x", -1)
        refused(errno.EFBIG, os.ftruncate, f, (1 << 63) - 1)
    assert (at.path / "f").read_bytes() == b"0123456789"


@case("posix", {"f": file(b"flags")})
def inode_flags_are_those_of_the_layers_file_system(at: Place) -> None:
    (at.plain / "f").write_bytes(b"flags")
    assert _without_atime(at.path / "f") == _without_atime(at.plain / "f")


def _without_atime(path: Path) -> tuple[int, int | None]:
    """Set FS_NOATIME_FL; return the errno, and what is set then."""
    with opened(path, os.O_RDONLY) as f:
        try:
            set_inode_flags(f, inode_flags(f) | 0x80)
            return 0, inode_flags(f) & 0x80
        except OSError as error:
            return error.errno or 0, None
