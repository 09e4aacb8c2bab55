"""What a server tells about itself: the virtual extended attributes ``user.unionfs.*`` of its root directory."""

from __future__ import annotations

import json
import os

from unionfs import errors


def read(mountpoint: bytes, name: str) -> dict[str, object]:
    """Return the attribute ``name`` of the mount at ``mountpoint``. Raises errors.NotMounted."""
    try:
        value = os.getxattr(mountpoint, f"user.unionfs.{name}")
    except OSError:
        raise errors.NotMounted(mountpoint=mountpoint) from None
    found = json.loads(value)
    assert isinstance(found, dict)
    return found
