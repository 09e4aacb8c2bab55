"""Every change to the merged tree: creation, removal, links, attributes. Renames are in ``rename``.

Each method brings what it needs into the writable layer, makes its change there in one atomic step where one is to be
had, and only then the table of nodes follows. Rights have been checked by the caller: this module changes what it is
told to, with the rights of its process.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import ondisk
from unionfs.layers.layer import Dir
from unionfs.policy import removal
from unionfs.syscalls import files
from unionfs.union import handles, inode_flags
from unionfs.union.listing import after_change
from unionfs.union.nodes import AnyNode, DirNode, Node, let_go

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from unionfs.layers.writable import WritableLayer
    from unionfs.union.copyup import CopyUp
    from unionfs.union.links import LinkIndex
    from unionfs.union.view import View

    Maker = Callable[[int, bytes], None]

_DEFAULT_ACL = "system.posix_acl_default"
_PERMISSIONS = 0o7777
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Caller:
    """On whose behalf something is created: owner of the new file, and the umask in force (0 where it is applied)."""

    __slots__ = ("gid", "uid", "umask")

    def __init__(self, uid: int, gid: int, umask: int = 0) -> None:
        self.uid = uid
        self.gid = gid
        self.umask = umask


def error(number: int, name: bytes = b"") -> OSError:
    """Return the OSError for ``number`` about ``name``."""
    return OSError(number, os.strerror(number), name)


class Mutations:
    """Creates, removes and changes what ``view`` shows, through ``copyup``."""

    __slots__ = ("copyup", "gid", "index", "uid", "upper", "view")

    def __init__(self, view: View, copyup: CopyUp) -> None:
        self.view = view
        self.copyup = copyup
        self.upper: WritableLayer = copyup.upper
        self.index: LinkIndex = copyup.index
        self.uid = os.geteuid()
        self.gid = os.getegid()

    # -- creation ----------------------------------------------------------------------------------------------------

    def create(self, parent: DirNode, name: bytes, mode: int, caller: Caller) -> tuple[Node, os.stat_result, int]:
        """Create a regular file; return its node, attributes and a descriptor open for reading and writing.

        Raises OSError.
        """
        opened: list[int] = []

        def make(directory: int, name: bytes) -> None:
            opened.append(os.open(name, _CREATE, made_mode, dir_fd=directory))

        made_mode = self._masked(parent, mode, caller)
        try:
            self._make(parent, name, made_mode | stat.S_IFREG, caller, make)
            state = after_change(parent.listing, lambda: os.fstat(opened[0]))
            return self._new_node(parent, name, state), state, opened[0]
        except OSError:
            for descriptor in opened:
                os.close(descriptor)
            raise

    def mknod(self, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller) -> tuple[Node, os.stat_result]:
        """Create a FIFO, socket, device or empty regular file; a whiteout is one to programs alone. Raises OSError."""
        rdev = ondisk.escape_device(mode, rdev)
        mode = self._masked(parent, mode, caller)
        self._make(parent, name, mode, caller, lambda at, new: os.mknod(new, mode, rdev, dir_fd=at))
        return self._created(parent, name)

    def symlink(self, parent: DirNode, name: bytes, target: bytes, caller: Caller) -> tuple[Node, os.stat_result]:
        """Create a symbolic link to ``target``. Raises OSError."""
        self._make(parent, name, stat.S_IFLNK | 0o777, caller, lambda at, new: os.symlink(target, new, dir_fd=at))
        return self._created(parent, name)

    def mkdir(self, parent: DirNode, name: bytes, mode: int, caller: Caller) -> tuple[DirNode, os.stat_result]:
        """Create a directory; over a whiteout it is made opaque first. Raises OSError."""
        mode = self._masked(parent, mode & _PERMISSIONS, caller)
        self._make(parent, name, mode | stat.S_IFDIR, caller, lambda at, new: os.mkdir(new, mode, dir_fd=at))
        assert parent.upper is not None
        node = DirNode(0, parent, name, 0)
        node.upper = self.upper.holder(parent.upper, name)
        node.lowers = ()
        state = after_change(parent.listing, lambda: self.view.stat(node))
        node.ino = self.view.ino(state)
        self._attach(node, parent, state)
        return node, state

    def tmpfile(self, parent: DirNode, mode: int, caller: Caller) -> tuple[Node, os.stat_result, int]:
        """Create a file without a name (open(2), O_TMPFILE); the node keeps a descriptor of it. Raises OSError."""
        inode_flags.refuse(self.view, parent, ondisk.IMMUTABLE)
        place = self.copyup.directory(parent)
        mode = self._masked(parent, mode, caller)
        descriptor = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=place.descriptor())
        node = Node(0, parent, b"", 0)
        try:
            self._own(descriptor, place.descriptor(), mode, caller)
            state = os.fstat(descriptor)
            node.ino, node.parent, node.descriptor = self.view.ino(state), None, os.dup(descriptor)
            self.view.nodes.identify_new(node)
            handles.attach(self.view, node)
        except OSError:
            os.close(descriptor)
            let_go(node)
            raise
        return node, state, descriptor

    def _make(self, parent: DirNode, name: bytes, mode: int, caller: Caller, make: Maker) -> None:
        """Let ``make`` create ``name``: in its place if that is right at once, otherwise in the workdir and then
        renamed.
        """
        self.may_create(parent, name)
        place = self.copyup.directory(parent).descriptor()
        covered = not self.upper.dialect.device_whiteouts and self.view.find_lower(parent, name) is not None
        if not covered and self._owns(caller):
            try:
                make(place, name)
                return
            except FileExistsError:
                if not self._is_whiteout(place, name):
                    raise
        self._make_staged(parent, place, name, mode, caller, make)

    def may_create(self, parent: DirNode, name: bytes) -> None:
        """Raise OSError (EPERM) where ``parent`` takes no new names, or not this one."""
        if ondisk.is_reserved_name(name):
            raise error(errno.EPERM, name)
        inode_flags.refuse(self.view, parent, ondisk.IMMUTABLE)

    def _make_staged(self, parent: DirNode, place: int, name: bytes, mode: int, caller: Caller, make: Maker) -> None:
        whiteout = self._is_whiteout(place, name)
        staged = self.upper.staging_name()
        work = self.upper.work
        if self._has_default_acl(parent):
            self._make_with_acl(place, lambda: make(work, staged))
        else:
            make(work, staged)
        try:
            self._inherit(place, staged, mode, caller)
            if stat.S_ISDIR(mode) and (whiteout or not self.upper.dialect.device_whiteouts):
                self.upper.mark_opaque(work, staged)
            self._publish_over(staged, place, name, directory=stat.S_ISDIR(mode), whiteout=whiteout)
        except OSError:
            self.upper.discard(staged)
            raise
        if not self.upper.dialect.device_whiteouts:
            self.upper.remove_whiteout(place, name)

    def _make_with_acl(self, place: int, make: Callable[[], None]) -> None:
        """Let the workdir, for one creation, hand down the default ACL of the file's own directory (acl(5))."""
        work = files.proc_path(self.upper.work)
        os.setxattr(work, _DEFAULT_ACL, os.getxattr(files.proc_path(place), _DEFAULT_ACL))
        try:
            make()
        finally:
            os.removexattr(work, _DEFAULT_ACL)

    def _publish_over(self, staged: bytes, place: int, name: bytes, *, directory: bool, whiteout: bool) -> None:
        """Rename a staged file to a name that has nothing or a whiteout."""
        if not whiteout:
            self.upper.publish(staged, place, name, files.RENAME_NOREPLACE)
        elif directory:
            self.upper.publish(staged, place, name, files.RENAME_EXCHANGE)
            self.upper.discard(staged)
        else:
            self.upper.publish(staged, place, name)

    def _inherit(self, place: int, staged: bytes, mode: int, caller: Caller) -> None:
        """Give a staged file the owner it would have got in the directory ``place`` (inode_init_owner
        in fs/inode.c).
        """
        parent = os.stat(place)
        gid = caller.gid
        if parent.st_mode & stat.S_ISGID:
            gid = parent.st_gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        os.chown(staged, caller.uid, gid, dir_fd=self.upper.work, follow_symlinks=False)
        if special := mode & (stat.S_ISUID | stat.S_ISGID):
            made = os.stat(staged, dir_fd=self.upper.work, follow_symlinks=False).st_mode
            files.fchmodat(self.upper.work, staged, made | special)

    def _owns(self, caller: Caller) -> bool:
        return caller.uid == self.uid and caller.gid == self.gid

    def _own(self, descriptor: int, place: int, mode: int, caller: Caller) -> None:
        """Give an open file without a name to ``caller``, in the group that the directory ``place`` hands down."""
        if self._owns(caller):
            return
        hands_down = os.stat(place).st_mode & stat.S_ISGID
        os.fchown(descriptor, caller.uid, -1 if hands_down else caller.gid)
        if special := mode & (stat.S_ISUID | stat.S_ISGID):
            os.fchmod(descriptor, os.fstat(descriptor).st_mode & _PERMISSIONS | special)

    def _masked(self, parent: DirNode, mode: int, caller: Caller) -> int:
        """Apply the umask, unless the directory's default ACL takes its place (acl(5))."""
        return mode if self._has_default_acl(parent) else mode & ~caller.umask

    def _has_default_acl(self, parent: DirNode) -> bool:
        if parent.default_acl is None:
            path = self.view.proc_path(parent)
            try:
                parent.default_acl = bool(os.getxattr(path, _DEFAULT_ACL, follow_symlinks=False))
            except OSError:
                parent.default_acl = False
        return parent.default_acl

    def shows_whiteout(self, parent: DirNode, name: bytes) -> bool:
        """Tell whether the writable layer has a device whiteout called ``name`` in ``parent``."""
        return parent.upper is not None and self._is_whiteout(parent.upper.descriptor(), name)

    def _is_whiteout(self, place: int, name: bytes) -> bool:
        """Tell whether a whiteout of any dialect stands at ``name`` itself."""
        try:
            state = os.stat(name, dir_fd=place, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISREG(state.st_mode):
            return not state.st_size and Dir(self.upper, None, b"", place).is_xattr_whiteout(name)
        return ondisk.is_whiteout(state.st_mode, state.st_rdev)

    def stage_program_whiteout(self) -> bytes:
        """Make in the workdir what a program sees as a whiteout; return its name there. Raises OSError."""
        staged = self.upper.staging_name()
        os.mknod(staged, stat.S_IFCHR, ondisk.escape_device(stat.S_IFCHR, 0), dir_fd=self.upper.work)
        return staged

    def list_program_whiteout(self, parent: DirNode, name: bytes) -> None:
        """Take note of what a rename has left behind. Raises OSError."""
        place = self.copyup.directory(parent).descriptor()
        state = after_change(parent.listing, lambda: os.stat(name, dir_fd=place, follow_symlinks=False))
        if parent.listing is not None:
            parent.listing.add(name, state.st_mode >> 12, self.view.ino(state))

    def adopt_whiteout(self, place: int, name: bytes) -> None:
        """Where a whiteout of another dialect stands at ``name``, write it in the layer's own. Raises OSError."""
        if not self._is_whiteout(place, name):
            return
        state = os.stat(name, dir_fd=place, follow_symlinks=False)
        if stat.S_ISREG(state.st_mode) or not self.upper.dialect.device_whiteouts:
            self.upper.rewrite_whiteout(place, name)

    def _created(self, parent: DirNode, name: bytes) -> tuple[Node, os.stat_result]:
        assert parent.upper is not None
        place = parent.upper.descriptor()
        state = after_change(parent.listing, lambda: os.stat(name, dir_fd=place, follow_symlinks=False))
        return self._new_node(parent, name, state), state

    def _new_node(self, parent: DirNode, name: bytes, state: os.stat_result) -> Node:
        node = Node(0, parent, name, self.view.ino(state))
        self._attach(node, parent, state)
        return node

    def _attach(self, node: AnyNode, parent: DirNode, state: os.stat_result) -> None:
        self.view.nodes.identify_new(node)
        if parent.listing is not None:
            parent.listing.add(node.name, state.st_mode >> 12, node.ino)
        handles.attach(self.view, node)

    # -- links -------------------------------------------------------------------------------------------------------

    def link(self, node: Node, parent: DirNode, name: bytes) -> os.stat_result:
        """Give ``node`` one more name; return its attributes. Raises OSError."""
        self.may_create(parent, name)
        self.change(node)
        self.index.settle(node)
        place = self.copyup.directory(parent).descriptor()
        if node.parent is not None and node.parent.impure:
            self.copyup.mark_impure(parent)
        try:
            self._link_to(node, place, name)
        except FileExistsError:
            if not self._is_whiteout(place, name):
                raise
            staged = self.upper.staging_name()
            self._link_to(node, self.upper.work, staged)
            self.upper.publish(staged, place, name)
        if not self.upper.dialect.device_whiteouts:
            self.upper.remove_whiteout(place, name)
        state = after_change(parent.listing, lambda: self._shared_by(node, parent, name))
        if parent.listing is not None:
            parent.listing.add(name, state.st_mode >> 12, node.ino)
        return state

    def _link_to(self, node: Node, place: int, name: bytes) -> None:
        if node.descriptor >= 0:
            files.link_descriptor(node.descriptor, place, name)
        else:
            directory, old = self.view.place(node)
            files.linkat(directory, old, place, name)

    def _shared_by(self, node: Node, parent: DirNode, name: bytes) -> os.stat_result:
        if node.descriptor >= 0:  # it had no name: this is its first, and its place from now on
            let_go(node)
            node.parent, node.name = parent, name
            parent.children[name] = node
            return self.view.stat(node)
        state = self.view.stat(node)
        self.view.nodes.share(node, (state.st_dev, state.st_ino))
        self.view.nodes.add_name(node, parent, name)
        return state

    # -- removal -----------------------------------------------------------------------------------------------------

    def unlink(self, parent: DirNode, name: bytes) -> None:
        """Remove a name that is no directory's; open files go on. Raises OSError."""
        node = self.child(parent, name)
        if isinstance(node, DirNode):
            raise error(errno.EISDIR, name)
        inode_flags.refuse_removal(self.view, parent, node)
        self.remove(parent, name, node)

    def rmdir(self, parent: DirNode, name: bytes) -> None:
        """Remove a directory that shows no names. Raises OSError (ENOTEMPTY, ENOTDIR, ENOENT)."""
        node = self.child(parent, name)
        if not isinstance(node, DirNode):
            raise error(errno.ENOTDIR, name)
        inode_flags.refuse_removal(self.view, parent, node)
        if not self.view.is_empty(node):
            raise error(errno.EPERM if inode_flags.keeps_names(parent) else errno.ENOTEMPTY, name)
        self.remove(parent, name, node)

    def child(self, parent: DirNode, name: bytes) -> AnyNode:
        """Return the node called ``name``. Raises FileNotFoundError."""
        node = parent.children.get(name)
        if node is not None:
            return node
        found = self.view.lookup(parent, name)
        if found is None:
            raise error(errno.ENOENT, name)
        return found[0]

    def remove(self, parent: DirNode, name: bytes, node: AnyNode) -> None:
        """Remove ``name``, known to be ``node`` and to be removable, leaving a whiteout if a lower layer has it too."""
        place = self.copyup.directory(parent).descriptor()
        in_upper = self.stands_in_upper(parent, name, node) or self.index.before_loss(node, parent, name)
        plan = removal(in_upper=in_upper, below=not in_upper or self.view.find_lower(parent, name) is not None)
        directory = isinstance(node, DirNode)
        self.keep_open(node, last=in_upper)
        try:
            if plan == "remove":
                self.upper.remove(place, name, is_directory=directory)
            elif plan == "replace":
                self.upper.replace_by_whiteout(place, name, is_directory=directory)
            else:
                self.upper.write_whiteout(place, name)
        except OSError:
            let_go(node)
            raise
        self.gone(parent, name, node, in_upper=in_upper)

    def stands_in_upper(self, parent: DirNode, name: bytes, node: AnyNode) -> bool:
        """Tell whether the writable layer itself has this name of ``node``, which an index entry alone does not make
        so.
        """
        if isinstance(node, DirNode):
            return node.upper is not None
        if not node.owned or node.home is None:
            return node.owned
        return parent.upper is not None and parent.upper.has(name) and not self.shows_whiteout(parent, name)

    def keep_open(self, node: AnyNode, *, last: bool) -> None:
        """Before a name goes: keep a descriptor of a file that somebody knows and that would otherwise
        be out of reach.
        """
        if not last or node.lookups <= 0 or node.descriptor >= 0:
            return
        directory, name = self.view.place(node)
        node.descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)

    def gone(self, parent: DirNode, name: bytes, node: AnyNode, *, in_upper: bool) -> None:
        """The layers no longer have ``name``: let the table, the listing and the index of links follow."""
        if parent.listing is not None:
            parent.listing.remove(name)
        others = self.view.nodes.drop_name(node, parent, name)
        if isinstance(node, DirNode):
            node.leave_layers()
            return
        self.index.name_gone(node, in_upper=in_upper)
        if not others and node.links is not None and node.descriptor >= 0 and not os.stat(node.descriptor).st_nlink:
            self.view.nodes.drop_id(node)
        if others:
            let_go(node)
        if node.lookups <= 0:
            self.view.nodes.forget(node, 0)

    # -- attributes --------------------------------------------------------------------------------------------------

    def change(self, node: AnyNode, *, truncate: bool = False, forbidding: int = ondisk.PROTECTED) -> None:
        """Bring ``node`` into the writable layer because it is about to change, which the inode flags ``forbidding``
        forbid.

        Raises OSError, and Pending if deferring.
        """
        if isinstance(node, DirNode):
            inode_flags.refuse(self.view, node, forbidding)
            if node.descriptor < 0:
                self.copyup.directory(node)
        else:
            self.copyup.file(node, truncate=truncate, forbidding=forbidding)

    def own(self, node: AnyNode, *, forbidding: int = ondisk.PROTECTED) -> None:
        """Bring the attributes of ``node`` into the writable layer, its data as well unless ``metacopy`` is on.

        Raises as :meth:`change` does.
        """
        if isinstance(node, DirNode):
            self.change(node, forbidding=forbidding)
        else:
            self.copyup.attributes(node, forbidding=forbidding)

    def target(self, node: AnyNode) -> tuple[int, bytes, bool]:
        """Return (directory descriptor, name, whether to follow it) for calls that change the file's attributes."""
        if node.descriptor >= 0:
            return files.AT_FDCWD, files.proc_path(node.descriptor), True
        return (*self.view.place(node), False)

    def chmod(self, node: AnyNode, mode: int) -> None:
        """Change the permission bits, set-id bits among them. Raises OSError."""
        self.own(node)
        directory, name, follow = self.target(node)
        if follow:
            os.chmod(name, mode & _PERMISSIONS)
        else:
            files.fchmodat(directory, name, mode)

    def chown(self, node: AnyNode, uid: int, gid: int) -> None:
        """Change owner and group (-1: leave as it is). Raises OSError."""
        self.own(node)
        directory, name, follow = self.target(node)
        os.chown(name, uid, gid, dir_fd=None if follow else directory, follow_symlinks=follow)

    def utimens(self, node: AnyNode, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
        """Set times, each (seconds, nanoseconds) or (0, UTIME_NOW or UTIME_OMIT). Raises OSError."""
        touched = atime == mtime == (0, files.UTIME_NOW)
        self.own(node, forbidding=ondisk.IMMUTABLE if touched else ondisk.PROTECTED)  # may_setattr in fs/attr.c
        directory, name, follow = self.target(node)
        files.utimensat(directory, name, atime, mtime, follow=follow)

    def truncate(self, node: Node, size: int, descriptor: int = -1) -> None:
        """Set the size in bytes; through ``descriptor`` if a writable one is open. Raises OSError."""
        self.change(node, truncate=size == 0)
        if descriptor >= 0:
            os.ftruncate(descriptor, size)
            return
        opened = self.view.open(node, os.O_WRONLY)
        try:
            os.ftruncate(opened, size)
        finally:
            os.close(opened)

    def setxattr(self, node: AnyNode, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; those of the layer format are stored under an escaped name. Raises OSError."""
        if name.startswith(ondisk.FUSE_OVERLAYFS_PREFIX):
            raise error(errno.EPERM, name)
        self.own(node)
        if isinstance(node, DirNode) and name == _DEFAULT_ACL.encode():
            node.default_acl = None
        os.setxattr(
            self.view.proc_path(node), ondisk.escape_attribute(name), value, flags, follow_symlinks=node.descriptor >= 0
        )

    def removexattr(self, node: AnyNode, name: bytes) -> None:
        """Remove an extended attribute; an ACL need not be there (acl(5)). Raises OSError (ENODATA)."""
        try:
            self.view.getxattr(node, name)
        except OSError as missing:
            if missing.errno == errno.ENODATA and name.startswith(b"system.posix_acl_"):
                return
            raise
        self.own(node)
        if isinstance(node, DirNode) and name == _DEFAULT_ACL.encode():
            node.default_acl = None
        os.removexattr(self.view.proc_path(node), ondisk.escape_attribute(name), follow_symlinks=node.descriptor >= 0)
