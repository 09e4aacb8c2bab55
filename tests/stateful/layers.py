"""Random layers from a seed: all file types, links, xattrs, whiteouts and opaque directories, over very few names.

They are valid layers of overlayfs: a whiteout stands only above something that it hides, and never in an opaque
directory, which the kernel's documentation leaves undefined.
"""

from __future__ import annotations

import os
import stat
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

#: So few that operations meet; one is no UTF-8, one has a space.
NAMES = (b"a", b"b", b"c\xff", b"d d")
DEPTH = 3
TARGETS = (b"a", b"b", b"../a", b"a/b", b"../c\xff", b"nowhere", b"d d")
XATTRS = (b"user.one", b"user.two", b"trusted.three", b"security.four")
VALUES = (b"", b"1", b"\0\xff" * 50, b"v" * 3000)
OPAQUE = b"trusted.overlay.opaque"

Visible = dict[bytes, bool]


def build(layers: Sequence[Path], seed: int) -> None:
    """Fill the directories ``layers``, topmost first. Seed 0 leaves them empty."""
    visible: Visible = {}
    for index, layer in enumerate(reversed(layers)):
        if seed:
            _Layer(os.fsencode(layer), Random(seed * 100 + index), visible).fill(b"", DEPTH)


class _Layer:
    """One layer while it is built; ``visible`` holds each path shown so far, and whether it is a directory."""

    def __init__(self, root: bytes, random: Random, visible: Visible) -> None:
        self._root = root
        self._random = random
        self._visible = visible
        self._files: list[bytes] = []

    def fill(self, directory: bytes, depth: int) -> None:
        """Make some of the names in ``directory``; the times of what is there come last."""
        for name in NAMES:
            if self._random.random() < 0.6:
                path = os.path.join(directory, name)
                self._kind(path, depth)(path)
                if self._visible.get(path) and os.path.isdir(self._at(path)):
                    self.fill(path, depth - 1)
                    self._dress(path)

    def _kind(self, path: bytes, depth: int) -> Callable[[bytes], None]:
        kinds = [self._file, self._file, self._file, self._link, self._symlink, self._node]
        if depth > 1:
            kinds += [self._directory] * 5 + [self._opaque]
        if path in self._visible:
            kinds += [self._whiteout] * 2
        return self._random.choice(kinds)

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self._root, path)

    def _hide(self, path: bytes) -> None:
        """What stands at ``path`` in this layer hides all that the layers below have there."""
        for hidden in [below for below in self._visible if (below + b"/").startswith(path + b"/")]:
            del self._visible[hidden]

    def _file(self, path: bytes) -> None:
        self._hide(path)
        with open(self._at(path), "wb") as out:
            out.write(self._random.randbytes(self._random.choice((0, 1, 10, 5000))))
        self._files.append(path)
        self._visible[path] = False
        self._dress(path)

    def _link(self, path: bytes) -> None:
        if not self._files:
            self._file(path)
            return
        self._hide(path)
        os.link(self._at(self._random.choice(self._files)), self._at(path))
        self._visible[path] = False

    def _symlink(self, path: bytes) -> None:
        self._hide(path)
        os.symlink(self._random.choice(TARGETS), self._at(path))
        self._visible[path] = False
        self._date(path)

    def _node(self, path: bytes) -> None:
        self._hide(path)
        kind, device = self._random.choice(((stat.S_IFIFO, 0), (stat.S_IFSOCK, 0), (stat.S_IFCHR, os.makedev(1, 3))))
        os.mknod(self._at(path), kind | 0o600, device)
        self._visible[path] = False
        self._dress(path)

    def _directory(self, path: bytes) -> None:
        if not self._visible.get(path):
            self._hide(path)
        os.mkdir(self._at(path))
        self._visible[path] = True

    def _opaque(self, path: bytes) -> None:
        self._hide(path)
        os.mkdir(self._at(path))
        os.setxattr(self._at(path), OPAQUE, b"y")
        self._visible[path] = True

    def _whiteout(self, path: bytes) -> None:
        self._hide(path)
        os.mknod(self._at(path), stat.S_IFCHR, os.makedev(0, 0))

    def _dress(self, path: bytes) -> None:
        mode = self._random.choice((0o644, 0o600, 0o777, 0o4755, 0o000))
        os.chown(self._at(path), self._random.choice((0, 0, 1000)), self._random.choice((0, 1000)))
        os.chmod(self._at(path), mode | (0o1000 if os.path.isdir(self._at(path)) and mode == 0o777 else 0))
        for name in XATTRS[:2] if self._random.random() < 0.3 else ():
            if not stat.S_ISFIFO(os.stat(self._at(path)).st_mode):
                self._mark(path, name)
        self._date(path)

    def _mark(self, path: bytes, name: bytes) -> None:
        try:
            os.setxattr(self._at(path), name, self._random.choice(VALUES))
        except PermissionError:  # user xattrs are for files and directories alone, xattr(7)
            os.setxattr(self._at(path), XATTRS[2], b"node")

    def _date(self, path: bytes) -> None:
        moment = self._random.choice((1_000_000_000_123_456_789, -5_000_000_000, (1 << 32) * 1_000_000_000 + 7))
        os.utime(self._at(path), ns=(moment, moment), follow_symlinks=False)
