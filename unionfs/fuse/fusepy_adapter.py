"""The portable transport: the same union behind libfuse, by way of fusepy (libfuse 2) or mfusepy (libfuse 2 and 3).

``serve`` mounts and serves in the process it is called in, which must be one of its own: libfuse's way into the
background is never used. One thread answers all requests, one after the other.

What libfuse does not let through
---------------------------------
libfuse's high-level interface names files by path, and libfuse 2 speaks version 7.19 of the kernel's protocol. So, of
what a program may expect of a file system, this does not hold here, while it holds with the direct transport:

- An open directory, FIFO or device that is removed, and an open file whose directory is removed after it: reading and
  writing go on, but fstat(2), fchmod(2) and the like fail with ENOENT or ESTALE, since libfuse has no path to ask for.
  An open file that is unlinked alone works (see ``fusepy_paths``).
- rename(2) over a file that is open is two steps for libfuse: if the server is killed between them, the new name is
  missing and the file is still at its old one.
- Two names of one file (hard links) are two inodes for the kernel: same st_ino, same attributes, same data after each
  open, but not coherent while both are open (mappings above all). What the kernel checks by inode is not checked
  between them: locks, overlapping ranges of copy_file_range(2), and that a rename of one to the other changes nothing:
  it takes rights, and takes the first name away if the second is open. Attributes are asked for each time for that
  reason: stat(2) is a request, where the direct transport has none, except in a stack that is read-only.
- renameat2(2) has no flags (EINVAL), SEEK_HOLE and SEEK_DATA see no holes, copy_file_range(2) goes through memory,
  statx(2) has no time of birth; libfuse 3 lets RENAME_NOREPLACE and RENAME_EXCHANGE through, none of the others.
- O_TMPFILE is EOPNOTSUPP. syncfs(2) reaches no further than the kernel.
- POSIX ACLs are stored, not enforced, with libfuse 2.
- File handles (name_to_handle_at(2)) are stale once the kernel has dropped what it knew of the file.
- Opening a file with O_TRUNC takes its set-id bits away by user id, not by the capability CAP_FSETID.
- Names that begin with ``.fuse_hidden`` and go on with 16 hexadecimal digits are libfuse's: an open file that is given
  such a name is unlinked.
- One slow read, or the copy-up of a large file, holds up everybody else.
- ``nosymfollow`` cannot be asked for; the words for access times are dropped, as they mean nothing to any FUSE mount.
"""

from __future__ import annotations

import errno
import os
import signal
import sys

from unionfs import errors
from unionfs.fuse import fusepy_library
from unionfs.fuse.fusepy_operations import Operations
from unionfs.syscalls import mounts, process
from unionfs.union import stack as stacks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from unionfs.fuse.fusepy_library import Library
    from unionfs.fuse.mounting import MountOptions
    from unionfs.union.stack import Config, Stack

_FOREVER_S = 1 << 31
# The words that libfuse knows (lib/mount.c), by what they set and by what they clear.
_FLAG_WORDS = (
    (mounts.MS_RDONLY, "ro", "rw"),
    (mounts.MS_NOSUID, "nosuid", "suid"),
    (mounts.MS_NODEV, "nodev", "dev"),
    (mounts.MS_NOEXEC, "noexec", "exec"),
    (mounts.MS_SYNCHRONOUS, "sync", "async"),
    (mounts.MS_NOATIME, "noatime", "atime"),
)
_PRIVILEGED_WORDS = ("suid", "dev")
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def probe() -> None:
    """See that this transport can be used. Raises errors.FusepyMissing or errors.LibfuseMissing."""
    fusepy_library.load()


def serve(
    config: Config,
    mountpoint: bytes,
    options: MountOptions,
    *,
    debug: bool,
    ready: Callable[[], None],
    open_stack: Callable[[Config], Stack] = stacks.open_stack,
    describe: Callable[[Stack, dict[str, object], bytes], bytes | None] = lambda _stack, _statistics, _name: None,
    report: Callable[[str], None] = lambda text: print(text, file=sys.stderr),  # noqa: T201 - the log of a foreground server
) -> None:
    """Mount ``config`` on the directory ``mountpoint`` and serve it in this process until it is unmounted.

    SIGTERM, SIGINT and SIGHUP unmount it. ``ready`` is called once the mount answers; ``debug`` lets libfuse print each
    request on standard error; ``describe`` answers for the virtual attributes ``user.unionfs.NAME`` of the root, and is
    given what was asked so far; ``report`` is told of each request that ended in a bug. Raises errors.FusepyMissing,
    errors.LibfuseMissing, errors.LayerError, or errors.MountError with what libfuse said.
    """
    library = fusepy_library.load()
    words = _words(library, mountpoint, options, read_only=config.upper is None)
    os.umask(0)
    stack = open_stack(config)
    try:
        start = _Start(ready, silent=not debug)
        operations = Operations(
            stack, library.caller, lambda name: describe(stack, callbacks.statistics(stack), name), start.answering
        )
        callbacks = _Callbacks(operations, config.offers.absent, report)
        library.prepare(callbacks)
        os.chdir("/")  # so that no directory is kept busy
        _run(library, callbacks, mountpoint, words | {"debug": debug}, start)
    finally:
        stack.close()


def _run(
    library: Library, callbacks: _Callbacks, mountpoint: bytes, words: dict[str, str | int | bool], start: _Start
) -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)  # libfuse takes over those that nobody handles
    try:
        library.run(callbacks, mountpoint, words)
    except RuntimeError as error:
        if start.is_over and library.version == 3:  # which does not tell a signal from an error
            return
        reason = start.end() or f"libfuse ended with status {error}"
        raise errors.MountError(mountpoint=mountpoint, reason=reason) from error
    finally:
        start.end()


# -- options ---------------------------------------------------------------------------------------------------------


def _words(
    library: Library, mountpoint: bytes, options: MountOptions, *, read_only: bool
) -> dict[str, str | int | bool]:
    """Return the options for libfuse by name. Raises errors.MountError for one that it has no word for."""
    unknown = {"nosymfollow": options.flags & mounts.MS_NOSYMFOLLOW, "blkdev": options.blkdev}
    for word, asked in unknown.items():
        if asked:
            raise errors.MountError(mountpoint=mountpoint, reason=f"libfuse cannot pass '{word}' on")
    privileged = process.has_capability(process.CAP_SYS_ADMIN)
    flags = options.flags | (mounts.MS_RDONLY if read_only else 0)
    words: dict[str, str | int | bool] = {
        "default_permissions": True,
        "use_ino": True,
        "entry_timeout": _FOREVER_S,
        "negative_timeout": _FOREVER_S,
        # The kernel takes the names of a hard link for different files: a change of one would not show in the others.
        "attr_timeout": _FOREVER_S if read_only else 0,
        "nonempty": library.version == 2,  # libfuse 3 does not mind
        "allow_other": privileged or options.allow_other,
        "dirsync": bool(flags & mounts.MS_DIRSYNC),
    }
    for flag, set_word, clear_word in _FLAG_WORDS:
        word = set_word if flags & flag else clear_word
        words[word] = privileged or word not in _PRIVILEGED_WORDS
    return words | _named_words(options)


def _named_words(options: MountOptions) -> dict[str, str | int | bool]:
    named = {"fsname": options.fsname, "subtype": options.subtype}
    named |= {name: value for name, _, value in (word.partition("=") for word in options.security)}
    numbers = {"max_read": options.max_read, "blksize": options.blksize}
    return {
        **{name: _escape(value) for name, value in named.items() if value},
        **{name: number for name, number in numbers.items() if number},
    }


def _escape(value: str) -> str:
    """Write a value such that libfuse's parser takes it as it is (fuse_opt_parse in lib/fuse_opt.c)."""
    plain = os.fsencode(value).decode(fusepy_library.ENCODING)
    return plain.replace("\\", "\\\\").replace(",", "\\,")


# -- around libfuse --------------------------------------------------------------------------------------------------


class _Callbacks:
    """What fusepy is given: the public methods of ``operations``, those that are ``absent`` apart, which here raise
    OSError with an errno alone.
    """

    def __init__(self, operations: Operations, absent: frozenset[str], report: Callable[[str], None]) -> None:
        self._counts: dict[str, int] = {}
        self._errors = 0
        self._between = operations.between
        self._report = report
        for name in dir(operations):
            if not name.startswith("_") and name not in absent | {"between"}:
                setattr(self, name, self._guarded(name, getattr(operations, name)))

    def statistics(self, stack: Stack) -> dict[str, object]:
        """Return what libfuse has asked so far: as ``Server.statistics``, by libfuse's names of operations."""
        return {"requests": self._counts, "nodes": len(stack.view.nodes.by_id), "errors": self._errors}

    def _guarded(self, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: object) -> Any:
            self._counts[name] = self._counts.get(name, 0) + 1
            try:
                self._between()
                return operation(*arguments)
            except OSError as error:
                raise OSError(error.errno or errno.EIO, error.strerror) from None
            except Exception:  # a bug: what asked for it gets EIO, and the mount lives on
                import traceback

                self._errors += 1
                self._report(f"{name}{arguments!r}: {traceback.format_exc()}")
                raise OSError(errno.EIO, os.strerror(errno.EIO)) from None

        return call


class _Start:
    """The time until the mount answers. What libfuse then prints on standard error tells why it could not mount."""

    def __init__(self, ready: Callable[[], None], *, silent: bool) -> None:
        self.is_over = False
        self._ready = ready
        self._said = b""
        self._reading = self._standard_error = -1
        if silent:
            self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._standard_error = os.dup(2)
            os.dup2(writing, 2)
            os.close(writing)

    def answering(self) -> None:
        """The mount answers."""
        self.is_over = True
        self.end()
        self._ready()

    def end(self) -> str:
        """Give standard error back; return what was printed on it, on one line."""
        if self._reading >= 0:
            os.dup2(self._standard_error, 2)
            try:
                self._said = os.read(self._reading, 65536)
            except BlockingIOError:
                pass  # nothing was
            os.close(self._standard_error)
            os.close(self._reading)
            self._reading = -1
        lines = [line.partition(": ")[2] or line for line in os.fsdecode(self._said).splitlines()]
        return "; ".join(lines)
