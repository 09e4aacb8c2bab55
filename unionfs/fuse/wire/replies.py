"""Encode answers: complete messages for `os.write`, and the payloads that go into them.

A message is a header and a payload: `data(request.unique, entry(...))`. `header` alone is for `os.writev`, where the
payload is large and should not be copied. This module does not know which request is answered; which payload belongs
to which opcode is said by each encoder.
"""

from __future__ import annotations

from os import major, minor
from struct import Struct

from unionfs.fuse.wire import abi

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Sequence

STATX_BASIC_STATS = 0x7FF  # statx(2)
STATX_BTIME = 0x800

_NS = 1_000_000_000
_HEADER_BYTES = abi.OUT_HEADER.size
_pack_header = abi.OUT_HEADER.pack
_pack_attr = abi.ATTR.pack
_pack_entry = abi.ENTRY_OUT.pack
_pack_attr_out = abi.ATTR_OUT.pack
_NO_ATTRIBUTES = bytes(abi.ATTR.size)

_ENTRY_BYTES = abi.ENTRY_OUT.size + abi.ATTR.size


def header(unique: int, payload_length: int) -> bytes:
    """Return the header of a successful reply whose `payload_length` bytes are written together with it."""
    return _pack_header(_HEADER_BYTES + payload_length, 0, unique)


def data(unique: int, payload: bytes) -> bytes:
    """Return the message that answers request `unique` with `payload`."""
    return _pack_header(_HEADER_BYTES + len(payload), 0, unique) + payload


def ok(unique: int) -> bytes:
    """Return the message that says that request `unique` succeeded and has nothing to tell."""
    return _pack_header(_HEADER_BYTES, 0, unique)


def error(unique: int, errno: int) -> bytes:
    """Return the message that fails request `unique` with `errno` (positive, at most 511: the kernel drops others)."""
    return _pack_header(_HEADER_BYTES, -errno, unique)


def attributes(st: os.stat_result, ino: int, nlink: int, uid: int, gid: int, blksize: int = 4096) -> bytes:
    """Return the attributes of a file, for `entry` and `attr`.

    Size, blocks, times, mode and device number are those of `st`; the rest is given, since a union has its own.
    """
    mode, _, _, _, _, _, size, atime, mtime, ctime = st  # times in whole seconds
    return _pack_attr(
        ino, size, st.st_blocks,
        atime, mtime, ctime, st.st_atime_ns % _NS, st.st_mtime_ns % _NS, st.st_ctime_ns % _NS,
        mode, nlink, uid, gid, encode_dev(st.st_rdev) if st.st_rdev else 0, blksize, 0,
    )  # fmt: skip


def encode_dev(device: int) -> int:
    """Return the kernel's 32-bit form of a device number of stat(2) (new_encode_dev, include/linux/kdev_t.h)."""
    low = minor(device)
    return (low & 0xFF) | (major(device) & 0xFFF) << 8 | (low & 0xFFF00) << 12


def decode_dev(device: int) -> tuple[int, int]:
    """Return major and minor of a device number in a request, such as MKNOD's (new_decode_dev)."""
    return (device & 0xFFF00) >> 8, (device & 0xFF) | ((device >> 12) & 0xFFF00)


def entry(nodeid: int, generation: int, entry_valid_s: int, attr_valid_s: int, attributes: bytes) -> bytes:
    """Answer LOOKUP, MKNOD, MKDIR, SYMLINK and LINK: a node, and for how many seconds its name and attributes hold.

    The pair of `nodeid` and `generation` must never come again for another file. Each entry adds one to the node's
    lookup count, which FORGET takes back.
    """
    return _pack_entry(nodeid, generation, entry_valid_s, attr_valid_s, 0, 0) + attributes


def negative_entry(entry_valid_s: int) -> bytes:
    """Answer LOOKUP: there is no such name, and that holds for so many seconds (ENOENT says it for none)."""
    return _pack_entry(0, 0, entry_valid_s, 0, 0, 0) + _NO_ATTRIBUTES


def attr(attr_valid_s: int, attributes: bytes) -> bytes:
    """Answer GETATTR and SETATTR: attributes, and for how many seconds they hold."""
    return _pack_attr_out(attr_valid_s, 0) + attributes


def statx(
    attr_valid_s: int, st: os.stat_result, ino: int, nlink: int, uid: int, gid: int,
    *, btime_ns: int | None = None, blksize: int = 4096,
) -> bytes:  # fmt: skip
    """Answer STATX: the attributes of `attributes`, and the time of birth where it is known (ns since 1970)."""
    mask = STATX_BASIC_STATS if btime_ns is None else STATX_BASIC_STATS | STATX_BTIME
    times: list[int] = []
    for time_ns in (st.st_atime_ns, btime_ns or 0, st.st_ctime_ns, st.st_mtime_ns):
        times += divmod(time_ns, _NS)
    stat = abi.STATX_STAT.pack(
        mask, blksize, 0, nlink, uid, gid, st.st_mode, ino, st.st_size, st.st_blocks, 0,
        *times, major(st.st_rdev), minor(st.st_rdev), 0, 0,
    )  # fmt: skip
    return abi.STATX_OUT.pack(attr_valid_s, 0, 0) + stat


def opened(fh: int, open_flags: int, backing_id: int = 0) -> bytes:
    """Answer OPEN and OPENDIR: a handle, FOPEN_* flags, with FOPEN_PASSTHROUGH the id of the file that backs it."""
    return abi.OPEN_OUT.pack(fh, open_flags, backing_id)


def created(entry: bytes, opened: bytes) -> bytes:
    """Answer CREATE and TMPFILE: an `entry` and an `opened`."""
    return entry + opened


def written(size: int) -> bytes:
    """Answer WRITE and COPY_FILE_RANGE: how many bytes were written."""
    return abi.WRITE_OUT.pack(size)


def copied(size: int) -> bytes:
    """Answer COPY_FILE_RANGE_64: how many bytes were copied."""
    return abi.COPY_FILE_RANGE_OUT.pack(size)


def statfs(st: os.statvfs_result) -> bytes:
    """Answer STATFS."""
    return abi.KSTATFS.pack(
        st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, st.f_bsize, st.f_namemax, st.f_frsize
    )


def xattr_size(size: int) -> bytes:
    """Answer GETXATTR and LISTXATTR of size 0: how many bytes there are."""
    return abi.GETXATTR_OUT.pack(size)


def lock(start: int, end: int, kind: int, pid: int) -> bytes:
    """Answer GETLK: the lock in the way (`kind` F_RDLCK or F_WRLCK), or F_UNLCK. `end` is the last byte of it."""
    return abi.FILE_LOCK.pack(start, end, kind, pid)


def lseek(offset: int) -> bytes:
    """Answer LSEEK: where the data or the hole begins."""
    return abi.LSEEK_OUT.pack(offset)


def poll(revents: int) -> bytes:
    """Answer POLL: the events that are ready."""
    return abi.POLL_OUT.pack(revents)


def ioctl(result: int, flags: int = 0, payload: bytes = b"") -> bytes:
    """Answer IOCTL: what ioctl(2) returns, and the bytes to copy to its argument."""
    return abi.IOCTL_OUT.pack(result, flags, 0, 0) + payload


def init(
    minor: int, flags: int = 0, max_readahead: int = 0, max_write: int = 0, max_background: int = 0,
    congestion_threshold: int = 0, time_gran: int = 0, max_pages: int = 0, max_stack_depth: int = 0,
) -> bytes:  # fmt: skip
    """Answer INIT; `flags` are all 64 bits. `negotiate.init_reply` fills it in."""
    return abi.INIT_OUT.pack(
        abi.KERNEL_VERSION, minor, max_readahead, flags & 0xFFFFFFFF, max_background, congestion_threshold,
        max_write, time_gran, max_pages, 0, flags >> 32, max_stack_depth, 0,
    )  # fmt: skip


class _Dirents(dict[int, "Callable[..., bytes]"]):
    """What packs a whole entry behind `blank` zeros, by the length of its name, which is filled up with zeros
    (FUSE_DIRENT_ALIGN).
    """

    def __init__(self, blank: int) -> None:
        self._format = f"={blank}x{abi.DIRENT.format.lstrip('=')}"
        self.least = blank + abi.DIRENT.size + 8  # bytes of the shortest

    def __missing__(self, length: int) -> Callable[..., bytes]:
        pack = self[length] = Struct(f"{self._format}{length + (-length & 7)}s").pack
        return pack


_pack_dirents = _Dirents(0)
_pack_untold = _Dirents(_ENTRY_BYTES)


class DirentBuffer:
    """The payload that answers READDIR or, with `plus`, READDIRPLUS, at most `limit` bytes long.

    `offset` is the cookie with which the kernel goes on *after* a name; `dtype` is a DT_* of readdir(3), which is the
    file type of a mode shifted right by 12.
    """

    __slots__ = ("_pack_names", "_records", "_room")

    def __init__(self, limit: int, *, plus: bool) -> None:
        self._records: list[bytes] = []
        self._room = limit
        self._pack_names = _pack_untold if plus else _pack_dirents

    def add(self, entry: bytes, ino: int, offset: int, dtype: int, name: bytes) -> bool:
        """Append a name with `entry`, what LOOKUP would say of it, for READDIRPLUS; it counts as a lookup.

        Return False, and append nothing, when it does not fit.
        """
        length = len(name)
        record = entry + _pack_dirents[length](ino, offset, length, dtype, name)
        if len(record) > self._room:
            return False
        self._room -= len(record)
        self._records.append(record)
        return True

    def extend(self, names: Sequence[bytes], dtypes: Iterable[int], inos: Iterable[int], offset: int) -> bool:
        """Append names alone, `.` and `..` among them, the first of which has `offset`, each other one the next.

        The kernel looks them up when somebody asks for them. Return False when not all fit: the rest is left out.
        """
        pack = self._pack_names
        most = self._room // pack.least + 1  # packing more would be for nothing
        rows = zip(names[:most], dtypes, inos, range(offset, offset + most), strict=False)
        records = [pack[length := len(name)](ino, after, length, dtype, name) for name, dtype, ino, after in rows]
        room = self._room - sum(map(len, records))
        while room < 0:
            room += len(records.pop())
        self._room = room
        self._records += records
        return len(records) == len(names)

    @property
    def payload(self) -> bytes:
        """What was added; empty at the end of the directory."""
        return b"".join(self._records)
