"""Importing this package registers every case."""

from . import (
    copyup,
    directories,
    files,
    identity,
    links,
    locks,
    metadata,
    names,
    permissions,
    rename,
    space,
    unlinked,
    xattrs,
)

__all__ = [
    "copyup",
    "directories",
    "files",
    "identity",
    "links",
    "locks",
    "metadata",
    "names",
    "permissions",
    "rename",
    "space",
    "unlinked",
    "xattrs",
]
