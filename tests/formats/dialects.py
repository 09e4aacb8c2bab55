"""Layers written by hand in each dialect: how a test deletes a name, hides what is below a directory, looks around."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import unionfs

    Make = Callable[[Path], None]

#: A tree as a test writes it: a path ends in "/" for a directory, the value is a file's content.
Content = dict[str, str]


class Dialect(NamedTuple):
    """One way to write a layer. ``delete`` and ``hide`` take a path within the layer."""

    name: str
    delete: Make
    hide: Make
    options: str | None = None
    """What the kernel's overlayfs needs to read it as a lower layer, None if it cannot."""


def device(path: Path) -> None:
    """Delete ``path`` with a character device 0:0."""
    os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))


def marker(path: Path) -> None:
    """Delete ``path`` with an empty file ``.wh.NAME`` beside it."""
    path.with_name(f".wh.{path.name}").touch()


def opaque_marker(path: Path) -> None:
    """Hide what is below the directory ``path`` with a file in it."""
    (path / ".wh..wh..opq").touch()


def attribute(name: str, value: bytes = b"y") -> Make:
    """Return what sets the extended attribute ``name`` of a path."""
    return lambda path: os.setxattr(path, name, value, follow_symlinks=False)


def empty_file(prefix: str) -> Make:
    """Return what deletes a path with an empty file that has an attribute, in a directory that says so."""

    def delete(path: Path) -> None:
        path.touch()
        os.setxattr(path, f"{prefix}.overlay.whiteout", b"")
        os.setxattr(path.parent, f"{prefix}.overlay.opaque", b"x")

    return delete


DIALECTS = {
    entry.name: entry
    for entry in (
        Dialect("overlay", device, attribute("trusted.overlay.opaque"), ""),
        Dialect("userxattr", device, attribute("user.overlay.opaque"), "userxattr"),
        Dialect("xattr-whiteouts", empty_file("trusted"), attribute("trusted.overlay.opaque"), ""),
        Dialect("user-xattr-whiteouts", empty_file("user"), attribute("user.overlay.opaque"), "userxattr"),
        Dialect("oci", marker, opaque_marker),
        Dialect("fuse-overlayfs", device, attribute("user.fuseoverlayfs.opaque")),
        Dialect("fuse-overlayfs-markers", marker, attribute("user.fuseoverlayfs.opaque")),
    )
}


def write(layer: Path, content: Mapping[str, str]) -> None:
    """Make the files and directories of ``content`` below ``layer``, and the directories that they stand in."""
    for path, data in content.items():
        if path.endswith("/"):
            (layer / path).mkdir(parents=True, exist_ok=True)
        else:
            (layer / path).parent.mkdir(parents=True, exist_ok=True)
            (layer / path).write_text(data)


class Looker:
    """Looks at a tree through a mount or a ``Union``, with the same few words; paths are relative to its root."""

    def __init__(self, root: Path | unionfs.Union) -> None:
        self.root = root

    def names(self, path: str = "") -> list[str]:
        """Return the names in a directory."""
        return sorted(os.listdir(self.root / path) if isinstance(self.root, Path) else self.root.listdir("/" + path))

    def stat(self, path: str) -> os.stat_result:
        """Return the attributes of what is at ``path`` itself."""
        return os.lstat(self.root / path) if isinstance(self.root, Path) else self.root.lstat("/" + path)

    def read(self, path: str) -> str:
        """Return a file's content."""
        return (self.root / path).read_text() if isinstance(self.root, Path) else self.root.read_text("/" + path)

    def mode(self, path: str) -> int:
        """Return st_mode of what is at ``path``, 0 if there is nothing."""
        try:
            return self.stat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return 0

    def is_directory(self, path: str) -> bool:
        """Tell whether there is a directory at ``path``."""
        return stat.S_ISDIR(self.mode(path))

    def tree(self, path: str = "") -> Content:
        """Return all that is below ``path``: each directory is listed before anything in it is looked up."""
        found: Content = {}
        for name in self.names(path):
            place = path + name
            if self.is_directory(place):
                found[place + "/"] = ""
                found.update(self.tree(place + "/"))
            else:
                found[place] = self.read(place)
        return found
