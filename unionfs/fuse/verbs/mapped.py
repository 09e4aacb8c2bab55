"""The dispatcher of a stack that maps owners: it differs in what it shows, and other stacks do not pay for it."""

from __future__ import annotations

import stat

from unionfs.fuse.dispatch import Dispatcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os

    from unionfs.fuse.wire import replies
    from unionfs.union.nodes import AnyNode, DirNode

_DT_UNKNOWN = 0
_DT_REG = stat.S_IFREG >> 12


class MappedDispatcher(Dispatcher):
    """Answers as a ``Dispatcher`` does, with the owners, modes and types that the view makes of the real ones."""

    def _attributes(self, node: AnyNode, state: os.stat_result) -> bytes:
        return super()._attributes(node, self.view.shown(node, state))

    def _add_plus(self, buffer: replies.DirentBuffer, parent: DirNode, name: bytes, offset: int) -> bool:
        found = self.view.lookup(parent, name)
        if found is None:
            return True
        node, state = found
        kind = self.view.shown(node, state).st_mode >> 12
        if buffer.add_plus(self._entry_payload(node, state), node.ino, offset, kind, name):
            node.lookups += 1
            return True
        self.nodes.forget(node, 0)
        return False

    def _add_plain(self, buffer: replies.DirentBuffer, parent: DirNode, name: bytes, offset: int) -> bool:
        """Leave the type of a regular file open, for it may stand for a device: readdir(3), DT_UNKNOWN."""
        kinds = self.view.listing(parent).kinds
        if kinds[offset - 3] == _DT_REG:
            kinds[offset - 3] = _DT_UNKNOWN
        return super()._add_plain(buffer, parent, name, offset)
