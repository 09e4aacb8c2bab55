"""Names that come, go and move; and the listing of directories."""

from __future__ import annotations

import errno
import os

from unionfs.fuse.verbs.base import DT_DIR, Verbs
from unionfs.fuse.wire import abi, replies
from unionfs.union.listing import offset_after
from unionfs.union.mutate import Caller
from unionfs.union.nodes import DirNode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.fuse.verbs.base import Reply
    from unionfs.fuse.wire.requests import Request
    from unionfs.union.nodes import AnyNode


class NameVerbs(Verbs):
    """What happens in a directory."""

    kinds = bytes(range(16))  # the type to tell for each that a listing has

    def _mknod(self, request: Request) -> Reply:
        mode, rdev, umask = request.args
        device = os.makedev(*replies.decode_dev(rdev))
        caller = Caller(request.uid, request.gid, umask)
        made = self._edit().mknod(self._directory(request.nodeid), request.names[0], mode, device, caller)
        return replies.data(request.unique, self._entry(*made))

    def _mkdir(self, request: Request) -> Reply:
        mode, umask = request.args
        caller = Caller(request.uid, request.gid, umask)
        made = self._edit().mkdir(self._directory(request.nodeid), request.names[0], mode, caller)
        return replies.data(request.unique, self._entry(*made))

    def _symlink(self, request: Request) -> Reply:
        name, target = request.names
        caller = Caller(request.uid, request.gid)
        made = self._edit().symlink(self._directory(request.nodeid), name, target, caller)
        return replies.data(request.unique, self._entry(*made))

    def _link(self, request: Request) -> Reply:
        node = self._file(request.args[0])
        state = self._edit().link(node, self._directory(request.nodeid), request.names[0])
        return replies.data(request.unique, self._entry(node, state))

    def _unlink(self, request: Request) -> Reply:
        self._edit().unlink(self._directory(request.nodeid), request.names[0])
        return replies.ok(request.unique)

    def _rmdir(self, request: Request) -> Reply:
        self._edit().rmdir(self._directory(request.nodeid), request.names[0])
        return replies.ok(request.unique)

    def _rename(self, request: Request) -> Reply:
        return self._move(request, 0)

    def _rename2(self, request: Request) -> Reply:
        return self._move(request, request.args[1])

    def _move(self, request: Request, flags: int) -> Reply:
        self._edit()
        assert self.stack.renames is not None
        old, new = request.names
        source, target = self._directory(request.nodeid), self._directory(request.args[0])
        self.stack.renames.rename((source, old), (target, new), flags)
        return replies.ok(request.unique)

    def _opendir(self, request: Request) -> Reply:
        if self.no_opendir:
            return replies.error(request.unique, errno.ENOSYS)
        return replies.data(request.unique, replies.opened(0, abi.FOPEN_CACHE_DIR | abi.FOPEN_KEEP_CACHE))

    def _releasedir(self, request: Request) -> Reply:
        return replies.ok(request.unique)

    def _fsyncdir(self, request: Request) -> Reply:
        node = self._directory(request.nodeid)
        if node.upper is None or self.stack.config.volatile:
            return replies.ok(request.unique)
        return self._sync_soon(request, os.dup(node.upper.descriptor()), os.fsync)

    def _readdir(self, request: Request) -> Reply:
        return self._list(request, plus=False)

    def _readdirplus(self, request: Request) -> Reply:
        return self._list(request, plus=True)

    def _list(self, request: Request, *, plus: bool) -> Reply:
        """Fill one buffer.

        Offsets 0 to 2 are those of ``.`` and ``..``, the listing has the others; each entry names the next one.
        The kernel asks for attributes at the start of every directory, and later on where it was asked for them
        itself (fuse_use_readdirplus in fs/fuse/readdir.c); at the start, those of files are for who wants them.
        """
        node = self._directory(request.nodeid)
        buffer = replies.DirentBuffer(request.args[2])
        offset = request.args[1]
        files_too = plus and request.pid in self.lookers
        no_entry = replies.NO_ENTRY if plus else b""
        if offset < 2:
            parent = node.parent or node
            for position, (ino, dots) in enumerate(((node.ino, b"."), (parent.ino, b".."))):
                if position >= offset:
                    buffer.add(no_entry, ino, position + 1, DT_DIR, dots)
            offset = 2
        listing = self.view.listing(node)
        for position, name, kind, ino in listing.entries(listing.position(offset)):
            if plus and (files_too or kind == DT_DIR or not ino):
                fits = self._add_found(buffer, node, name, kind, position)
            else:
                number = ino or self._number(node, name, position)
                fits = not number or buffer.add(no_entry, number, offset_after(position), self.kinds[kind], name)
            if not fits:
                break
        return replies.data(request.unique, buffer.payload)

    def _add_found(self, buffer: replies.DirentBuffer, parent: DirNode, name: bytes, kind: int, position: int) -> bool:
        """Add a name as a lookup finds it; False if it does not fit.

        What the kernel has looked up already, and nobody can have changed since, it is not told once more: several
        processes that go through a tree at once all ask for everything.
        """
        known = parent.children.get(name)
        if known is not None and known.lookups > 0 and not known.owned:
            return buffer.add(replies.NO_ENTRY, known.ino, offset_after(position), self.kinds[kind], name)
        found = self.view.lookup(parent, name)
        if found is None:
            return True
        node, state = found
        if buffer.add(self._entry(node, state), node.ino, offset_after(position), self._kind(node, state), name):
            return True
        self.nodes.forget(node, 1)
        return False

    def _number(self, parent: DirNode, name: bytes, position: int) -> int:
        """Return the inode number that only a lookup tells, 0 if the name is gone."""
        found = self.view.look_up_listed(parent, name, position)
        if found is None:
            return 0
        self.nodes.forget(found, 0)
        return found.ino

    def _kind(self, node: AnyNode, state: os.stat_result) -> int:
        """Return the DT_* type of a file."""
        return state.st_mode >> 12
