"""Importing this package registers every case."""

from . import copyup, directories, files, links, rename, unlinked

__all__ = ["copyup", "directories", "files", "links", "rename", "unlinked"]
