"""What all verbs share: the stack, the nodes behind the kernel's ids, and how an entry is encoded."""

from __future__ import annotations

import errno
import os
import stat
from mmap import MAP_ANONYMOUS, MAP_PRIVATE, mmap

from unionfs.fuse import modes
from unionfs.fuse.lookers import Lookers
from unionfs.fuse.openfiles import SET_ID_BITS
from unionfs.fuse.pipes import Pipes
from unionfs.fuse.wire import notify, replies
from unionfs.syscalls import files, process
from unionfs.union.nodes import ROOT_ID, AnyNode, DirNode, Node
from unionfs.union.pieces import devices_of_programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from unionfs.fuse.pipes import Piped
    from unionfs.fuse.wire.requests import Request
    from unionfs.union.mutate import Mutations
    from unionfs.union.stack import Stack

    Buffers: TypeAlias = tuple[bytes | memoryview, ...]
    Message: TypeAlias = bytes | Buffers | Piped
    Reply: TypeAlias = "Message | Later | None"

FOREVER_S = 1 << 31
_S_IFMT = 0o170000
MAX_WRITE_BYTES = 1 << 20
DT_DIR = 4
_LITTLE_BYTES = 1 << 20  # of unwritten data: a quick disk takes hardly longer for it than for a page


def untouched(size: int) -> mmap:
    """Return ``size`` bytes that begin with a page, for which none is taken before it is used.

    The kernel maps what it copies from or to page by page (fuse_copy_fill in fs/fuse/dev.c).
    """
    return mmap(-1, size, MAP_PRIVATE | MAP_ANONYMOUS)


class Later:
    """Work that may block: it returns the reply, or raises OSError.

    ``short`` work is done where requests are answered, as soon as nobody asks; any other in another thread. Work that
    ``asks`` the kernel for what takes further requests must not hold up the threads that these may need.
    """

    __slots__ = ("asks", "run", "short")

    def __init__(self, run: Callable[[], Message], *, short: bool = False, asks: bool = False) -> None:
        self.run = run
        self.short = short
        self.asks = asks


class Verbs:
    """The part of a dispatcher that knows its stack; a mixin each for attributes, names, directories and files."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.view = stack.view
        self.nodes = stack.view.nodes
        self.mode = modes.OPENED
        self.files = self.mode.files(stack, None)
        self.describe: Callable[[bytes], bytes | None] = lambda _name: None
        self.notify: Callable[[bytes | Buffers], None] = lambda _message: None
        self.no_opendir = False
        self.generation = int.from_bytes(os.urandom(4), "little") >> 1  # other mounts' file handles mean nothing here
        self.page = untouched(MAX_WRITE_BYTES)
        self.asker = 0  # the process that the request before this one came from
        self.pipes = Pipes()
        self.lookers = Lookers()

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
        generation = node.generation or self.generation
        if node.id == ROOT_ID:
            generation = 0  # the kernel made that inode, fuse_get_root_inode()
        attributes = self._attributes(node, state)
        return replies.entry(node.id, generation, FOREVER_S, self._validity_s(node, state), attributes)

    def _validity_s(self, node: AnyNode, state: os.stat_result) -> int:
        """Return for how many seconds the kernel may rely on attributes: not at all where it misses a change.

        A set-id file loses bits by a write, and without a new look execve(2) would go by the old ones (fuse_permission
        in fs/fuse/dir.c). A mapping through passthrough writes to the real file, whose times change.
        """
        mode = state.st_mode
        if mode & _S_IFMT != stat.S_IFREG:
            return FOREVER_S
        return 0 if mode & SET_ID_BITS or self.files.is_mapped(node) else FOREVER_S

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

    def _clear_set_ids(self, node: AnyNode, request: Request) -> None:
        """Take away what a write or a change of owner of who asks must not leave."""
        self.files.clear_set_ids(node, self._state(node), lambda group: _is_in_group(request, group))

    def _look_again(self, node: AnyNode) -> None:
        """Have the kernel ask for attributes that it still relies on."""
        self.notify(notify.inval_inode(node.id, offset=-1))

    def _sync_soon(self, request: Request, descriptor: int, sync: Callable[[int], None]) -> Later:
        """Return the work of a sync that is waited for here if little has to be written, the disk is quick, and nobody
        but who asks for it asks for anything.
        """
        unwritten = files.unwritten_bytes(descriptor)
        if unwritten is None or unwritten > _LITTLE_BYTES:
            return self._sync(request.unique, descriptor, sync)
        pace = self._edit().upper.pace
        alone = request.pid == self.asker
        return self._sync(request.unique, descriptor, lambda file: pace.wait(sync, file), short=alone and pace.quick)

    def _sync(self, unique: int, descriptor: int, sync: Callable[[int], None], *, short: bool = False) -> Later:
        """Return the work of one sync on ``descriptor``, which it closes."""

        def run() -> bytes:
            try:
                sync(descriptor)
            finally:
                os.close(descriptor)
            return replies.ok(unique)

        return Later(run, short=short)


def _is_in_group(request: Request, group: int) -> bool:
    """Tell whether who asks may keep a set-group-ID bit for ``group`` that is no permission to execute."""
    return request.uid == 0 or process.belongs(request.pid, request.gid, group)
