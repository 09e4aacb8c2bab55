"""Request in, verb on the union, reply out: the table of opcodes, and the only place where OSError becomes an errno.

A reply is the bytes to write, or a tuple of buffers, or ``Later``: work that may block and whose result is the reply.
This module does not know the device, the threads or the mount; the same dispatcher serves a kernel and a test.
"""

from __future__ import annotations

import errno

from unionfs.fuse import modes
from unionfs.fuse.verbs.attributes import AttributeVerbs
from unionfs.fuse.verbs.base import MAX_WRITE_BYTES
from unionfs.fuse.verbs.files import FileVerbs
from unionfs.fuse.verbs.names import NameVerbs
from unionfs.fuse.wire import abi, negotiate, replies, requests
from unionfs.syscalls import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from unionfs.fuse.modes import Mode
    from unionfs.fuse.openfiles import Backing
    from unionfs.fuse.verbs.base import Reply
    from unionfs.fuse.wire.requests import Request
    from unionfs.union.stack import Stack

    Handler = Callable[[Request], Reply]

_WANTED = (
    abi.INIT_ASYNC_READ
    | abi.INIT_EXPORT_SUPPORT
    | abi.INIT_BIG_WRITES
    | abi.INIT_DONT_MASK
    | abi.INIT_DO_READDIRPLUS
    | abi.INIT_ASYNC_DIO
    | abi.INIT_NO_OPENDIR_SUPPORT
    | abi.INIT_PARALLEL_DIROPS
    | abi.INIT_POSIX_ACL
    | abi.INIT_ABORT_ERROR
    | abi.INIT_MAX_PAGES
    | abi.INIT_CACHE_SYMLINKS
    | abi.INIT_EXPLICIT_INVAL_DATA
    | abi.INIT_HANDLE_KILLPRIV_V2
    | abi.INIT_SETXATTR_EXT
)


class Dispatcher(AttributeVerbs, NameVerbs, FileVerbs):
    """Answers the requests of one connection from one stack.

    The mode is the first of ``wanted`` that the kernel offers; ``backing`` registers files for passthrough.
    ``describe`` returns the bytes of the virtual attribute ``user.unionfs.NAME`` of the root, by which commands learn
    what is mounted.
    """

    def __init__(self, stack: Stack, wanted: Sequence[Mode] = (modes.OPENED,), backing: Backing | None = None) -> None:
        super().__init__(stack)
        self.decode = requests.decode
        self.counts = [0] * (max(requests.OPCODES) + 1)
        self.connected = False
        self.ended = False
        self._closing: dict[int, Request] = {}  # by node id, each RELEASE that is put off
        self._dropped: list[tuple[int, int]] = []  # node ids that the kernel has forgotten, and how many lookups
        self._late: list[bytes] = []
        self._wanted = wanted
        self._backing = backing
        self._handlers = self._table()

    def _table(self) -> dict[int, Handler]:
        offers = self.stack.config.offers
        names = {code: opcode.name.lower() for code, opcode in requests.OPCODES.items()}
        table: dict[int, Handler] = {
            code: getattr(self, "_" + name)
            for code, name in names.items()
            if hasattr(self, "_" + name) and name not in offers.absent
        }
        if not offers.attributes:
            table[abi.GETXATTR] = self._get_told
        return table

    def handle(self, request: Request) -> Reply:
        """Answer one request.

        Raises Pending when a copy-up must come first: then the request is to be handled again.
        """
        opcode = request.opcode
        handler = self._handlers.get(opcode)
        if handler is None:
            return replies.error(request.unique, errno.ENOSYS)
        self.counts[opcode] += 1
        if request.nodeid in self._closing:
            self._close_files()
        try:
            return handler(request)
        except OSError as error:
            return self.failure(request.unique, error)
        finally:
            self.asker = request.pid or self.asker  # 0: nobody asks for what is forgotten

    def failure(self, unique: int, error: OSError) -> bytes:
        """Return the reply for an operation that failed with ``error``."""
        return replies.error(unique, error.errno or errno.EIO)

    def _init(self, request: Request) -> Reply:
        offer = negotiate.Offer.from_args(request.args)
        mode = modes.choose(self._wanted, offer.flags)
        wanted = _WANTED | mode.flags
        if not self.stack.config.offers.acls:
            wanted &= ~abi.INIT_POSIX_ACL
        settings = negotiate.negotiate(offer, wanted, MAX_WRITE_BYTES, self._stack_depth())
        if isinstance(settings, negotiate.Settings):
            self.decode = requests.Decoder(setxattr_ext=settings.setxattr_ext).decode
            self.no_opendir = settings.no_opendir
            self.mode, self.files = mode, mode.files(self.stack, self._backing)
            self.connected = True
        return negotiate.init_reply(request.unique, settings)

    def _stack_depth(self) -> int:
        """Return how deeply stacked the file system may be that backs files (2 is the most that Linux has).

        Not more than needed: what stands on another overlay or FUSE leaves no room for one that is mounted on it.
        """
        upper = self.stack.upper
        stacked = (files.OVERLAYFS_MAGIC, files.FUSE_MAGIC)
        return 2 if upper is not None and files.filesystem_type(upper.root.fd) in stacked else 1

    def _destroy(self, request: Request) -> Reply:
        self.ended = True
        return replies.ok(request.unique)

    def _interrupt(self, request: Request) -> Reply:
        return None

    # -- what nobody waits for ---------------------------------------------------------------------------------------

    def tidy(self) -> list[bytes]:
        """Close files and give up nodes that the kernel has forgotten, and return what is to be answered to that.

        It takes longer than many a request, and the next one may be there already: so it is put off until nobody asks,
        or the same file is asked for again.
        """
        self._close_files()
        while self._dropped:
            self._drop(*self._dropped.pop())
        self.view.cache.trim()
        late, self._late = self._late, []
        return late

    def _release(self, request: Request) -> Reply:
        self._closing[request.nodeid] = request
        return None

    def _close_files(self) -> None:
        while self._closing:
            node_id, request = self._closing.popitem()
            try:
                self.files.release(self._file(node_id), request.args[1])
            except OSError as error:
                self._late.append(self.failure(request.unique, error))
            else:
                self._late.append(replies.ok(request.unique))

    def _forget(self, request: Request) -> Reply:
        self._dropped += requests.forgets(request)
        return None

    def _batch_forget(self, request: Request) -> Reply:
        return self._forget(request)

    def _drop(self, node_id: int, count: int) -> None:
        node = self.nodes.by_id.get(node_id)
        if node is None:
            return
        self.nodes.forget(node, count)
        if node.lookups <= 0:
            try:
                self.files.forget(node)
            except OSError:
                pass  # close(2) has closed it all the same, and there is nobody left to tell
