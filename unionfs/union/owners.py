"""Owners other than those the layers hold: mapped, squashed, or remembered in an extended attribute.

The rest of the union knows the real attributes of real files. Here stands what makes others of them, for a mount that
maps owners: ``MappedView.shown`` what programs are shown, ``Owners.give`` what a new file gets. A stack without such a
map has none of it and pays nothing. ``idmap`` has the arithmetic, ``mapped`` the changes.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import NamedTuple

from unionfs import idmap
from unionfs.idmap import IdMap, Override
from unionfs.syscalls import files
from unionfs.union.mutate import Caller, error
from unionfs.union.nodes import DirNode
from unionfs.union.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from unionfs.idmap import Ownership
    from unionfs.layers.layer import DescriptorCache, Layer
    from unionfs.union.nodes import AnyNode

_PERMISSIONS = 0o7777
_RWX = 0o777
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_REFUSED = (errno.EPERM, errno.EINVAL)
#: What setxattr(2) says where such an attribute cannot be: links and special files take no ``user.*``, xattr(7).
_NO_ATTRIBUTE = (errno.EPERM, errno.EOPNOTSUPP, errno.EACCES)
_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM)


class _Rules(NamedTuple):
    """How the owners of one layer are read."""

    uids: IdMap
    gids: IdMap
    attribute: bytes | None
    """Where they are remembered; None: nowhere."""


class Owners:
    """The owners of one stack: how each layer's are read, and how the writable layer's are written."""

    __slots__ = ("_rules", "always", "ownership", "upper")

    def __init__(self, ownership: Ownership, lowers: list[Layer], upper: Layer | None) -> None:
        self.ownership = ownership = _as_written(ownership, upper)
        self.always = ownership.always
        self.upper = upper
        self._rules = {layer: self._rules_of(layer) for layer in lowers}
        if upper is not None:
            marked = self.always or read(upper.root.proc_path(), ownership.attribute) is not None
            attribute = ownership.attribute if marked else None
            self._rules[upper] = _Rules(ownership.uids, ownership.gids, attribute)

    def _rules_of(self, layer: Layer) -> _Rules:
        """Find out how a lower layer's owners are to be read: its root says whether owners are remembered in it."""
        uids, gids, attribute = self.ownership.uids, self.ownership.gids, self.ownership.attribute
        path = layer.root.proc_path()
        found = None if attribute is None else next((name for name in idmap.OVERRIDES if read(path, name)), None)
        if self.adapts:  # an owner from outside of the user namespace reads as that id
            return _Rules(uids.without(idmap.OVERFLOW_ID), gids.without(idmap.OVERFLOW_ID), found)
        if (uids.ranges or gids.ranges) and _is_idmapped(layer.path):  # the kernel has done it: mount_setattr(2)
            return _Rules(uids._replace(ranges=None), gids._replace(ranges=None), found)
        return _Rules(uids, gids, found)

    @property
    def adapts(self) -> bool:
        """Whether owners are remembered where they cannot be given, and only there."""
        return self.ownership.attribute is not None and not self.always

    # -- reading -----------------------------------------------------------------------------------------------------

    def rules(self, layer: Layer | None) -> _Rules:
        """Return how the owners of ``layer`` are read."""
        assert layer is not None
        return self._rules[layer]

    def remembered(self, path: bytes, layer: Layer | None, *, follow: bool) -> Override | None:
        """Return what the file of ``layer`` at ``path`` has in its attribute, None where there is nothing."""
        attribute = self.rules(layer).attribute
        value = None if attribute is None else read(path, attribute, follow=follow)
        return None if value is None else idmap.decode_override(value)

    def on_disk(self, path: bytes, layer: Layer | None, state: os.stat_result, *, follow: bool) -> os.stat_result:
        """Return ``state`` with what is remembered in the place of real owner, mode and type; ids are the layer's."""
        override = self.remembered(path, layer, follow=follow)
        if override is None:
            return state
        kind = stat.S_IFMT(override.mode) or stat.S_IFMT(state.st_mode)
        return replaced(state, kind | stat.S_IMODE(override.mode), override.uid, override.gid, override.rdev)

    # -- writing -----------------------------------------------------------------------------------------------------

    def stored(self, uid: int, gid: int) -> tuple[int, int]:
        """Return the ids to store for those that a program gives. Raises OSError (EOVERFLOW) where there are none."""
        found = self.ownership.uids.to_disk(uid), self.ownership.gids.to_disk(gid)
        if self.ownership.attribute is None and None in found:
            raise error(errno.EOVERFLOW)  # as the kernel has it: notify_change() in fs/attr.c
        stored_uid, stored_gid = found
        return (uid if stored_uid is None else stored_uid, gid if stored_gid is None else stored_gid)

    def caller(self, caller: Caller) -> Caller:
        """Return ``caller`` with the ids to store; who is not in the map makes files of nobody, as in
        fuse-overlayfs.
        """
        uid, gid = self.ownership.uids.to_disk(caller.uid), self.ownership.gids.to_disk(caller.gid)
        nobody = idmap.OVERFLOW_ID
        return Caller(nobody if uid is None else uid, nobody if gid is None else gid, caller.umask)

    def remember(self, path: bytes, override: Override, *, follow: bool) -> bool:
        """Write an owner, mode and type down; False where the writable layer cannot hold them. Raises OSError."""
        attribute = self.ownership.attribute
        if attribute is None:
            return False
        try:
            os.setxattr(path, attribute, override.encode(), follow_symlinks=follow)
        except OSError as problem:
            if problem.errno not in _NO_ATTRIBUTE:
                raise
            return False
        self._mark_upper(attribute)
        return True

    def _mark_upper(self, attribute: bytes) -> None:
        """Say at the root of the writable layer that owners are remembered in it, as containers/storage does."""
        assert self.upper is not None
        rules = self.rules(self.upper)
        if rules.attribute is not None:
            return
        self._rules[self.upper] = rules._replace(attribute=attribute)
        path = self.upper.root.proc_path()
        if read(path, attribute) is None:
            state = os.stat(path)  # this directory was made outside: its owner may be nobody who exists here
            uid = rules.uids.without(idmap.OVERFLOW_ID).find(state.st_uid)
            gid = rules.gids.without(idmap.OVERFLOW_ID).find(state.st_gid)
            owner = rules.uids.missing if uid is None else uid, rules.gids.missing if gid is None else gid
            os.setxattr(path, attribute, Override(*owner, state.st_mode).encode())

    def forget(self, path: bytes, *, follow: bool) -> None:
        """Take away what a copy has brought along from a lower layer that remembers owners. Raises OSError."""
        for attribute in {rules.attribute for rules in self._rules.values()} - {None}:
            assert attribute is not None
            try:
                os.removexattr(path, attribute, follow_symlinks=follow)
            except OSError as problem:
                if problem.errno not in _ABSENT:
                    raise

    def give(self, place: tuple[int, bytes], uid: int, gid: int, mode: int, rdev: int = 0) -> None:
        """Give a new file of the writable layer its owner and mode, as stored; set-id bits come last. Raises OSError.

        ``place`` is a directory's descriptor and a name in it, or the descriptor of the file itself and no name.
        """
        directory, name = place
        path = files.proc_path(directory) + b"/" + name if name else files.proc_path(directory)
        follow = not name
        override = Override(uid, gid, mode, rdev)
        kept = self.always or _stands_for_device(path, mode, follow=follow)
        if kept and self.remember(path, override, follow=follow):
            self.open_up(place, mode)
        elif self._chown(path, override, follow=follow):
            _chmod(place, mode)
        else:
            self.open_up(place, mode)

    def _chown(self, path: bytes, override: Override, *, follow: bool) -> bool:
        """Change the real owner, or remember the one to show; tell which. Raises OSError where neither can be."""
        try:
            os.chown(path, override.uid, override.gid, follow_symlinks=follow)
        except OSError as problem:
            if problem.errno not in _REFUSED or not (self.ownership.attribute or self.ownership.squashes):
                raise
            return not self.remember(path, override, follow=follow)
        return True

    def open_up(self, place: tuple[int, bytes], mode: int) -> None:
        """Set real permissions that let this process in, where those to show are remembered; never set-id ones."""
        _chmod(place, opened(mode))


def opened(mode: int) -> int:
    """Return the real mode of a file that is to show ``mode``, which is remembered."""
    return mode & _RWX | (0o700 if stat.S_ISDIR(mode) else 0o600) | stat.S_IFMT(mode)


def _as_written(ownership: Ownership, upper: Layer | None) -> Ownership:
    """Go on with fuse-overlayfs's own attribute in a writable layer that has it, as its 1.x versions do."""
    if upper is None or not ownership.always or ownership.attribute != idmap.CONTAINERS_OVERRIDE:
        return ownership
    path = upper.root.proc_path()
    older = read(path, ownership.attribute) is None and read(path, idmap.FUSE_OVERLAYFS_OVERRIDE) is not None
    return ownership._replace(attribute=idmap.FUSE_OVERLAYFS_OVERRIDE) if older else ownership


def _stands_for_device(path: bytes, mode: int, *, follow: bool) -> bool:
    """Tell whether a regular file stands at ``path`` for a device that could not be made."""
    if stat.S_IFMT(mode) not in _DEVICES:
        return False
    return stat.S_ISREG(os.stat(path, follow_symlinks=follow).st_mode)


def _is_idmapped(path: bytes) -> bool:
    """Tell whether the mount that ``path`` is on maps ids by itself; it says so in proc_pid_mountinfo(5)."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as stream:
            fields = dict(line.split(b":", 1) for line in stream.read().splitlines())
    finally:
        os.close(descriptor)
    mount_id = fields[b"mnt_id"].strip()
    with open("/proc/self/mountinfo", "rb") as stream:
        lines = (line.split(b" ") for line in stream)
        return any(line[0] == mount_id and b"idmapped" in line[5].split(b",") for line in lines)


def _exists(path: bytes, state: os.stat_result, *, follow: bool) -> bool:
    """Tell whether the owner of a file, who reads as nobody, exists in this user namespace: then O_NOATIME is allowed
    (open(2); ``inode_owner_or_capable`` in fs/inode.c). The same is taken for granted of the group.
    """
    if not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)):
        return False  # to open it would have an effect, or cannot be done
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOATIME | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        os.close(os.open(path, flags))
    except OSError:
        return False
    return True


def _chmod(place: tuple[int, bytes], mode: int) -> None:
    directory, name = place
    if stat.S_ISLNK(mode):
        return
    if name:
        files.fchmodat(directory, name, mode)
    else:
        os.chmod(files.proc_path(directory), mode & _PERMISSIONS)


def read(path: bytes, attribute: bytes | None, *, follow: bool = True) -> bytes | None:
    """Return the value of an attribute, None where it is absent. Raises OSError."""
    if attribute is None:
        return None
    try:
        return os.getxattr(path, attribute, follow_symlinks=follow)
    except OSError as problem:
        if problem.errno not in _ABSENT:
            raise
        return None


def replaced(state: os.stat_result, mode: int, uid: int, gid: int, rdev: int | None = None) -> os.stat_result:
    """Return the same attributes with another mode, owner and, if given, device number."""
    reduced: Any = state.__reduce__()
    fields, others = reduced[1]  # ten fields in the order of stat_result, and the rest by name
    if rdev is not None:
        others = {**others, "st_rdev": rdev}
    return os.stat_result((mode, *fields[1:4], uid, gid, *fields[6:]), others)


# -- reading ---------------------------------------------------------------------------------------------------------


class MappedView(View):
    """A view whose files have the owners that ``owners`` makes of the real ones."""

    __slots__ = ("owners",)

    def __init__(self, lowers: list[Layer], upper: Layer | None, cache: DescriptorCache, ownership: Ownership) -> None:
        super().__init__(lowers, upper, cache)
        self.owners = Owners(ownership, lowers, upper)

    def layer_of(self, node: AnyNode) -> Layer | None:
        """Return the layer that the attributes of ``node`` come from; a file without a name is in the writable one."""
        if isinstance(node, DirNode):
            part = node.upper or (node.seed[0] if node.seed else None)
            return self.upper if part is None else part.layer
        return self.upper if node.owned or node.home is None else node.home.layer

    def on_disk(self, node: AnyNode, state: os.stat_result) -> os.stat_result:
        """Return the attributes as the layer of ``node`` has them, what it remembers in the place of the real ones."""
        layer = self.layer_of(node)
        if self.owners.rules(layer).attribute is None:
            return state
        return self.owners.on_disk(self.proc_path(node), layer, state, follow=node.descriptor >= 0)

    def rules(self, node: AnyNode, state: os.stat_result) -> _Rules:
        """Return how the owners of ``node`` are read, ``state`` being its real attributes."""
        rules = self.owners.rules(self.layer_of(node))
        if idmap.OVERFLOW_ID not in (state.st_uid, state.st_gid) or not self.owners.adapts:
            return rules
        ownership = self.owners.ownership
        others = rules._replace(uids=ownership.uids, gids=ownership.gids)
        if others == rules or not _exists(self.proc_path(node), state, follow=node.descriptor >= 0):
            return rules
        return others

    def shown(self, node: AnyNode, state: os.stat_result) -> os.stat_result:
        """Return the attributes to show for ``node``, ``state`` being the real ones. Raises OSError."""
        state = self.on_disk(node, state)
        rules = self.rules(node, state)
        uid, gid = rules.uids.to_view(state.st_uid), rules.gids.to_view(state.st_gid)
        if (uid, gid) == (state.st_uid, state.st_gid):
            return state
        return replaced(state, state.st_mode, uid, gid)

    def getxattr(self, node: AnyNode, name: bytes) -> bytes:
        """Return the value of an extended attribute, ids in it mapped. Raises OSError."""
        if self.owners.ownership.attribute is not None:
            if name in idmap.OVERRIDES or name.startswith(idmap.OVERRIDE_PREFIX + idmap.SECURITY_PREFIX):
                raise error(errno.ENODATA, name)
            if name.startswith(idmap.SECURITY_PREFIX):
                value = read(self.proc_path(node), idmap.store_attribute(name), follow=node.descriptor >= 0)
                if value is not None:
                    return value
        value = super().getxattr(node, name)
        if name in idmap.ACLS:
            rules = self.owners.rules(self.layer_of(node))
            value = idmap.map_acl(value, rules.uids.find, rules.gids.find)
        kept = self.remembered(node) if name == idmap.ACCESS_ACL else None
        return value if kept is None else idmap.acl_with_mode(value, kept.mode)

    def remembered(self, node: AnyNode) -> Override | None:
        """Return what stands in the attribute of ``node``, None where there is nothing."""
        return self.owners.remembered(self.proc_path(node), self.layer_of(node), follow=node.descriptor >= 0)

    def listxattr(self, node: AnyNode) -> list[bytes]:
        """Return the names of the extended attributes that a program may see. Raises OSError."""
        names = super().listxattr(node)
        if self.owners.ownership.attribute is None:
            return names
        return list(dict.fromkeys(name for name in map(idmap.show_attribute, names) if name is not None))
