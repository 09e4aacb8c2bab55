"""Regular files: create, write, truncate, append, read. open(2), write(2), truncate(2)."""

from __future__ import annotations

import errno
import os
import select

from ..calls import append, child, opened, refused, write_at
from ..table import Place, case
from ..trees import file, folder, node, symlink

CREATE = os.O_CREAT | os.O_EXCL | os.O_RDWR
ONE = {"f": file(b"0123456789")}
POLLED = "each file of FUSE can be polled (fuse_file_poll in fs/fuse/file.c)"


@case("basic")
def create_write_read(at: Place) -> None:
    with opened(at.path / "f", CREATE) as f:
        assert os.write(f, b"hello") == 5
        assert os.pread(f, 100, 1) == b"ello"
        assert os.fstat(f).st_size == 5
    assert (at.path / "f").read_bytes() == b"hello"


@case("basic", ONE)
def create_exclusively_over_a_file(at: Place) -> None:
    refused(errno.EEXIST, os.open, at.path / "f", CREATE)
    assert (at.path / "f").read_bytes() == b"0123456789"


@case("basic", ONE)
def create_again_after_removal(at: Place) -> None:
    os.unlink(at.path / "f")
    assert not os.path.lexists(at.path / "f")
    with opened(at.path / "f", CREATE, 0o600) as f:
        assert os.fstat(f).st_size == 0
        os.write(f, b"new")
    assert (at.path / "f").read_bytes() == b"new"
    assert os.stat(at.path / "f").st_mode & 0o777 == 0o600


@case("basic", ONE)
def overwrite_in_the_middle(at: Place) -> None:
    write_at(at.path / "f", b"abc", 3)
    assert (at.path / "f").read_bytes() == b"012abc6789"


@case("basic", ONE)
def write_beyond_the_end_leaves_zeros(at: Place) -> None:
    write_at(at.path / "f", b"x", 20)
    assert (at.path / "f").read_bytes() == b"0123456789" + bytes(10) + b"x"


@case("basic", ONE)
def truncate_shrinks_and_grows(at: Place) -> None:
    os.truncate(at.path / "f", 3)
    assert (at.path / "f").read_bytes() == b"012"
    os.truncate(at.path / "f", 6)
    assert (at.path / "f").read_bytes() == b"012\0\0\0"
    with opened(at.path / "f", os.O_RDWR) as f:
        os.ftruncate(f, 1)
        assert os.fstat(f).st_size == 1
    assert (at.path / "f").read_bytes() == b"0"


@case("basic", ONE)
def open_with_truncation(at: Place) -> None:
    with opened(at.path / "f", os.O_WRONLY | os.O_TRUNC) as f:
        assert os.fstat(f).st_size == 0
        os.write(f, b"ab")
    assert (at.path / "f").read_bytes() == b"ab"


@case("basic", ONE)
def truncate_to_zero_and_write(at: Place) -> None:
    os.truncate(at.path / "f", 0)
    assert (at.path / "f").read_bytes() == b""
    write_at(at.path / "f", b"ab")
    assert (at.path / "f").read_bytes() == b"ab"


@case("basic", ONE)
def append_goes_to_the_end(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR | os.O_APPEND) as f:
        os.lseek(f, 2, os.SEEK_SET)
        os.write(f, b"ab")
        append(at.path / "f", b"cd")
        os.write(f, b"ef")
    assert (at.path / "f").read_bytes() == b"0123456789abcdef"


@case("basic", ONE)
def read_at_and_after_the_end(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as f:
        assert os.pread(f, 100, 8) == b"89"
        assert os.pread(f, 100, 10) == b""
        assert os.pread(f, 100, 1 << 40) == b""
        assert os.lseek(f, -2, os.SEEK_END) == 8


@case("basic", ONE)
def two_descriptors_see_each_other(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as one, opened(at.path / "f", os.O_RDWR) as two:
        os.pwrite(one, b"A", 0)
        assert os.pread(two, 2, 0) == b"A1"
        os.pwrite(two, b"B", 1)
        assert os.pread(one, 2, 0) == b"AB"
        os.ftruncate(two, 1)
        assert os.fstat(one).st_size == 1


@case("basic", ONE)
def descriptors_do_what_they_were_opened_for(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as f:
        refused(errno.EBADF, os.write, f, b"x")
        refused(errno.EINVAL, os.ftruncate, f, 0)
    with opened(at.path / "f", os.O_WRONLY) as f:
        refused(errno.EBADF, os.read, f, 1)
    assert (at.path / "f").read_bytes() == b"0123456789"


@case("basic")
def many_sizes_survive(at: Place) -> None:
    for size in (0, 1, 4095, 4096, 4097, 131072, 131073, 3 * 1048576 + 17):
        data = os.urandom(size)
        (at.path / "f").write_bytes(data)
        assert (at.path / "f").read_bytes() == data
        assert os.stat(at.path / "f").st_size == size


@case("basic", {"big": file(bytes(range(256)) * 8192)})
def a_big_file_changed_in_places(at: Place) -> None:
    expected = bytearray(bytes(range(256)) * 8192)
    with opened(at.path / "big", os.O_RDWR) as f:
        for offset in (0, 4095, 65536, 1048575, 2097150):
            os.pwrite(f, b"####", offset)
            expected[offset : offset + 4] = b"####"
        assert os.pread(f, 10, 4090) == expected[4090:4100]
    assert (at.path / "big").read_bytes() == expected


@case("basic", {"f": file(), "d": folder(), "l": symlink("f"), "dl": symlink("d"), "loop": symlink("loop")})
def open_refuses_what_it_must(at: Place) -> None:
    p = at.path
    refused(errno.ENOENT, os.open, p / "missing", os.O_RDONLY)
    refused(errno.ENOENT, os.open, p / "missing/f", CREATE)
    refused(errno.ENOTDIR, os.open, p / "f/x", CREATE)
    refused(errno.ENOTDIR, os.open, p / "f", os.O_RDONLY | os.O_DIRECTORY)
    refused(errno.EISDIR, os.open, p / "d", os.O_WRONLY)
    refused(errno.EISDIR, os.open, p / "d", os.O_RDWR | os.O_CREAT)
    refused(errno.EEXIST, os.open, p / "d", CREATE)
    refused(errno.EEXIST, os.open, p / "l", CREATE)
    refused(errno.ELOOP, os.open, p / "l", os.O_RDONLY | os.O_NOFOLLOW)
    refused(errno.ELOOP, os.open, p / "loop", os.O_RDONLY)
    refused(errno.ENAMETOOLONG, os.open, p / ("n" * 256), CREATE)
    refused(errno.EISDIR, os.truncate, p / "d", 0)
    refused(errno.EINVAL, os.truncate, p / "f", -1)
    refused(errno.ENOTDIR, os.stat, os.fspath(p / "f") + "/")


@case("basic", {"d/f": file(b"in d"), "d": folder(), "l": symlink("d"), "abs": symlink("/no/such/place")})
def create_through_symlinks(at: Place) -> None:
    (at.path / "l/new").write_bytes(b"x")
    assert (at.path / "d/new").read_bytes() == b"x"
    assert (at.path / "l/f").read_bytes() == b"in d"
    refused(errno.ENOENT, os.open, at.path / "abs", os.O_WRONLY | os.O_CREAT)


@case("basic", {"log": file(b"")})
def appenders_in_several_processes_lose_nothing(at: Place) -> None:
    def log(mark: bytes) -> None:
        with opened(at.path / "log", os.O_WRONLY | os.O_APPEND) as f:
            for _ in range(20):
                os.write(f, mark * 99 + b"\n")

    pids = [_fork(log, mark) for mark in (b"a", b"b", b"c", b"d")]
    for pid in pids:
        assert os.waitpid(pid, 0)[1] == 0
    lines = (at.path / "log").read_bytes().splitlines()
    assert sorted(lines) == sorted([mark * 99 for mark in (b"a", b"b", b"c", b"d")] * 20)


def _fork(function: object, *arguments: object) -> int:
    pid = os.fork()
    if not pid:
        try:
            function(*arguments)  # type: ignore[operator]
            os._exit(0)
        finally:
            os._exit(1)
    return pid


@case("basic", {"f": file(), "p": node(0o010000), "d": folder()})
def another_process_sees_the_change(at: Place) -> None:
    write_at(at.path / "f", b"ab")

    def look() -> None:
        assert (at.path / "f").read_bytes() == b"ab23456789"
        append(at.path / "f", b"!")

    child(look)
    assert (at.path / "f").read_bytes() == b"ab23456789!"


@case("basic", ONE)
def poll_finds_a_file_ready(at: Place) -> None:
    with opened(at.path / "f", os.O_RDWR) as f:
        poll = select.poll()
        poll.register(f, select.POLLIN | select.POLLOUT)
        assert poll.poll() == [(f, select.POLLIN | select.POLLOUT)]


@case("posix", ONE, deviates={"direct": POLLED, "fusepy": POLLED})
def epoll_takes_no_file(at: Place) -> None:
    with opened(at.path / "f", os.O_RDONLY) as f, select.epoll() as events:
        refused(errno.EPERM, events.register, f, select.EPOLLIN)
