"""What a server tells about itself: the virtual extended attributes ``user.unionfs.*`` of its root directory."""

from __future__ import annotations

import json

from unionfs import errors
from unionfs.syscalls import files


def read(mountpoint: bytes, name: str) -> dict[str, object]:
    """Return the attribute ``name`` of the mount at ``mountpoint``, for one request. Raises errors.NotMounted."""
    try:
        value = files.getxattr(mountpoint, b"user.unionfs." + name.encode())
    except OSError:
        raise errors.NotMounted(mountpoint=mountpoint) from None
    found = json.loads(value)
    assert isinstance(found, dict)
    return found
