"""Lookup, attributes, extended attributes."""

from __future__ import annotations

import errno
import os
import stat

from unionfs.fuse.verbs.base import FOREVER_S, Verbs
from unionfs.fuse.wire import abi, notify, replies
from unionfs.syscalls import files
from unionfs.union.handles import recall
from unionfs.union.nodes import LACKS_ATTRIBUTES, LACKS_CAPABILITY, LACKS_NOTHING, AnyNode, Node
from unionfs.union.pieces import devices_of_programs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.fuse.verbs.base import Reply
    from unionfs.fuse.wire.requests import Request
    from unionfs.union.listing import Listing
    from unionfs.union.nodes import DirNode

_NEGATIVE = replies.negative_entry(FOREVER_S)
CAPABILITY = b"security.capability"
#: What a file system lists if a file has it; some of other namespaces can be had all the same, see xattr(7).
_LISTED = (b"user.", b"security.", b"trusted.", b"system.posix_acl_")
_LARGE_LISTING = 512
_KEEP = (0, files.UTIME_OMIT)
_NOW = (0, files.UTIME_NOW)
#: What a kernel that keeps times (mode write-back) tells of them: fuse_flush_times in fs/fuse/inode.c.
_KEPT_TIMES = abi.FATTR_MTIME | abi.FATTR_CTIME


class AttributeVerbs(Verbs):
    """What the kernel asks about one file by its name or id."""

    def _lookup(self, request: Request) -> Reply:
        name = request.names[0]
        if name == b"." or name == b"..":
            return self._lookup_dots(request, name)
        parent = self._directory(request.nodeid)
        found = self.view.lookup(parent, name)
        if found is None:
            return replies.data(request.unique, _NEGATIVE)
        if parent.listing is not None and not found[0].is_directory and request.pid not in self.lookers:
            self._note_looker(request.pid, parent, parent.listing)
        return replies.data(request.unique, self._entry(*found))

    def _note_looker(self, pid: int, parent: DirNode, listing: Listing) -> None:
        """Remember who looks at files in a directory that was listed: what he lists next comes with attributes.

        That is the rest of this directory as well if it is a large one: the kernel may know its names already, and
        would ask for each file.
        """
        self.lookers.add(pid)
        if listing.read_so_far() > _LARGE_LISTING:
            self.notify(notify.inval_inode(parent.id))

    def _lookup_dots(self, request: Request, name: bytes) -> Reply:
        """File handles ask for a node by its id alone (INIT_EXPORT_SUPPORT), also if it was forgotten."""
        node = recall(self.view, request.nodeid)
        if node.parent is None and node is not self.nodes.root:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        if name == b"..":
            node = node.parent or self.nodes.root
        return replies.data(request.unique, self._entry(node, self._state(node)))

    def _getattr(self, request: Request) -> Reply:
        node = self._node(request.nodeid)
        return self._attr(request.unique, node, self._state(node))

    def _statx(self, request: Request) -> Reply:
        node = self._node(request.nodeid)
        state = devices_of_programs(self.view.shown(node, self._state(node)))
        place = (node.descriptor, b"") if node.descriptor >= 0 else self.view.place(node)
        extended = files.statx(*place)
        btime = extended.btime[0] * 10**9 + extended.btime[1] if extended.mask & files.STATX_BTIME else None
        links = self.view.links(node, state)
        payload = replies.statx(
            self._validity_s(node, state), state, node.ino, links, state.st_uid, state.st_gid, btime_ns=btime
        )
        return replies.data(request.unique, payload)

    def _setattr(self, request: Request) -> Reply:
        node = self._node(request.nodeid)
        valid, _fh, size, _owner, atime, mtime, _ctime, atime_ns, mtime_ns, _ctime_ns, mode, uid, gid = request.args
        edit = self._edit()
        if valid & abi.FATTR_SIZE and isinstance(node, Node):
            edit.change(node, truncate=size == 0)
            edit.truncate(node, size, self.files.descriptor(node))
        if valid & (abi.FATTR_UID | abi.FATTR_GID):
            edit.chown(node, uid if valid & abi.FATTR_UID else -1, gid if valid & abi.FATTR_GID else -1)
        if valid & abi.FATTR_MODE:
            edit.chmod(node, mode)
        elif valid & abi.FATTR_KILL_SUIDGID:
            self._clear_set_ids(node, request)
        if valid & (abi.FATTR_ATIME | abi.FATTR_MTIME):
            self._set_times(node, valid, (atime, atime_ns), (mtime, mtime_ns))
        return self._attr(request.unique, node, self._state(node))

    def _set_times(self, node: AnyNode, valid: int, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        """Set the times that are meant.

        A kernel that keeps times tells of a new ctime, as after unlink(2), with the mtime that the file already has:
        then there is nothing to be set, and no lower file to be copied.
        """
        if valid & ~abi.FATTR_FH == _KEPT_TIMES and self._state(node).st_mtime_ns == mtime[0] * 10**9 + mtime[1]:
            return
        accessed = _time(valid, abi.FATTR_ATIME, abi.FATTR_ATIME_NOW, atime)
        modified = _time(valid, abi.FATTR_MTIME, abi.FATTR_MTIME_NOW, mtime)
        self._edit().utimens(node, accessed, modified)

    def _attr(self, unique: int, node: AnyNode, state: os.stat_result) -> bytes:
        return replies.data(unique, replies.attr(self._validity_s(node, state), self._attributes(node, state)))

    def _readlink(self, request: Request) -> Reply:
        return replies.data(request.unique, self.view.readlink(self._file(request.nodeid)))

    def _statfs(self, request: Request) -> Reply:
        return replies.data(request.unique, replies.statfs(self.view.statfs()))

    def _getxattr(self, request: Request) -> Reply:
        name, node, value = request.names[0], self._node(request.nodeid), self._told(request)
        if value is None:
            if self._lacks(node, name):
                return replies.error(request.unique, errno.ENODATA)
            value = self.view.getxattr(node, name)
        return _sized(request.unique, value, request.args[0])

    def _get_told(self, request: Request) -> Reply:
        """GETXATTR of a mount that has no attributes."""
        value = self._told(request)
        if value is None:
            raise OSError(errno.EOPNOTSUPP, "")
        return _sized(request.unique, value, request.args[0])

    def _told(self, request: Request) -> bytes | None:
        """Return what commands ask of the root about the mount itself, None for any other attribute."""
        name = request.names[0]
        if request.nodeid != abi.ROOT_ID or not name.startswith(b"user.unionfs."):
            return None
        return self.describe(name[13:])

    def _lacks(self, node: AnyNode, name: bytes) -> bool:
        """Tell whether a file has no attribute ``name``, mostly from memory, False where its list does not tell.

        The kernel asks for a capability before each first write and change of owner (cap_inode_need_killpriv), who
        compares trees of each file, and ls(1) for an ACL and a label, whether there is one or not.
        """
        if not isinstance(node, Node) or not name.startswith(_LISTED):
            return False
        if node.lacks == LACKS_ATTRIBUTES or (node.lacks == LACKS_CAPABILITY and name == CAPABILITY):
            return True
        return name not in self._names_of_attributes(node)

    def _listxattr(self, request: Request) -> Reply:
        names = self._names_of_attributes(self._node(request.nodeid))
        if request.uid:  # xattr(7): only who has CAP_SYS_ADMIN sees them
            names = [name for name in names if not name.startswith(b"trusted.")]
        return _sized(request.unique, b"".join(name + b"\0" for name in names), request.args[0])

    def _names_of_attributes(self, node: AnyNode) -> list[bytes]:
        if not isinstance(node, Node):
            return self.view.listxattr(node)
        if node.lacks == LACKS_ATTRIBUTES:
            return []
        names = self.view.listxattr(node)
        if CAPABILITY not in names:
            node.lacks = LACKS_CAPABILITY if names else LACKS_ATTRIBUTES
        return names

    def _setxattr(self, request: Request) -> Reply:
        node, name = self._node(request.nodeid), request.names[0]
        assert request.data is not None
        edit = self._edit()
        if isinstance(node, Node):
            node.lacks = LACKS_NOTHING
        edit.setxattr(node, name, bytes(request.data), request.args[1])
        if len(request.args) > 2 and request.args[2] & abi.SETXATTR_ACL_KILL_SGID:
            edit.chmod(node, self.view.shown(node, self._state(node)).st_mode & ~stat.S_ISGID)
        return replies.ok(request.unique)

    def _removexattr(self, request: Request) -> Reply:
        self._edit().removexattr(self._node(request.nodeid), request.names[0])
        return replies.ok(request.unique)


def _time(valid: int, given: int, now: int, value: tuple[int, int]) -> tuple[int, int]:
    if valid & now:
        return _NOW
    return value if valid & given else _KEEP


def _sized(unique: int, value: bytes, size: int) -> bytes:
    """Answer GETXATTR or LISTXATTR: how long the value is, or the value if it fits (getxattr(2))."""
    if size == 0:
        return replies.data(unique, replies.xattr_size(len(value)))
    if len(value) > size:
        return replies.error(unique, errno.ERANGE)
    return replies.data(unique, value)
