"""What all verbs share: the stack, the nodes behind the kernel's ids, and how an entry is encoded."""

from __future__ import annotations

import errno
import os
import stat

from unionfs.fuse.openfiles import SET_ID_BITS, OpenFiles
from unionfs.fuse.wire import replies
from unionfs.union.nodes import AnyNode, DirNode, Node
from unionfs.union.pieces import devices_of_programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from unionfs.union.mutate import Mutations
    from unionfs.union.stack import Stack

    Buffers: TypeAlias = tuple[bytes | memoryview, ...]
    Reply: TypeAlias = "bytes | Buffers | Later | None"

FOREVER_S = 1 << 31
MAX_WRITE_BYTES = 1 << 20
DT_DIR = 4


class Later:
    """Work that may block, to be run in another thread: it returns the reply, or raises OSError."""

    __slots__ = ("run",)

    def __init__(self, run: Callable[[], bytes | Buffers]) -> None:
        self.run = run


def validity_s(state: os.stat_result) -> int:
    """Return for how many seconds the kernel may rely on attributes.

    Those of a set-id file lose bits by a write, of which the kernel tells its cache nothing: without a new look,
    execve(2) would go by the old ones (fuse_permission in fs/fuse/dir.c).
    """
    return 0 if state.st_mode & SET_ID_BITS and stat.S_ISREG(state.st_mode) else FOREVER_S


class Verbs:
    """The part of a dispatcher that knows its stack; a mixin each for attributes, names, directories and files."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.view = stack.view
        self.nodes = stack.view.nodes
        self.files = OpenFiles(stack)
        self.describe: Callable[[bytes], bytes | None] = lambda _name: None
        self.no_opendir = False
        self.page = bytearray(MAX_WRITE_BYTES)

    def _directory(self, node_id: int) -> DirNode:
        node = self.nodes.by_id.get(node_id)
        if isinstance(node, DirNode):
            return node
        raise OSError(errno.ESTALE if node is None else errno.ENOTDIR, "")

    def _file(self, node_id: int) -> Node:
        node = self.nodes.by_id.get(node_id)
        if isinstance(node, Node):
            return node
        raise OSError(errno.ESTALE if node is None else errno.EISDIR, "")

    def _node(self, node_id: int) -> AnyNode:
        node = self.nodes.by_id.get(node_id)
        if node is None:
            raise OSError(errno.ESTALE, "")
        return node

    def _edit(self) -> Mutations:
        return self.stack.writable()

    def _entry(self, node: AnyNode, state: os.stat_result) -> bytes:
        """Return the entry for ``node``, counted as one more lookup by the kernel."""
        node.lookups += 1
        return self._entry_payload(node, state)

    def _entry_payload(self, node: AnyNode, state: os.stat_result) -> bytes:
        return replies.entry(node.id, 0, FOREVER_S, validity_s(state), self._attributes(node, state))

    def _attributes(self, node: AnyNode, state: os.stat_result) -> bytes:
        if state.st_rdev:
            state = devices_of_programs(state)
        return replies.attributes(state, node.ino, self.view.links(node, state), state.st_uid, state.st_gid)

    def _state(self, node: AnyNode) -> os.stat_result:
        if isinstance(node, Node) and node.opened is not None and node.data is None:
            descriptor = self.files.descriptor(node)
            if descriptor >= 0:
                return os.stat(descriptor)
        return self.view.stat(node)

    def _clear_set_ids(self, node: AnyNode) -> None:
        """Take away what a write or a change of owner must not leave (setattr_should_drop_suidgid in fs/attr.c)."""
        mode = self.view.shown(node, self._state(node)).st_mode
        drop = mode & stat.S_ISUID | (mode & stat.S_ISGID if mode & stat.S_IXGRP else 0)
        if drop and not stat.S_ISDIR(mode):
            self._edit().chmod(node, mode & ~drop)

    def _sync(self, unique: int, descriptor: int, sync: Callable[[int], None]) -> Later:
        """Return the work of one sync on ``descriptor``, which it closes."""

        def run() -> bytes:
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)
            return replies.ok(unique)

        return Later(run)
