"""Changes in a stack that maps owners: copies keep the owner that they show, new files get the one that is asked for.

What cannot be given really is remembered (``owners``). Rights have been checked by the caller, as for ``mutate``.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import idmap, ondisk
from unionfs.idmap import KEEP, IdMap, Override
from unionfs.syscalls import files
from unionfs.union.copyup import CopyUp
from unionfs.union.mutate import Caller, Mutations, error
from unionfs.union.nodes import DirNode
from unionfs.union.owners import MappedView, opened, read, replaced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.layers.writable import WritableLayer
    from unionfs.union.links import LinkIndex
    from unionfs.union.mutate import Maker
    from unionfs.union.nodes import AnyNode, Node
    from unionfs.union.view import View

_REFUSED = (errno.EPERM, errno.EINVAL)
_RWX = 0o777
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)


def mutations(view: View, upper: WritableLayer, index: LinkIndex) -> Mutations:
    """Return what changes the stack that ``view``, which is mapped, shows."""
    assert isinstance(view, MappedView)
    return MappedMutations(view, MappedCopyUp(view, upper, index))


class MappedCopyUp(CopyUp):
    """A copy-up that gives its copies the owners by which the originals are shown."""

    __slots__ = ("mapped", "owners")

    def __init__(self, view: MappedView, upper: WritableLayer, index: LinkIndex) -> None:
        super().__init__(view, upper, index)
        self.mapped = view
        self.owners = view.owners

    def wanted(self, node: AnyNode, state: os.stat_result) -> os.stat_result:
        """Return the attributes to store for the copy of ``node``."""
        kept = self.mapped.on_disk(node, state)
        if kept is not state:  # remembered ids mean the same in all layers
            return kept
        below, here = self.mapped.rules(node, state), self.owners.ownership
        uid, gid = _carried(state.st_uid, below.uids, here.uids), _carried(state.st_gid, below.gids, here.gids)
        return replaced(state, state.st_mode, uid, gid)

    def settle(self, target: int, state: os.stat_result) -> None:
        """Give the open copy ``target`` owner, mode and times of ``state``. Raises OSError."""
        self.owners.forget(files.proc_path(target), follow=True)
        self.owners.give((target, b""), state.st_uid, state.st_gid, state.st_mode, state.st_rdev)
        os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))

    def make_special(self, staged: bytes, state: os.stat_result) -> None:
        """Make the copy of a FIFO, socket or device, or a file that stands for the device. Raises OSError."""
        try:
            super().make_special(staged, state)
        except PermissionError:
            if self.owners.ownership.attribute is None or stat.S_IFMT(state.st_mode) not in _DEVICES:
                raise
            os.mknod(staged, stat.S_IFREG | 0o600, dir_fd=self.upper.work)

    def settle_special(self, staged: bytes, state: os.stat_result) -> None:
        """Give the copy ``staged`` owner and mode of ``state``. Raises OSError."""
        self.owners.give((self.upper.work, staged), state.st_uid, state.st_gid, state.st_mode, state.st_rdev)


def _carried(disk: int, below: IdMap, here: IdMap) -> int:
    """Return the id to store in the writable layer for the id ``disk`` of a lower one."""
    if here.squash != KEEP:
        return disk
    shown = below.find(disk)
    if shown is None and below.missing != idmap.OVERFLOW_ID:  # somebody who exists stands in for the owner
        shown = below.missing
    stored = None if shown is None else here.to_disk(shown)
    return disk if stored is None else stored


class MappedMutations(Mutations):
    """Mutations that map the owners which programs name."""

    __slots__ = ("_rdev", "mapped", "owners")

    def __init__(self, view: MappedView, copyup: CopyUp) -> None:
        super().__init__(view, copyup)
        self.mapped = view
        self.owners = view.owners
        self._rdev = 0  # of the device that is being made

    # -- creation ----------------------------------------------------------------------------------------------------

    def mknod(self, parent: DirNode, name: bytes, mode: int, rdev: int, caller: Caller) -> tuple[Node, os.stat_result]:
        """Create a FIFO, socket, empty regular file or device, which may have to be remembered. Raises OSError."""
        self._rdev = ondisk.escape_device(mode, rdev)
        try:
            return super().mknod(parent, name, mode, rdev, caller)
        finally:
            self._rdev = 0

    def tmpfile(self, parent: DirNode, mode: int, caller: Caller) -> tuple[Node, os.stat_result, int]:
        """Create a file without a name. Raises OSError."""
        return super().tmpfile(parent, mode, self.owners.caller(caller))

    def _make(self, parent: DirNode, name: bytes, mode: int, caller: Caller, make: Maker) -> None:
        caller = self.owners.caller(caller)
        if not (self.owners.always or stat.S_IFMT(mode) in _DEVICES):
            super()._make(parent, name, mode, caller, make)
            return
        self.may_create(parent, name)
        place = self.copyup.directory(parent).descriptor()
        self._make_staged(parent, place, name, mode, caller, self._or_file(mode, make))

    def _or_file(self, mode: int, make: Maker) -> Maker:
        """Return ``make``, or what makes an empty file for a device that may not be made, or not be remembered."""
        attribute = self.owners.ownership.attribute
        if stat.S_IFMT(mode) not in _DEVICES or attribute is None:
            return make

        def attempt(directory: int, name: bytes) -> None:
            try:
                if self.owners.always and attribute != idmap.PRIVILEGED_OVERRIDE:
                    raise PermissionError
                make(directory, name)
            except PermissionError:
                os.mknod(name, stat.S_IFREG | 0o600, dir_fd=directory)

        return attempt

    def _inherit(self, place: int, staged: bytes, mode: int, caller: Caller) -> None:
        parent = self.owners.on_disk(files.proc_path(place), self.upper, os.stat(place), follow=True)
        gid = caller.gid
        if parent.st_mode & stat.S_ISGID:
            gid = parent.st_gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        made = os.stat(staged, dir_fd=self.upper.work, follow_symlinks=False).st_mode
        if stat.S_IFMT(made) == stat.S_IFMT(mode):  # its permissions may come from a default ACL: acl(5)
            mode = made | mode & (stat.S_ISUID | stat.S_ISGID)
        self.owners.give((self.upper.work, staged), caller.uid, gid, mode, self._rdev)

    def stage_program_whiteout(self) -> bytes:
        """Make in the workdir what a program sees as a whiteout; return its name there. Raises OSError."""
        attribute = self.owners.ownership.attribute
        try:
            return super().stage_program_whiteout()
        except PermissionError:
            if attribute is None:
                raise
        staged, mode = self.upper.staging_name(), stat.S_IFCHR
        os.mknod(staged, stat.S_IFREG | 0o600, dir_fd=self.upper.work)
        try:
            self.owners.give((self.upper.work, staged), self.uid, self.gid, mode, ondisk.escape_device(mode, 0))
        except OSError:
            self.upper.discard(staged)
            raise
        return staged

    def _own(self, descriptor: int, place: int, mode: int, caller: Caller) -> None:
        try:
            super()._own(descriptor, place, mode, caller)
        except OSError as problem:
            if problem.errno not in _REFUSED or not self._lenient:
                raise
        if self.owners.always:
            state = os.fstat(descriptor)
            self.owners.give((descriptor, b""), caller.uid, state.st_gid, state.st_mode)

    @property
    def _lenient(self) -> bool:
        """Whether a change of owner that cannot be made is no error."""
        return self.owners.ownership.attribute is not None or self.owners.ownership.squashes

    # -- attributes --------------------------------------------------------------------------------------------------

    def chown(self, node: AnyNode, uid: int, gid: int) -> None:
        """Change owner and group (-1: leave as it is), or remember them. Raises OSError."""
        uid, gid = self.owners.stored(uid, gid)
        self.own(node)
        kept = self._remembered(node)
        if kept is not None and self._remember(node, _given(kept, uid, gid)):
            return
        try:
            super().chown(node, uid, gid)
        except OSError as problem:
            if problem.errno not in _REFUSED or not self._lenient:
                raise
            if kept is None:
                self._remember(node, _given(self._real(node), uid, gid))

    def chmod(self, node: AnyNode, mode: int) -> None:
        """Change the permission bits, set-id bits among them. Raises OSError."""
        self.own(node)
        kept = self._remembered(node)
        if kept is None or not self._remember(node, kept._replace(mode=stat.S_IFMT(kept.mode) | stat.S_IMODE(mode))):
            super().chmod(node, mode)

    def _remembered(self, node: AnyNode) -> Override | None:
        """Return what stands in the attribute of ``node``, or must from now on; None where the real owner counts."""
        found = self.mapped.remembered(node)
        if found is None and self.owners.always:
            return self._real(node)
        return found

    def _real(self, node: AnyNode) -> Override:
        state = self.view.stat(node)
        return Override(state.st_uid, state.st_gid, state.st_mode, state.st_rdev)

    def _remember(self, node: AnyNode, override: Override) -> bool:
        if not self.owners.remember(self.view.proc_path(node), override, follow=node.descriptor >= 0):
            return False
        self.owners.open_up(self._place(node), override.mode)
        return True

    def _place(self, node: AnyNode) -> tuple[int, bytes]:
        return (node.descriptor, b"") if node.descriptor >= 0 else self.view.place(node)

    # -- extended attributes -----------------------------------------------------------------------------------------

    def setxattr(self, node: AnyNode, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute, ids in it mapped, under another name if it takes a privilege. Raises OSError."""
        ownership = self.owners.ownership
        if ownership.attribute is not None and idmap.show_attribute(name) != name:
            raise error(errno.EPERM, name)
        if name in idmap.ACLS:
            value = idmap.map_acl(value, ownership.uids.to_disk, ownership.gids.to_disk)
            self._set_acl(node, name, value, flags)
            return
        stored = idmap.store_attribute(name)
        if stored == name or ownership.attribute != idmap.CONTAINERS_OVERRIDE:
            super().setxattr(node, name, value, flags)
            return
        if not self.owners.always:
            try:
                super().setxattr(node, name, value, flags)
                return
            except PermissionError:
                pass  # it takes a privilege that this process does not have
        super().setxattr(node, stored, value, flags)

    def _set_acl(self, node: AnyNode, name: bytes, value: bytes, flags: int) -> None:
        """Set an ACL, and let the permission bits that are remembered follow it (acl(5)); if they cannot, it is as it
        was.
        """
        self.own(node)
        bits = idmap.mode_of_acl(value) if name == idmap.ACCESS_ACL else None
        kept = None if bits is None else self.mapped.remembered(node)
        if bits is None or kept is None:
            super().setxattr(node, name, value, flags)
            return
        wanted = kept._replace(mode=kept.mode & ~_RWX | bits)
        path, follow = self.view.proc_path(node), node.descriptor >= 0
        before = read(path, name, follow=follow)
        super().setxattr(node, name, idmap.acl_with_mode(value, opened(wanted.mode)), flags)
        try:
            self.owners.remember(path, wanted, follow=follow)
        except OSError:
            if before is None:
                os.removexattr(path, name, follow_symlinks=follow)
                self.owners.open_up(self._place(node), kept.mode)
            else:
                os.setxattr(path, name, before, follow_symlinks=follow)
            raise

    def removexattr(self, node: AnyNode, name: bytes) -> None:
        """Remove an extended attribute. Raises OSError (ENODATA)."""
        self.view.getxattr(node, name)
        self.own(node)
        stored = idmap.store_attribute(name)
        if stored != name and self.owners.ownership.attribute is not None:
            try:
                os.removexattr(self.view.proc_path(node), stored, follow_symlinks=node.descriptor >= 0)
                return
            except OSError as problem:
                if problem.errno not in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
                    raise
        super().removexattr(node, name)


def _given(kept: Override, uid: int, gid: int) -> Override:
    """Return what a change of owner makes of ``kept``: set-id bits go, but for directories; chown(2)."""
    mode = kept.mode
    if not stat.S_ISDIR(mode):
        mode &= ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))
    return Override(kept.uid if uid == KEEP else uid, kept.gid if gid == KEEP else gid, mode, kept.rdev)
