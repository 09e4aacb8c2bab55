"""Encode what the server tells the kernel without having been asked: drop or replace what is cached.

Each function returns a complete message for `os.write`; only the data of `store` is written beside it. The write fails
with ENOENT when the kernel does not have the node or the name, which is no error: there was nothing to drop. Never send
one while a request on the same directory waits for this very thread: the kernel takes the directory's lock
(fuse_reverse_inval_entry in fs/fuse/dir.c). The same goes for `store` and a READ, which locks the pages.
"""

from __future__ import annotations

from unionfs.fuse.wire import abi


def inval_inode(nodeid: int, offset: int = 0, length: int = 0) -> bytes:
    """Drop the attributes of a node, and `length` bytes of its cached data from `offset` on.

    A `length` of 0 means to the end of the file; a negative `offset` spares the data altogether.
    """
    return _message(abi.NOTIFY_INVAL_INODE, abi.NOTIFY_INVAL_INODE_OUT.pack(nodeid, offset, length))


def inval_entry(parent: int, name: bytes, flags: int = 0) -> bytes:
    """Drop a name of a directory, be there such a file or not.

    With `flags` EXPIRE_ONLY (INIT_HAS_EXPIRE_ONLY) it is only looked up again, and what is mounted on it stays.
    """
    payload = abi.NOTIFY_INVAL_ENTRY_OUT.pack(parent, len(name), flags)
    return _message(abi.NOTIFY_INVAL_ENTRY, payload + name + b"\0")


def delete(parent: int, child: int, name: bytes) -> bytes:
    """Say that the node `child` has lost a name, as unlink(2) and rmdir(2) would: watchers are told (inotify(7))."""
    payload = abi.NOTIFY_DELETE_OUT.pack(parent, child, len(name))
    return _message(abi.NOTIFY_DELETE, payload + name + b"\0")


def store(nodeid: int, offset: int, length: int) -> bytes:
    """Put the `length` bytes that are written together with this into the cached pages of a node, from `offset` on."""
    return _message(abi.NOTIFY_STORE, abi.NOTIFY_STORE_OUT.pack(nodeid, offset, length), length)


def _message(code: int, payload: bytes, more: int = 0) -> bytes:
    return abi.OUT_HEADER.pack(abi.OUT_HEADER.size + len(payload) + more, code, 0) + payload
