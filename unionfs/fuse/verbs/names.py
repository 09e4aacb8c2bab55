"""Names that come, go and move; and the listing of directories."""

from __future__ import annotations

import errno
import os

from unionfs.fuse.verbs.base import DT_DIR, Verbs
from unionfs.fuse.wire import abi, replies
from unionfs.union.listing import UNKNOWN_INO, offset_after
from unionfs.union.mutate import Caller
from unionfs.union.nodes import DirNode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.fuse.verbs.base import Reply
    from unionfs.fuse.wire.requests import Request
    from unionfs.union.listing import Run
    from unionfs.union.nodes import AnyNode

_NONE = b""
_DIRECTORIES = bytes((DT_DIR,))
_ALL = bytes(range(16))  # types of readdir(3)


class NameVerbs(Verbs):
    """What happens in a directory."""

    kinds = bytes(range(256))  # the type to tell for each that a listing has

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
        The kernel asks for all with their attributes. What is known of directories, which will be entered, it is told;
        what is known of files is for who has looked at some (``Lookers``).
        """
        node = self._directory(request.nodeid)
        buffer = replies.DirentBuffer(request.args[2], plus=plus)
        offset = request.args[1]
        if offset < 2:
            dots = (b".", b"..")[offset:]
            buffer.extend(dots, (DT_DIR, DT_DIR)[offset:], (node.ino, (node.parent or node).ino)[offset:], offset + 1)
        listing = self.view.listing(node)
        told = _NONE if not plus else _ALL if request.pid in self.lookers else _DIRECTORIES
        for run in listing.runs(listing.position(max(offset, 2))):
            if not self._add_run(buffer, node, run, told):
                break
        return replies.data(request.unique, buffer.payload)

    def _add_run(self, buffer: replies.DirentBuffer, node: DirNode, run: Run, told: bytes) -> bool:
        """Add rows of a listing, with attributes those whose types are in ``told``; False if not all of them fit."""
        first, names, kinds, inos = run
        shown = kinds.translate(self.kinds)
        apart: list[int] = []
        if not all(inos) or not all(names) or kinds.translate(None, told) != kinds:
            rows = enumerate(zip(names, kinds, inos, strict=True))
            known = node.children
            apart = [
                row
                for row, (name, kind, ino) in rows
                if not ino or not name or (kind in told and (name not in known or not _is_settled(known[name])))
            ]
        add = self._add_found if told else self._add_numbered
        start = 0
        for row in apart:
            between = slice(start, row)
            if row > start and not buffer.extend(
                names[between], shown[between], inos[between], offset_after(first + start)
            ):
                return False
            start = row + 1
            if not names[row]:
                continue
            try:
                fits = add(buffer, node, names[row], kinds[row], first + row)
            except PermissionError:  # who may read a directory and not search it, as of mode 0600, sees its names
                fits = self._add_name(buffer, names[row], kinds[row], inos[row] or UNKNOWN_INO, first + row)
            if not fits:
                return False
        return buffer.extend(names[start:], shown[start:], inos[start:], offset_after(first + start))

    def _add_numbered(
        self, buffer: replies.DirentBuffer, parent: DirNode, name: bytes, kind: int, position: int
    ) -> bool:
        """Add a name whose inode number only a lookup tells; False if it does not fit."""
        found = self.view.look_up_listed(parent, name, position)
        if found is None:
            return True
        self.nodes.forget(found, 0)
        return self._add_name(buffer, name, kind, found.ino, position)

    def _add_name(self, buffer: replies.DirentBuffer, name: bytes, kind: int, ino: int, position: int) -> bool:
        return buffer.extend((name,), (self.kinds[kind],), (ino,), offset_after(position))

    def _add_found(self, buffer: replies.DirentBuffer, parent: DirNode, name: bytes, kind: int, position: int) -> bool:
        """Add a name as a lookup finds it; False if it does not fit."""
        known = parent.children.get(name)
        if known is not None and _is_settled(known):
            return self._add_name(buffer, name, kind, known.ino, position)
        found = self.view.lookup(parent, name)
        if found is None:
            return True
        node, state = found
        if buffer.add(self._entry(node, state), node.ino, offset_after(position), self._kind(node, state), name):
            return True
        self.nodes.forget(node, 1)
        return False

    def _kind(self, node: AnyNode, state: os.stat_result) -> int:
        """Return the DT_* type of a file."""
        return state.st_mode >> 12


def _is_settled(node: AnyNode) -> bool:
    """Tell whether the kernel has looked a file up already, and nobody can have changed it since.

    Then it is not told once more: several processes that go through a tree at once all ask for everything.
    """
    return node.lookups > 0 and not node.owned
