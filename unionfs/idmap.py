"""Owners, as values: ranges of user and group ids, what stands in for ids that do not exist, and remembered owners.

"Disk" is what the layers hold, "view" what programs are shown. Pure: ids and bytes in, ids and bytes out; who writes
an owner where is decided in ``union/owners``. The words are those of fuse-overlayfs (fuse-overlayfs(1)), the format of
a remembered owner is that of containers/storage (pkg/idtools, ``user.containers.override_stat``).
"""

from __future__ import annotations

import stat
from os import major, makedev, minor
from struct import Struct

from unionfs.lean import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

#: What containers/storage, podman and buildah read and write; then fuse-overlayfs's own, the second for root alone.
CONTAINERS_OVERRIDE = b"user.containers.override_stat"
FUSE_OVERLAYFS_OVERRIDE = b"user.fuseoverlayfs.override_stat"
PRIVILEGED_OVERRIDE = b"security.fuseoverlayfs.override_stat"
OVERRIDES = (CONTAINERS_OVERRIDE, FUSE_OVERLAYFS_OVERRIDE, PRIVILEGED_OVERRIDE)

#: Where ``security.*`` attributes are kept that only a privileged process could set.
OVERRIDE_PREFIX = b"user.containers.override_"
SECURITY_PREFIX = b"security."

KEEP = -1
"""The id that chown(2) takes for "leave it as it is"."""
OVERFLOW_ID = 65534
"""How the kernel shows an owner that a namespace does not have, unless told otherwise (user_namespaces(7))."""
EVERY_ID = 2**32 - 1
"""How many ids there are: the last number is ``KEEP``."""


class Range(NamedTuple):
    """``size`` ids from ``disk`` on in the layers are those from ``view`` on in the mount."""

    disk: int
    view: int
    size: int


def parse_ranges(text: str) -> tuple[Range, ...]:
    """Read the value of ``uidmapping=``: ``DISK:VIEW:SIZE``, several of them joined by colons, empty fields left out.

    podman writes a colon before the first. Raises ValueError for what is no such list.
    """
    fields = [field for field in text.split(":") if field]
    if not fields or len(fields) % 3 or not all(field.isdecimal() for field in fields):
        raise ValueError(f"no ranges of ids: {text}")
    numbers = [int(field) for field in fields]
    if max(numbers) > EVERY_ID:
        raise ValueError(f"no ranges of ids: {text}")
    return tuple(Range(*numbers[index : index + 3]) for index in range(0, len(numbers), 3))


def parse_namespace(text: str) -> tuple[Range, ...]:
    """Read /proc/PID/uid_map as the ids that exist in that namespace, each as itself; see user_namespaces(7)."""
    lines = (line.split() for line in text.splitlines())
    return tuple(Range(int(inside), int(inside), int(size)) for inside, _outside, size in lines)


class IdMap(NamedTuple):
    """How one kind of id, user or group, is shown and stored."""

    ranges: tuple[Range, ...] | None = None
    """Which ids stand for which; None: each for itself."""
    squash: int = KEEP
    """The one id to show for all, if it is not ``KEEP``."""
    missing: int = OVERFLOW_ID
    """What is shown for an id that no range has."""

    def to_view(self, disk: int) -> int:
        """Return the id to show for one that a layer holds."""
        shown = self.find(disk)
        return self.missing if shown is None else shown

    def find(self, disk: int) -> int | None:
        """Return the same, None for an id that does not exist in the view."""
        if self.squash != KEEP:
            return self.squash
        if self.ranges is None:
            return disk
        for first, shown, size in self.ranges:
            if first <= disk < first + size:
                return shown + disk - first
        return None

    def to_disk(self, view: int) -> int | None:
        """Return the id to store for one that a program gives, ``KEEP`` for ``KEEP``; None where no range has it.

        The superuser who is in no range stands for the one of the layers: whoever prepares a container from outside.
        """
        if view == KEEP or self.ranges is None:
            return view
        for first, shown, size in self.ranges:
            if shown <= view < shown + size:
                return first + view - shown
        return 0 if view == 0 and any(first == 0 for first, _shown, _size in self.ranges) else None

    def without(self, disk: int) -> IdMap:
        """Return the same map, with the id ``disk`` of the layers as one that does not exist."""
        whole = self.ranges if self.ranges is not None else (Range(0, 0, EVERY_ID),)
        return self._replace(ranges=tuple(part for range_ in whole for part in _split(range_, disk)))


def _split(range_: Range, disk: int) -> Iterable[Range]:
    first, shown, size = range_
    before = disk - first
    if not 0 <= before < size:
        return (range_,)
    parts = (Range(first, shown, before), Range(disk + 1, shown + before + 1, size - before - 1))
    return tuple(part for part in parts if part.size)


class Ownership(NamedTuple):
    """What a mount does with owners."""

    uids: IdMap = IdMap()
    gids: IdMap = IdMap()
    attribute: bytes | None = None
    """The extended attribute in which owners are remembered that cannot be given; None: such a request fails."""
    always: bool = False
    """Whether owner and mode of every file stand in that attribute, and the real ones mean nothing."""

    @property
    def squashes(self) -> bool:
        """Whether owners are hidden, so that nobody misses a change of them that failed."""
        return self.uids.squash != KEEP or self.gids.squash != KEEP


def in_namespace(uid_map: str, gid_map: str) -> Ownership | None:
    """Return what fits a server in a user namespace with these maps; None where every id exists, as in the first one.

    Owners that do not exist there are shown as root, and what cannot be given to somebody is remembered.
    """
    uids, gids = parse_namespace(uid_map), parse_namespace(gid_map)
    if _is_complete(uids) and _is_complete(gids):
        return None
    return Ownership(IdMap(uids, missing=_root(uids)), IdMap(gids, missing=_root(gids)), CONTAINERS_OVERRIDE)


def _is_complete(ranges: tuple[Range, ...]) -> bool:
    return sum(range_.size for range_ in ranges) >= EVERY_ID


def _root(ranges: tuple[Range, ...]) -> int:
    """Return the id to show for owners that do not exist: 0, or the lowest that there is."""
    return min((range_.view for range_ in ranges), default=OVERFLOW_ID)


# -- remembered owners -----------------------------------------------------------------------------------------------

_TYPES = {
    "file": stat.S_IFREG,
    "dir": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "pipe": stat.S_IFIFO,
    "socket": stat.S_IFSOCK,
    "block": stat.S_IFBLK,
    "char": stat.S_IFCHR,
}
_WORDS = {kind: word for word, kind in _TYPES.items()}
_PERMISSIONS = 0o7777
_ST_MODE = 0o177777


class Override(NamedTuple):
    """A remembered owner, mode and type: the value of ``user.containers.override_stat``."""

    uid: int
    gid: int
    mode: int
    """Permission bits, and the type as in st_mode; a type of 0 is that of the file which has the attribute."""
    rdev: int = 0

    def encode(self) -> bytes:
        """Return ``uid:gid:mode:type``, a device's type followed by ``-MAJOR-MINOR``."""
        word = _WORDS.get(stat.S_IFMT(self.mode))
        if word in ("block", "char"):
            word = f"{word}-{major(self.rdev)}-{minor(self.rdev)}"
        fields = [str(self.uid), str(self.gid), f"{self.mode & _PERMISSIONS:04o}", *([word] if word else [])]
        return ":".join(fields).encode()


def decode_override(value: bytes) -> Override | None:
    """Read the value of such an attribute, with three fields or four; None for anything else.

    fuse-overlayfs writes three, and the whole of st_mode; it and containers/storage read only permissions there.
    """
    fields = value.decode("ascii", "replace").split(":")
    if len(fields) not in (3, 4) or not all(field.isdecimal() for field in fields[:2]):
        return None
    try:
        mode = int(fields[2], 8)
        kind, rdev = _read_type(fields[3]) if len(fields) == 4 else (0, 0)
    except (ValueError, KeyError):
        return None
    uid, gid = int(fields[0]), int(fields[1])
    if not 0 <= mode <= _ST_MODE or max(uid, gid) >= EVERY_ID:
        return None
    return Override(uid, gid, mode & _PERMISSIONS | kind, rdev)


def _read_type(text: str) -> tuple[int, int]:
    """Read ``file`` or ``char-1-3``. Raises KeyError or ValueError."""
    word, *numbers = text.split("-")
    kind = _TYPES[word]
    if kind not in (stat.S_IFBLK, stat.S_IFCHR):
        if numbers:
            raise ValueError(text)
        return kind, 0
    high, low = map(int, numbers)
    if high < 0 or low < 0:
        raise ValueError(text)
    return kind, makedev(high, low)


# -- what a privileged process asks of the server that the kernel does not let it ask -------------------------------

#: Attributes that cannot be read: to set one is a request. Of a file: be given to somebody (uid, gid). Of a directory:
#: hold a device (mode, number as mknod(2) passes it, uid, gid, and its name).
OWNER_REQUEST = b"security.unionfs.owner"
NODE_REQUEST = b"security.unionfs.node"


def encode_request(*numbers: int, name: bytes = b"") -> bytes:
    """Return the value of such an attribute."""
    return b":".join([*(b"%d" % number for number in numbers), name])


def decode_request(value: bytes, count: int) -> tuple[list[int], bytes]:
    """Return the ``count`` numbers and the name in such a value. Raises ValueError."""
    *numbers, name = value.split(b":", count)
    if len(numbers) != count or not all(number.removeprefix(b"-").isdigit() for number in numbers):
        raise ValueError(f"no request: {value!r}")
    return [int(number) for number in numbers], name


# -- extended attributes that hold ids, or need a privilege ----------------------------------------------------------

_ACL_HEAD = Struct("<I")  # struct posix_acl_xattr_header and _entry of include/uapi/linux/posix_acl_xattr.h
_ACL_ENTRY = Struct("<HHI")
_ACL_VERSION = 2
_ACL_USER_OBJ, _ACL_USER, _ACL_GROUP_OBJ, _ACL_GROUP, _ACL_MASK, _ACL_OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID = 2**32 - 1

ACCESS_ACL = b"system.posix_acl_access"
ACLS = (ACCESS_ACL, b"system.posix_acl_default")


def map_acl(value: bytes, map_uid: Callable[[int], int | None], map_gid: Callable[[int], int | None]) -> bytes:
    """Return a POSIX ACL with the ids of its entries mapped; entries of ids that do not exist are left out.

    What is no ACL is returned as it is.
    """
    if not _is_acl(value):
        return value
    kept = [_ACL_HEAD.pack(_ACL_VERSION)]
    for tag, permissions, number in _ACL_ENTRY.iter_unpack(value[_ACL_HEAD.size :]):
        mapped: int | None = number
        if tag in (_ACL_USER, _ACL_GROUP):
            mapped = None if number == _NO_ID else (map_uid if tag == _ACL_USER else map_gid)(number)
        if mapped is not None:
            kept.append(_ACL_ENTRY.pack(tag, permissions, mapped))
    return b"".join(kept)


def _is_acl(value: bytes) -> bool:
    if len(value) < _ACL_HEAD.size or _ACL_HEAD.unpack_from(value) != (_ACL_VERSION,):
        return False
    return (len(value) - _ACL_HEAD.size) % _ACL_ENTRY.size == 0


def mode_of_acl(value: bytes) -> int | None:
    """Return the permission bits that stand for a POSIX ACL (acl(5)); None for what is none."""
    if not _is_acl(value) or len(value) == _ACL_HEAD.size:
        return None
    found = {tag: permissions for tag, permissions, _number in _ACL_ENTRY.iter_unpack(value[_ACL_HEAD.size :])}
    group = found.get(_ACL_MASK, found.get(_ACL_GROUP_OBJ, 0))
    return int(found.get(_ACL_USER_OBJ, 0) << 6 | group << 3 | found.get(_ACL_OTHER, 0)) & 0o777


def acl_with_mode(value: bytes, mode: int) -> bytes:
    """Return a POSIX ACL as chmod(2) to ``mode`` changes it; what is no ACL is returned as it is."""
    if not _is_acl(value):
        return value
    entries = list(_ACL_ENTRY.iter_unpack(value[_ACL_HEAD.size :]))
    masked = any(tag == _ACL_MASK for tag, *_ in entries)
    given = {_ACL_USER_OBJ: mode >> 6 & 7, _ACL_MASK if masked else _ACL_GROUP_OBJ: mode >> 3 & 7, _ACL_OTHER: mode & 7}
    packed = (_ACL_ENTRY.pack(tag, given.get(tag, permissions), number) for tag, permissions, number in entries)
    return _ACL_HEAD.pack(_ACL_VERSION) + b"".join(packed)


def group_of_acl(value: bytes) -> int:
    """Return what a POSIX ACL lets the owning group do, as the last three bits of a mode: what its entry and the mask
    both say (acl(5)).
    """
    entries = _ACL_ENTRY.iter_unpack(value[_ACL_HEAD.size :])
    found: dict[int, int] = {tag: permissions for tag, permissions, _number in entries}
    return found.get(_ACL_GROUP_OBJ, 0) & found.get(_ACL_MASK, 7)


def store_attribute(name: bytes) -> bytes:
    """Return the stored name of an attribute where ``security.*`` ones are kept as ``user.*``."""
    return OVERRIDE_PREFIX + name if name.startswith(SECURITY_PREFIX) else name


def show_attribute(name: bytes) -> bytes | None:
    """Return the name under which a stored attribute is shown: the inverse of ``store_attribute``; None: not at all."""
    if name in OVERRIDES:
        return None
    if name.startswith(OVERRIDE_PREFIX + SECURITY_PREFIX):
        return name[len(OVERRIDE_PREFIX) :]
    return name
