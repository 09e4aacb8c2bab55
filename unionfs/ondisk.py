"""How a deletion, a hiding directory and a moved one are written in a layer: the dialects, as values.

Pure: it recognises and builds names and extended attributes, and never touches a file system. The formats are those of
the kernel's Documentation/filesystems/overlayfs.rst, of AUFS as the OCI image specification ("Whiteouts") has it, and
of fuse-overlayfs, which is only read.
"""

from __future__ import annotations

import os
import stat
from struct import Struct

from unionfs.lean import NamedTuple

WHITEOUT_PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"

TRUSTED_PREFIX = b"trusted.overlay."
USER_PREFIX = b"user.overlay."
FUSE_OVERLAYFS_PREFIX = b"user.fuseoverlayfs."
ESCAPE = b"overlay."

OPAQUE, REDIRECT, METACOPY, ORIGIN, IMPURE, WHITEOUT, NLINK, PROTATTR = (
    b"opaque",
    b"redirect",
    b"metacopy",
    b"origin",
    b"impure",
    b"whiteout",
    b"nlink",
    b"protattr",
)

#: The inode flags that forbid changes, numbered as in ioctl_iflags(2) and statx(2).
IMMUTABLE, APPEND_ONLY = 0x10, 0x20
PROTECTED = IMMUTABLE | APPEND_ONLY
_PROTECTION_LETTERS = ((APPEND_ONLY, b"a"), (IMMUTABLE, b"i"))  # in the order of ovl_set_protattr

#: The longest redirect that the kernel writes by default (module parameter redirect_max), in bytes.
REDIRECT_MAX_BYTES = 256


class Dialect(NamedTuple):
    """One way to write deletions: where markers stand (None: in no extended attribute) and what a whiteout is."""

    name: str
    prefix: bytes | None
    device_whiteouts: bool

    def attribute(self, marker: bytes) -> bytes | None:
        """Return the full name of the extended attribute for ``marker``, or None where this dialect has none."""
        return None if self.prefix is None else self.prefix + marker

    @property
    def redirects(self) -> bool:
        """Whether a moved directory may be written as a redirect (the kernel follows none with ``userxattr``)."""
        return self.prefix == TRUSTED_PREFIX


OVERLAY = Dialect("overlay", TRUSTED_PREFIX, True)
USERXATTR = Dialect("userxattr", USER_PREFIX, True)
OCI = Dialect("oci", None, False)
#: Strongest first: the order in which a writable layer tries them.
DIALECTS = (OVERLAY, USERXATTR, OCI)


def dialect_named(name: str) -> Dialect | None:
    """Return the dialect that users call ``name``, None if there is none."""
    return next((dialect for dialect in DIALECTS if dialect.name == name), None)


def is_whiteout(mode: int, rdev: int) -> bool:
    """Tell whether a file with this st_mode and st_rdev is overlayfs's whiteout: the character device 0:0."""
    return rdev == 0 and stat.S_ISCHR(mode)


#: The highest minor number that every file system can hold (XFS has 18 bits), and how deep overlays may be nested.
_LAST_MINOR = (1 << 18) - 1
_NESTINGS = 16


def escape_device(mode: int, rdev: int) -> int:
    """Return the stored number of the device that a program calls ``rdev``; see :func:`unescape_device`.

    A program inside may itself be an overlay: its whiteouts are devices to us, and are stored as the last ones of major
    number 0, where there are no devices. A program that sees those is an overlay in an overlay, and so on.
    """
    if not stat.S_ISCHR(mode) or os.major(rdev) != 0:
        return rdev
    minor = os.minor(rdev)
    if minor == 0:
        return os.makedev(0, _LAST_MINOR)
    return os.makedev(0, minor - 1) if _LAST_MINOR - _NESTINGS < minor <= _LAST_MINOR else rdev


def unescape_device(mode: int, rdev: int) -> int:
    """Return what a program sees of a stored device number: the inverse of :func:`escape_device`."""
    if not stat.S_ISCHR(mode) or os.major(rdev) != 0:
        return rdev
    minor = os.minor(rdev)
    if minor == _LAST_MINOR:
        return 0
    return os.makedev(0, minor + 1) if _LAST_MINOR - _NESTINGS <= minor < _LAST_MINOR else rdev


def is_reserved_name(name: bytes) -> bool:
    """Tell whether ``name`` means something to the AUFS dialect, so that it can be no file of the merged tree."""
    return name.startswith(WHITEOUT_PREFIX)


def aufs_whiteout(name: bytes) -> bytes:
    """Return the name of the file that deletes ``name`` in the AUFS dialect."""
    return WHITEOUT_PREFIX + name


def hidden_by(name: bytes) -> bytes | None:
    """Return the name that the AUFS marker ``name`` deletes; None for any other name, markers of AUFS
    itself included.
    """
    if not name.startswith(WHITEOUT_PREFIX) or name.startswith(b".wh..wh.") or name == WHITEOUT_PREFIX:
        return None
    return name[len(WHITEOUT_PREFIX) :]


#: An empty file with one of these deletes its name, in a directory whose ``overlay.opaque`` is "x".
WHITEOUT_ATTRIBUTES = frozenset(prefix.decode() + WHITEOUT.decode() for prefix in (TRUSTED_PREFIX, USER_PREFIX))


class Marks(NamedTuple):
    """What the extended attributes of one directory or file of a layer say about the layers below it."""

    opaque: bool = False
    xattr_whiteouts: bool = False
    redirect: bytes | None = None
    metacopy: bool = False
    origin: bytes | None = None
    impure: bool = False
    untrusted: bool = False
    """Whether the redirect or the metacopy stands in an attribute that the file's owner can set by himself."""
    protection: int = 0


NO_MARKS = Marks()
#: All attributes that make up Marks; a reader fetches the values of those that a file has.
MARK_ATTRIBUTES = frozenset(
    prefix + marker
    for prefix in (TRUSTED_PREFIX, USER_PREFIX)
    for marker in (OPAQUE, REDIRECT, METACOPY, ORIGIN, IMPURE, PROTATTR)
) | {FUSE_OVERLAYFS_PREFIX + OPAQUE}


def read_marks(attributes: dict[bytes, bytes]) -> Marks:
    """Turn the marking attributes of a file, of any dialect, into Marks; ``trusted`` goes before ``user``."""

    def value(marker: bytes) -> bytes | None:
        found = attributes.get(TRUSTED_PREFIX + marker)
        return attributes.get(USER_PREFIX + marker) if found is None else found

    claimed = [marker for marker in (REDIRECT, METACOPY) if value(marker) is not None]
    opaque = {attributes.get(prefix + OPAQUE) for prefix in (TRUSTED_PREFIX, USER_PREFIX, FUSE_OVERLAYFS_PREFIX)}
    return Marks(
        opaque=b"y" in opaque,
        xattr_whiteouts=b"x" in opaque,
        redirect=value(REDIRECT) or None,
        metacopy=value(METACOPY) is not None,
        origin=value(ORIGIN) or None,
        impure=value(IMPURE) == b"y",
        untrusted=any(TRUSTED_PREFIX + marker not in attributes for marker in claimed),
        protection=_decode_protection(value(PROTATTR) or b""),
    )


def encode_protection(flags: int) -> bytes:
    """Return the value of ``overlay.protattr`` for inode flags (ovl_set_protattr in fs/overlayfs/inode.c)."""
    return b"".join(letter for flag, letter in _PROTECTION_LETTERS if flags & flag)


def _decode_protection(value: bytes) -> int:
    return sum(flag for flag, letter in _PROTECTION_LETTERS if letter in value)


def redirect_names(redirect: bytes) -> list[bytes]:
    """Return the names along a redirect, none if it is not as overlayfs writes it: "/a/b" in the
    stack, or "b" beside.
    """
    names = redirect[1:].split(b"/") if redirect.startswith(b"/") else [redirect]
    valid = all(name not in (b"", b".", b"..") and b"/" not in name for name in names)
    return names if valid else []


def is_private_attribute(name: bytes) -> bool:
    """Tell whether a stored attribute belongs to the format (and is not an escaped one): it is never
    shown or copied.
    """
    for prefix in (TRUSTED_PREFIX, USER_PREFIX):
        if name.startswith(prefix):
            return not name.startswith(ESCAPE, len(prefix))
    return name.startswith(FUSE_OVERLAYFS_PREFIX)


def escape_attribute(name: bytes) -> bytes:
    """Return the stored name of the attribute that a program calls ``name``; the inverse of :func:`unescape_attribute`.

    A program inside may itself be an overlay: its ``trusted.overlay.x`` is stored as ``trusted.overlay.overlay.x``.
    """
    for prefix in (TRUSTED_PREFIX, USER_PREFIX):
        if name.startswith(prefix):
            return prefix + ESCAPE + name[len(prefix) :]
    return name


def unescape_attribute(name: bytes) -> bytes | None:
    """Return the name under which a stored attribute is shown, or None when it is private to the format."""
    if is_private_attribute(name):
        return None
    for prefix in (TRUSTED_PREFIX, USER_PREFIX):
        if name.startswith(prefix):
            return prefix + name[len(prefix) + len(ESCAPE) :]
    return name


# struct ovl_fb of fs/overlayfs/overlayfs.h: version, magic, len, flags, type, uuid, then the file handle itself.
_ORIGIN = Struct("=BBBBB16s")
_ORIGIN_MAGIC = 0xFB
_INO32_TYPES = (1, 2)  # FILEID_INO32_GEN(_PARENT) of include/linux/exportfs.h
_INO64_TYPES = (0x81, 0x82)  # XFS: FILEID_INO64_GEN(_PARENT)
_BTRFS_TYPES = (0x4D, 0x4E, 0x4F)


class Origin(NamedTuple):
    """Whence a file was copied up: file system, type and bytes of the lower file's handle (name_to_handle_at(2))."""

    uuid: bytes
    kind: int
    handle: bytes

    def encode(self) -> bytes:
        """Return the value of ``overlay.origin`` and, in hexadecimal, the name in the kernel's index."""
        size = _ORIGIN.size + len(self.handle)
        endian = 0  # little endian; the flag stands for the other byte order (OVL_FH_FLAG_BIG_ENDIAN)
        return _ORIGIN.pack(0, _ORIGIN_MAGIC, size, endian, self.kind, self.uuid) + self.handle

    @property
    def ino(self) -> int | None:
        """The lower file's inode number, for the handle types whose layout is known; None for others."""
        if self.kind in _INO32_TYPES and len(self.handle) == 8:
            return int.from_bytes(self.handle[:4], "little")
        if self.kind == 1 and len(self.handle) == 12:  # tmpfs: generation, then 64 bits of inode number
            return int.from_bytes(self.handle[4:12], "little")
        if self.kind in _INO64_TYPES or self.kind in _BTRFS_TYPES:
            return int.from_bytes(self.handle[:8], "little")
        return None

    @property
    def subvolume(self) -> int | None:
        """The subvolume of the lower file where that is btrfs, None elsewhere."""
        return int.from_bytes(self.handle[8:16], "little") if self.kind in _BTRFS_TYPES else None


def decode_origin(value: bytes) -> Origin | None:
    """Read the value of ``overlay.origin``; None when it is no handle that this version knows."""
    if len(value) < _ORIGIN.size:
        return None
    _version, magic, size, _flags, kind, uuid = _ORIGIN.unpack_from(value)
    if magic != _ORIGIN_MAGIC or size != len(value):
        return None
    return Origin(uuid, kind, value[_ORIGIN.size :])
