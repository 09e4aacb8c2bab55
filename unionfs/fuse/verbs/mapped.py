"""The dispatcher of a stack that maps owners: it differs in what it shows, and other stacks do not pay for it."""

from __future__ import annotations

import errno
import os
import stat

from unionfs import idmap
from unionfs.fuse.dispatch import Dispatcher
from unionfs.fuse.wire import replies
from unionfs.union.mutate import Caller
from unionfs.union.owners import MappedView

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.fuse.verbs.base import Reply
    from unionfs.fuse.wire.requests import Request
    from unionfs.union.nodes import AnyNode


class MappedDispatcher(Dispatcher):
    """Answers as a ``Dispatcher`` does, with the owners, modes and types that the view makes of the real ones."""

    #: The type of a regular file stays open, for it may stand for a device: readdir(3), DT_UNKNOWN.
    kinds = bytes(0 if kind == stat.S_IFREG >> 12 else kind for kind in range(256))

    def _attributes(self, node: AnyNode, state: os.stat_result) -> bytes:
        return super()._attributes(node, self.view.shown(node, state))

    def _setxattr(self, request: Request) -> Reply:
        """Take what the sandbox asks for its processes as a request; anything else is an attribute."""
        name, view = request.names[0], self.view
        assert isinstance(view, MappedView)
        if name not in (idmap.OWNER_REQUEST, idmap.NODE_REQUEST) or not view.owners.adapts:
            return super()._setxattr(request)
        try:
            self._own(request) if name == idmap.OWNER_REQUEST else self._make_node(request)
        except ValueError:
            return replies.error(request.unique, errno.EINVAL)
        return replies.ok(request.unique)

    def _own(self, request: Request) -> None:
        (uid, gid), _name = idmap.decode_request(bytes(request.data or b""), 2)
        self._edit().chown(self._node(request.nodeid), uid, gid)

    def _make_node(self, request: Request) -> None:
        (mode, number, uid, gid), name = idmap.decode_request(bytes(request.data or b""), 4)
        device = os.makedev(*replies.decode_dev(number))
        parent = self._directory(request.nodeid)
        if self.view.lookup(parent, name) is not None:
            raise OSError(errno.EEXIST, "")
        node, _state = self._edit().mknod(parent, name, mode, device, Caller(uid, gid))
        self.nodes.forget(node, 0)

    def _kind(self, node: AnyNode, state: os.stat_result) -> int:
        return super()._kind(node, self.view.shown(node, state))
