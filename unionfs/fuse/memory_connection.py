"""The in-process kernel's end of the protocol: messages written and taken apart as Linux does it, counted and recorded.

What ``memory`` is built on. This module does not know what to ask for; only that a request may wait for a copy-up.
"""

from __future__ import annotations

import errno
import os
from struct import Struct
from typing import NamedTuple

from unionfs.fuse.pipes import Piped
from unionfs.fuse.verbs.base import Later
from unionfs.fuse.wire import abi
from unionfs.fuse.wire.requests import OPCODES
from unionfs.union.copyup import Pending

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unionfs.fuse.dispatch import Dispatcher
    from unionfs.fuse.verbs.base import Message
    from unionfs.fuse.wire.requests import Request

ALL_FLAGS = (1 << 43) - 1
"""Everything that 7.45 offers in INIT."""

_NODEID = Struct("=Q")
_NODEID_OFFSET = 16
_OPTIONAL = frozenset({abi.FLUSH, abi.OPEN, abi.OPENDIR, abi.ACCESS})
_GIVES_ENTRY = frozenset({abi.LOOKUP, abi.MKNOD, abi.MKDIR, abi.SYMLINK, abi.LINK, abi.CREATE, abi.TMPFILE})
_BEGINS_WITH_ID = frozenset({abi.LINK, abi.RENAME, abi.RENAME2})


class ProtocolError(Exception):
    """The dispatcher answered what Linux would refuse, or did not answer."""


class Attr(NamedTuple):
    """struct fuse_attr."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    """struct fuse_entry_out: a node id (0: there is no such name), and for how many seconds the rest holds."""

    nodeid: int
    generation: int
    entry_valid_s: int
    attr_valid_s: int
    attr: Attr


class Dirent(NamedTuple):
    """One name of a directory, with what READDIRPLUS says of it."""

    name: bytes
    ino: int
    offset: int
    kind: int
    entry: Entry | None


class Handle(NamedTuple):
    """An open file or directory."""

    nodeid: int
    fh: int
    flags: int
    open_flags: int


class Exchange(NamedTuple):
    """One request and its reply, None where none is due."""

    request: bytes
    reply: bytes | None


def exchange(dispatcher: Dispatcher, message: bytes) -> bytes | None:
    """Have ``dispatcher`` answer one request; what would wait in another thread is done at once."""
    buffer = bytearray(message)
    request = dispatcher.decode(buffer, len(buffer))
    try:
        reply = _finished(dispatcher, request)
    except OSError as error:
        reply = dispatcher.failure(request.unique, error)
    if isinstance(reply, Piped):
        return reply.take()
    return b"".join(reply) if isinstance(reply, tuple) else reply


def _finished(dispatcher: Dispatcher, request: Request) -> Message | None:
    while True:
        try:
            reply = dispatcher.handle(request)
        except Pending as pending:
            pending.job.run()
            dispatcher.stack.writable().copyup.finish(pending.job)
        else:
            late = dispatcher.tidy()
            return late.pop() if late else reply.run() if isinstance(reply, Later) else reply


def replay(dispatcher: Dispatcher, exchanges: Iterable[Exchange]) -> Iterator[Exchange]:
    """Send recorded requests to a new dispatcher, about the nodes that it has in place of those recorded; yield them
    with what it answers.
    """
    ids = _Ids()
    for recorded in exchanges:
        request = ids.translate(recorded.request)
        again = Exchange(request, exchange(dispatcher, request))
        ids.learn(recorded, again)
        yield again


class _Ids:
    """The node ids of a recording, and what they are when it is sent again: they differ as inode numbers do."""

    def __init__(self) -> None:
        self._known = {0: 0, abi.ROOT_ID: abi.ROOT_ID}

    def translate(self, message: bytes) -> bytes:
        """Return a recorded request with the ids that hold now."""
        opcode = abi.IN_HEADER.unpack_from(message)[1]
        places = [_NODEID_OFFSET] + ([abi.IN_HEADER.size] if opcode in _BEGINS_WITH_ID else [])
        if opcode == abi.BATCH_FORGET:
            first = abi.IN_HEADER.size + abi.BATCH_FORGET_IN.size
            places += range(first, len(message), abi.FORGET_ONE.size)
        translated = bytearray(message)
        for place in places:
            _NODEID.pack_into(translated, place, self._known[_NODEID.unpack_from(message, place)[0]])
        return bytes(translated)

    def learn(self, recorded: Exchange, again: Exchange) -> None:
        """Take note of the ids in a recorded reply and in the one that came now."""
        old, new = self._entries(recorded), self._entries(again)
        self._known.update((nodeid, new[name]) for name, nodeid in old.items() if name in new)

    def _entries(self, done: Exchange) -> dict[bytes, int]:
        opcode = abi.IN_HEADER.unpack_from(done.request)[1]
        payload = (done.reply or b"")[abi.OUT_HEADER.size :]
        if opcode == abi.READDIRPLUS:
            return {found.name: found.entry.nodeid for found in dirents(payload, plus=True) if found.entry is not None}
        return {b"": read_entry(payload).nodeid} if opcode in _GIVES_ENTRY and payload else {}


class Connection:
    """One connection with ``dispatcher``. ``uid``, ``gid`` and ``pid`` are those of whoever asks, and may be changed.

    ``minor`` and ``flags`` are what it offers; ``agreed`` has the flags that were answered. ``counts`` tells how often
    each request was sent, ``exchanges`` holds them all.
    """

    def __init__(
        self, dispatcher: Dispatcher, *, minor: int = abi.KERNEL_MINOR_VERSION, flags: int = ALL_FLAGS
    ) -> None:
        self.dispatcher = dispatcher
        self.uid = self.gid = 0
        self.pid = 1
        self.exchanges: list[Exchange] = []
        self.counts: dict[str, int] = {}
        self._refused: set[int] = set()
        self._unique = 0
        self.setxattr_layout = abi.SETXATTR_IN_COMPAT
        args = (abi.KERNEL_VERSION, minor, 1 << 17, flags & 0xFFFFFFFF, flags >> 32)
        answer = abi.INIT_OUT.unpack(self.send(abi.INIT, 0, args))
        self.agreed: int = answer[3] | answer[10] << 32
        if self.agreed & abi.INIT_SETXATTR_EXT:
            self.setxattr_layout = abi.SETXATTR_IN

    def encode(
        self, opcode: int, nodeid: int, args: tuple[int, ...] = (), names: tuple[bytes, ...] = (), data: bytes = b""
    ) -> bytes:
        """Return the next request, as Linux would write it; ``args`` are the fields of the opcode's layout."""
        layout = self.setxattr_layout if opcode == abi.SETXATTR else OPCODES[opcode].layout
        body = (layout.pack(*args) if layout else b"") + b"".join(name + b"\0" for name in names) + data
        self._unique += 2
        size = abi.IN_HEADER.size + len(body)
        return abi.IN_HEADER.pack(size, opcode, self._unique, nodeid, self.uid, self.gid, self.pid, 0) + body

    def send(
        self, opcode: int, nodeid: int, args: tuple[int, ...] = (), names: tuple[bytes, ...] = (), data: bytes = b""
    ) -> bytes:
        """Send one request; return the payload of its reply. Raises OSError, and ProtocolError."""
        message = self.encode(opcode, nodeid, args, names, data)
        name = OPCODES[opcode].name
        self.counts[name] = self.counts.get(name, 0) + 1
        reply = exchange(self.dispatcher, message)
        self.exchanges.append(Exchange(message, reply))
        if not OPCODES[opcode].reply:
            if reply is not None:
                raise ProtocolError(f"{name}: there is nobody who waits for a reply")
            return b""
        return self._payload(name, reply)

    def _payload(self, name: str, reply: bytes | None) -> bytes:
        """Take a reply apart as fuse_dev_do_write in fs/fuse/dev.c does."""
        if reply is None or len(reply) < abi.OUT_HEADER.size:
            raise ProtocolError(f"{name}: no reply")
        length, error, unique = abi.OUT_HEADER.unpack_from(reply)
        payload = reply[abi.OUT_HEADER.size :]
        if length != len(reply) or unique != self._unique or not -512 < error <= 0 or (error and payload):
            raise ProtocolError(f"{name}: malformed reply {reply[:64]!r}")
        if error:
            raise OSError(-error, os.strerror(-error), name)
        return payload

    def refused(self, opcode: int) -> bool:
        """Tell whether a request was refused for the life of the mount."""
        return opcode in self._refused

    def ask(self, opcode: int, nodeid: int, args: tuple[int, ...]) -> bytes | None:
        """Send what may be refused for the life of the mount; None if it was, or is now."""
        if opcode in self._refused:
            return None
        try:
            return self.send(opcode, nodeid, args)
        except OSError as error:
            if error.errno != errno.ENOSYS or opcode not in _OPTIONAL:
                raise
            self._refused.add(opcode)
            return None


def read_entry(payload: bytes, place: int = 0) -> Entry:
    """Take apart what answers LOOKUP and all that makes a name."""
    nodeid, generation, entry_valid_s, attr_valid_s, _, _ = abi.ENTRY_OUT.unpack_from(payload, place)
    attr = Attr._make(abi.ATTR.unpack_from(payload, place + abi.ENTRY_OUT.size))
    return Entry(nodeid, generation, entry_valid_s, attr_valid_s, attr)


def dirents(data: bytes, *, plus: bool) -> Iterator[Dirent]:
    """Take the answer to READDIR, or READDIRPLUS, apart (parse_dirfile, parse_dirplusfile in fs/fuse/readdir.c)."""
    place = 0
    while place < len(data):
        entry = read_entry(data, place) if plus else None
        place += abi.ENTRY_OUT.size + abi.ATTR.size if plus else 0
        ino, offset, length, kind = abi.DIRENT.unpack_from(data, place)
        place += abi.DIRENT.size
        name = data[place : place + length]
        if not name or b"/" in name or len(name) < length:
            raise ProtocolError(f"{name!r} cannot be a name")
        yield Dirent(name, ino, offset, kind, entry)
        place += -(-length // 8) * 8
