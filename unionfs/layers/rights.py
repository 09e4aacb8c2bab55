"""Rights that a server without privilege lends itself on its own files.

Without CAP_DAC_OVERRIDE it needs rights there that nobody who asked had to have: to write to a directory of mode 0555
in order to move it, or to put the copy of a file there, to read one of mode 0 in order to remove it (``vfs_rename`` in
fs/namei.c, path_resolution(7)). While they are lent the mode is another one, so notes in the workdir say what it is to
be: whoever opens the layer after a crash takes the rights back. Loaded where something was refused, as to root nothing
is.
"""

from __future__ import annotations

import os
import stat

from unionfs.syscalls import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")
    Place = tuple[int, bytes]
    Note = Callable[[int, int], Callable[[], None]]
    Lent = tuple[int, int, Callable[[], None]]

_NOTE_BYTES = 4000  # about what a symbolic link holds


def lend(act: Callable[[], T], *places: Place, note: Note | None = None) -> T:
    """Do ``act`` while the owner of ``places`` has all rights on them.

    A place is an open directory and a name in it, empty for the directory itself; it need not exist. ``note`` is told
    of an open file and its mode before that is changed, and returns what is called once it is as it was. Raises what
    ``act`` raises.
    """
    lent: list[Lent] = []
    try:
        for place in places:
            _lend(*place, lent, note)
        return act()
    finally:
        _give_back(lent)


def _lend(directory: int, name: bytes, lent: list[Lent], note: Note | None) -> None:
    """Give the owner all rights on a file that is ours; add it, open, to ``lent``, with the mode that it had."""
    try:
        flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, dir_fd=directory) if name else os.dup(directory)
    except FileNotFoundError:
        return
    state = os.fstat(descriptor)
    mode = stat.S_IMODE(state.st_mode)
    lost = mode & stat.S_ISGID and state.st_gid not in (os.getegid(), *os.getgroups())  # chmod(2) takes it away
    if state.st_uid != os.geteuid() or stat.S_ISLNK(state.st_mode) or lost or mode & stat.S_IRWXU == stat.S_IRWXU:
        os.close(descriptor)
        return
    lent.append((descriptor, mode, (lambda: None) if note is None else note(descriptor, mode)))
    os.chmod(files.proc_path(descriptor), mode | stat.S_IRWXU)


def _give_back(lent: list[Lent]) -> None:
    """Give each file the mode that it had, the last one first. What fails keeps no other from it; its note stays."""
    if not lent:
        return
    descriptor, mode, done = lent.pop()
    try:
        os.chmod(files.proc_path(descriptor), mode)
        done()
    finally:
        os.close(descriptor)
        _give_back(lent)


def write_note(root: int, note: Place, opened: int, mode: int, place: Place) -> bool:
    """Write down that an open file is to have ``mode``, should it be met at ``place`` of the layer with that root; tell
    whether that is in it, and there is room for a note: what is asked for does not fail for want of one.
    """
    top = os.readlink(files.proc_path(root)).rstrip(b"/") + b"/"
    path = os.path.join(os.readlink(files.proc_path(place[0])), place[1])
    if not path.startswith(top) or len(path) >= _NOTE_BYTES:
        return False
    try:
        os.symlink(b"%o:%d:%s" % (mode, os.fstat(opened).st_ino, path[len(top) :]), note[1], dir_fd=note[0])
    except OSError:
        return False
    return True


def take_back(root: int, work: int, notes: Iterable[bytes]) -> None:
    """Take away the rights that were lent as a crash came, by the ``notes`` in ``work``. Raises OSError."""
    for note in notes:
        mode, ino, path = os.readlink(note, dir_fd=work).split(b":", 2)
        try:
            opened = files.openat2(root, path or b".", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, files.CONFINED)
        except OSError:
            continue  # it is not there
        try:
            state = os.fstat(opened)
            if (b"%d" % state.st_ino, stat.S_IMODE(state.st_mode)) == (ino, int(mode, 8) | stat.S_IRWXU):
                os.chmod(files.proc_path(opened), int(mode, 8))
        finally:
            os.close(opened)
