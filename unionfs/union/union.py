"""``Union``: a stack of layers as one tree, in the program that uses it: no mount, no privilege, no server.

Paths for people on top of nodes for the kernel. Permissions are those of the process on the files of the layers: what
it may read it may also change, since the change happens to a copy of its own in the writable layer.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import os
import warnings
from typing import overload

from unionfs.union import stack as stacks
from unionfs.union.inode_flags import forbidding
from unionfs.union.nodes import DirNode
from unionfs.union.paths import error
from unionfs.union.stack import Config
from unionfs.union.writing import Writing, _caller

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from io import BufferedRandom, BufferedReader, BufferedWriter, FileIO, TextIOWrapper
    from types import TracebackType
    from typing import IO, Any, Literal

    from unionfs.union.changes import Change
    from unionfs.union.explain import Explanation
    from unionfs.union.nodes import Node
    from unionfs.union.turns import Path

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
_CREATION_MODE = 0o666


class Union(Writing):
    """Read-only layers under one writable layer, merged as the kernel's overlayfs merges them.

    ``lower`` are the directories to stack, topmost first; ``upper`` is the directory that takes every change, and the
    union is read-only without one; ``workdir`` is an empty directory on the same file system as ``upper`` (a hidden
    sibling of it is made if none is named). ``volatile`` writes nothing to disk on purpose: faster, and lost in a
    crash.

    Paths are str, bytes or path-like, relative to the root of the union whether they begin with a slash or not; links
    and ``..`` never lead out of it. It may be used from several threads, which take turns. While it is open, nothing
    else may change the layers, and nothing else can open the same ``upper``. A file that was opened before its copy-up
    keeps showing the lower layer's data.

    Raises :class:`unionfs.errors.LayerError` if a directory cannot be a layer; it names the directory and says what to
    do. Semantics: Linux's Documentation/filesystems/overlayfs.rst.

    >>> with unionfs.Union(lower=["/usr"], upper="/tmp/changes") as union:
    ...     union.write_text("share/motd", "hello")
    ...     [str(change) for change in union.changes()]
    ['C /share', 'A /share/motd']
    """

    def __init__(
        self,
        lower: Sequence[Path] | Path,
        upper: Path | None = None,
        workdir: Path | None = None,
        volatile: bool = False,
    ) -> None:
        lowers = [lower] if isinstance(lower, (str, bytes, os.PathLike)) else lower
        top = None if upper is None else os.fsencode(upper)
        work = None if workdir is None else os.fsencode(workdir)
        self._own_workdir = top is not None and work is None
        if top is not None and work is None:
            work = stacks.default_workdir(top)
        config = Config(list(map(os.fsencode, lowers)), top, work, volatile=volatile)
        super().__init__(stacks.open_stack(config, own_process=False))

    def __enter__(self) -> Union:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_open_stack", None) is not None:
            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        if self._open_stack is None:
            return "<Union, closed>"
        config = self._open_stack.config
        upper = "" if config.upper is None else f", upper={os.fsdecode(config.upper)!r}"
        return f"<Union lower={[os.fsdecode(path) for path in config.lowers]!r}{upper}>"

    def close(self) -> None:
        """Close all layers and give the locks back; files that are open stay open. A second call does nothing.

        >>> union = unionfs.Union(lower=["/usr"])
        >>> union.close()
        """
        with self._lock:
            stack, self._open_stack = self._open_stack, None
            if stack is not None:
                stack.close()
                if self._own_workdir and stack.config.workdir is not None:
                    stacks.remove_workdir(stack.config.workdir)

    # -- data --------------------------------------------------------------------------------------------------------

    # fmt: off
    @overload
    def open(self, path: Path, mode: Literal["r", "w", "a", "x", "r+", "w+", "a+", "x+", "rt", "wt", "at", "xt"] = "r",
             buffering: int = -1, encoding: str | None = None, errors: str | None = None,
             newline: str | None = None) -> TextIOWrapper: ...
    @overload
    def open(self, path: Path, mode: Literal["rb", "wb", "ab", "xb", "rb+", "r+b", "wb+", "w+b", "ab+", "a+b"],
             buffering: Literal[0]) -> FileIO: ...
    @overload
    def open(self, path: Path, mode: Literal["rb"], buffering: Literal[-1, 1] = -1) -> BufferedReader: ...
    @overload
    def open(self, path: Path, mode: Literal["wb", "ab", "xb"], buffering: Literal[-1, 1] = -1) -> BufferedWriter: ...
    @overload
    def open(self, path: Path, mode: Literal["rb+", "r+b", "wb+", "w+b", "ab+", "a+b"],
             buffering: Literal[-1, 1] = -1) -> BufferedRandom: ...
    @overload
    def open(self, path: Path, mode: str, buffering: int = -1, encoding: str | None = None, errors: str | None = None,
             newline: str | None = None) -> IO[Any]: ...
    # fmt: on
    def open(
        self,
        path: Path,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a file and return a file object, with the modes and arguments of the built-in :func:`open`.

        To open a file for writing copies it up (without its data, if it is truncated). The object is a real file of a
        layer: ``fileno()`` works with everything that takes a descriptor. Raises OSError: ENOENT, EEXIST, EISDIR,
        EACCES, EROFS, ELOOP, ENOSPC; ValueError for a mode that makes no sense.

        >>> with union.open("/etc/hosts", "a") as hosts:
        ...     hosts.write("10.0.0.1 db\\n")
        """

        def opener(_path: object, flags: int) -> int:
            return self._open(path, flags)

        named = os.fspath(path)
        return builtins.open(named, mode, buffering, encoding, errors, newline, opener=opener)

    def _open(self, path: Path, flags: int) -> int:
        """Return a descriptor for ``path``, opened as open(2) does with ``flags``."""
        exclusive = bool(flags & os.O_CREAT and flags & os.O_EXCL)
        with self._turn(path):
            place = self._locate(path, follow=not exclusive)
            if place.node is None:
                return self._create(place.parent, place.name, flags)
            if exclusive:
                raise error(errno.EEXIST)
            if isinstance(place.node, DirNode):
                raise error(errno.EISDIR)
            handle = self._handle(place.node, flags)
        # Opening may wait (a FIFO, for its other end), so it must not be done within the turn.
        try:
            return os.open(b"/proc/self/fd/%d" % handle, flags & ~os.O_CREAT | os.O_CLOEXEC)
        except OSError as problem:
            problem.filename = os.fspath(path)
            raise
        finally:
            os.close(handle)

    def _handle(self, node: Node, flags: int) -> int:
        """Return what stands for the file behind ``node`` (open(2), O_PATH), copied up first if it is to be written."""
        if flags & _WRITING:
            self._writable().change(node, truncate=bool(flags & os.O_TRUNC), forbidding=forbidding(flags))
        return self._stack.view.open(node, os.O_PATH)

    def _create(self, parent: DirNode, name: bytes, flags: int) -> int:
        if not flags & os.O_CREAT:
            raise error(errno.ENOENT)
        edit = self._writable()
        node, _state, descriptor = edit.create(parent, name, _CREATION_MODE, _caller(edit))
        self._paths.remember(node)
        if flags & os.O_APPEND:
            fcntl.fcntl(descriptor, fcntl.F_SETFL, os.O_APPEND)
        return descriptor

    def read_bytes(self, path: Path) -> bytes:
        """Return the whole content of a file. Raises OSError as :meth:`open` does.

        >>> union.read_bytes("/etc/hosts")
        b'127.0.0.1 localhost\\n'
        """
        with self.open(path, "rb") as file:
            return file.read()

    def read_text(self, path: Path, encoding: str | None = None, errors: str | None = None) -> str:
        """Return the whole content of a text file. Raises OSError as :meth:`open` does, and UnicodeDecodeError.

        >>> union.read_text("/etc/hosts")
        '127.0.0.1 localhost\\n'
        """
        with self.open(path, "r", -1, encoding, errors) as file:
            return str(file.read())

    def write_bytes(self, path: Path, data: bytes) -> int:
        """Make ``data`` the whole content of a file, new or not; return its length in bytes. Raises as :meth:`open`.

        >>> union.write_bytes("/srv/data", bytes(1024))
        1024
        """
        with self.open(path, "wb") as file:
            return file.write(data)

    def write_text(
        self, path: Path, data: str, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> int:
        """Make ``data`` the whole content of a text file, new or not; return its length in characters.

        Raises OSError as :meth:`open` does, and UnicodeEncodeError.

        >>> union.write_text("/etc/hostname", "box\\n")
        4
        """
        with self.open(path, "w", -1, encoding, errors, newline) as file:
            return int(file.write(data))

    # -- the layers --------------------------------------------------------------------------------------------------

    def changes(self) -> Iterator[Change]:
        """Yield what the writable layer adds (A), changes (C) and deletes (D), sorted by path as ``docker diff`` does.

        Nothing in a union without a writable layer. Raises OSError. See :mod:`unionfs.union.changes` for what counts
        as which.

        >>> [str(change) for change in union.changes()]
        ['C /etc', 'D /etc/motd']
        """
        from unionfs.union.changes import changes

        with self._turn():
            return iter(changes(self._stack.view))

    def explain(self, path: Path) -> Explanation:
        """Return which layer a name comes from and what each layer has there: shown, merged, hidden, deleting, absent.

        The name need not exist: a whiteout is an explanation too. Raises OSError if its directory does not exist.

        >>> print(union.explain("/etc/motd"))
        /etc/motd: deleted by /tmp/changes
          /tmp/changes: whiteout
          /usr: file (hidden)
        """
        from unionfs.union.explain import explain

        with self._turn(path):
            return explain(self._stack.view, self._locate(path, follow=False))
