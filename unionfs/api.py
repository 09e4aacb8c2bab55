"""Mounts and processes for programs: ``mount`` and ``run`` start ``unionmount``, which serves from its own process.

A program that served the mount which it reads would wait for itself: it is held up in the kernel while it holds
Python's lock. This module knows the command line and nothing of what is behind it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from unionfs import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_START = "import sys; sys.path.insert(0, sys.argv.pop(1)); from unionfs.cli.main import main; sys.exit(main())"
_HOME = str(Path(__file__).parents[1])


@contextmanager
def mount(
    lower: Sequence[AnyPath] | AnyPath,
    upper: AnyPath | None = None,
    mountpoint: AnyPath | None = None,
    *,
    workdir: AnyPath | None = None,
    volatile: bool = False,
    options: Sequence[str] = (),
) -> Iterator[Path]:
    """Mount a stack of layers for the time of a ``with`` block; the path of its root is what the block gets.

    ``lower`` are directories, topmost first. ``upper`` takes the changes (None: the mount is read-only), ``workdir``
    is an empty directory on its file system (None: a hidden sibling of it). ``mountpoint`` is an existing directory
    (None: a temporary one, removed at the end). ``volatile`` gives up durability for speed. ``options`` are further
    mount options, as ``unionmount -o`` takes them.

    Any process may use the mount while the block runs. At its end the mount must not be in use any longer.

    Raises :class:`unionfs.errors.MountError` if it cannot be mounted, saying why, and if it is still in use at the
    end: it is then taken away all the same, and ends with its last user. Semantics: Linux's
    Documentation/filesystems/overlayfs.rst.

    >>> with unionfs.mount(lower=["/data/base"], upper="/data/run-1") as root:
    ...     subprocess.run(["./simulate"], cwd=root, check=True)
    """
    if mountpoint is not None:
        yield from _mounted(lower, upper, Path(os.fsdecode(mountpoint)), workdir, volatile=volatile, options=options)
        return
    made = Path(tempfile.mkdtemp(prefix="unionfs-"))
    try:
        yield from _mounted(lower, upper, made, workdir, volatile=volatile, options=options)
    finally:
        made.rmdir()


def _mounted(
    lower: Sequence[AnyPath] | AnyPath,
    upper: AnyPath | None,
    point: Path,
    workdir: AnyPath | None,
    *,
    volatile: bool,
    options: Sequence[str],
) -> Iterator[Path]:
    words = [*_layers(lower, upper, workdir), *(word for option in options for word in ("-o", option))]
    words += ["-o", "volatile"] if volatile else []
    _unionmount(point, "mount", *words, "--", os.fspath(point))
    try:
        yield point
    finally:
        _unmount(point)


def _unmount(point: Path) -> None:
    try:
        _unionmount(point, "umount", os.fspath(point))
    except errors.MountError:
        _unionmount(point, "umount", "-l", os.fspath(point))
        raise


def run(
    argv: Sequence[AnyPath],
    lower: Sequence[AnyPath] | AnyPath = "/",
    upper: AnyPath | None = None,
    *,
    workdir: AnyPath | None = None,
    chroot: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run one process whose root directory is a stack of layers, and wait for it; its outcome is what is returned.

    ``argv`` is the command and its arguments, found in the stack. ``lower`` are directories, topmost first ("/": this
    machine). ``upper`` takes the changes; None: a temporary layer, gone at the end. ``chroot`` uses chroot(2) alone,
    without namespaces, which takes root. ``options`` are those of :func:`subprocess.run`: ``capture_output``,
    ``timeout`` (in seconds), ``input``, ``env``, ``check`` …

    ``returncode`` is the exit status of the process, 128 + n if signal n ended it, 127 if the command does not exist,
    126 if it cannot be executed, and 1 with a line on standard error if the stack cannot be made.
    Raises subprocess.CalledProcessError if asked to ``check``, subprocess.TimeoutExpired.

    >>> unionfs.run(["rm", "-rf", "/usr/share/doc"], lower="/").returncode
    0
    """
    words = [*_layers(lower, upper, workdir), *(["--chroot"] if chroot else []), "--", *map(os.fsdecode, argv)]
    check = options.pop("check", False)
    done = subprocess.run(_command("run", *words), check=False, **options)
    done.args = list(argv)
    if check:
        done.check_returncode()
    return done


def _layers(lower: Sequence[AnyPath] | AnyPath, upper: AnyPath | None, workdir: AnyPath | None) -> list[str]:
    """Return the words that name the layers; paths stand as words of their own, so nothing in them needs an escape."""
    lowers = [lower] if isinstance(lower, (str, bytes, os.PathLike)) else lower
    words = [word for path in lowers for word in ("--lower", os.fsdecode(path))]
    words += ["--upper", os.fsdecode(upper)] if upper is not None else []
    return words + (["--work", os.fsdecode(workdir)] if workdir is not None else [])


def _command(*words: str) -> list[str]:
    return [sys.executable, "-c", _START, _HOME, *words]


def _unionmount(point: Path, *words: str) -> None:
    """Run a command that has to succeed. Raises MountError with what it said otherwise."""
    done = subprocess.run(_command(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise errors.MountError(mountpoint=point, reason=said[-1].removeprefix("unionmount: "))
