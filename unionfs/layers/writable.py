"""The layer that may be written, and its workdir: staging, atomic publishing, whiteouts.

What is to appear in the layer is first made whole in the workdir, under a name that no program can reach, and then
renamed into place. A crash leaves at most a file in the workdir, which the next mount sweeps away.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import errors, ondisk
from unionfs.layers.layer import (
    DT_CHR,
    DT_REG,
    DescriptorCache,
    Dir,
    Layer,
    pace_of_writing_out,
    with_owners_rights,
)
from unionfs.syscalls import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from unionfs.layers.rights import Place

    T = TypeVar("T")
    WriteOut = Callable[[int], None]

_WHITEOUT = b"#whiteout"
_NOTE = b"~lent"  # what the names of notes of lent rights end with
_WHITEOUT_MODE = stat.S_IFCHR
_HINTS = (ondisk.ORIGIN, ondisk.NLINK, ondisk.PROTATTR, ondisk.IMPURE)


class WritableLayer(Layer):
    """The top of a stack. ``work`` is a directory on the same file system, for this layer's use alone.

    Unless ``durable``, as for ``volatile`` mounts, a crash may leave names with half of their data. ``write_out`` is
    called with an open file before it gets its name; ``pace`` is how long that takes.
    """

    __slots__ = ("_counter", "_has_whiteout", "_links_whiteouts", "dialect", "pace", "work", "write_out")

    def __init__(
        self,
        path: bytes,
        fd: int,
        work: int,
        cache: DescriptorCache,
        *,
        durable: bool = True,
        dialect: ondisk.Dialect | None = None,
    ) -> None:
        super().__init__(path, fd, 0, cache)
        self.work = work
        self.write_out = choose_write_out(work) if durable else leave
        self.pace = pace_of_writing_out()
        self._counter = 0
        self._has_whiteout = False  # whether the workdir has the one that all others are links to
        self._links_whiteouts = True  # until the file system has refused to give a device two names
        _sweep(fd, work)
        self.dialect = self.probe_dialect() if dialect is None else self._demand(dialect)

    def close(self) -> None:
        """Close the layer's root and its workdir."""
        super().close()
        if self.work >= 0:
            self._give_up_whiteout()
            os.close(self.work)
            self.work = -1

    def staging_name(self) -> bytes:
        """Return a name that is free in the workdir."""
        self._counter += 1
        return b"#%x" % self._counter

    def probe_dialect(self) -> ondisk.Dialect:
        """Find the strongest dialect that this file system can hold, by trying."""
        devices = self._can_write_device_whiteouts()
        for dialect in ondisk.DIALECTS:
            if (devices or not dialect.device_whiteouts) and self._can_mark(dialect):
                return dialect
        return ondisk.OCI

    def _demand(self, dialect: ondisk.Dialect) -> ondisk.Dialect:
        """Return ``dialect`` if this file system can hold it. Raises WhiteoutsImpossible."""
        if dialect.device_whiteouts and not self._can_write_device_whiteouts():
            raise errors.WhiteoutsImpossible(upper=self.path, dialect=dialect.name, reason="no device 0:0 can be made")
        if not self._can_mark(dialect):
            reason = f"no {os.fsdecode(dialect.prefix or b'')}* attribute can be set"
            raise errors.WhiteoutsImpossible(upper=self.path, dialect=dialect.name, reason=reason)
        return dialect

    def _can_write_device_whiteouts(self) -> bool:
        source, target = self.staging_name(), self.staging_name()
        try:
            os.mknod(source, _WHITEOUT_MODE, 0, dir_fd=self.work)
            files.renameat2(self.work, source, self.work, target, files.RENAME_WHITEOUT)
            state = os.stat(source, dir_fd=self.work, follow_symlinks=False)
            return ondisk.is_whiteout(state.st_mode, state.st_rdev)
        except OSError:
            return False
        finally:
            self.discard(source)
            self.discard(target)

    def _can_mark(self, dialect: ondisk.Dialect) -> bool:
        attribute = dialect.attribute(ondisk.OPAQUE)
        if attribute is None:
            return True
        path = files.proc_path(self.work)
        try:
            os.setxattr(path, attribute, b"n")
            os.removexattr(path, attribute)
        except OSError:
            return False
        return True

    def can_link(self) -> bool:
        """Tell whether a file of this layer can have several names, by trying."""
        one, other = self.staging_name(), self.staging_name()
        self._write_marker(self.work, one)
        try:
            files.linkat(self.work, one, self.work, other)
        except OSError:
            return False
        finally:
            self.discard(one)
            self.discard(other)
        return True

    # -- staging -----------------------------------------------------------------------------------------------------

    def publish(self, staged: bytes, directory: int, name: bytes, flags: int = 0) -> None:
        """Rename ``staged`` from the workdir to ``name``: the one step that makes it part of the layer.

        Raises OSError.
        """
        work = self.work
        try:
            self.with_owners_rights(
                lambda: files.renameat2(work, staged, directory, name, flags),
                (directory, b""),
                (directory, name),
                (work, staged),
            )
        except OSError as error:
            if flags != files.RENAME_NOREPLACE or error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            self._publish_plainly(staged, directory, name)

    def _publish_plainly(self, staged: bytes, directory: int, name: bytes) -> None:
        """Rename where the file system knows no flags (renameat2(2)): nobody but us makes names in this layer."""
        try:
            os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            files.renameat2(self.work, staged, directory, name)
        else:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)

    def publish_copy(self, staged: bytes, directory: int, name: bytes) -> None:
        """Publish as :meth:`publish` does what shows there already, from below: the directory keeps its times."""
        before = os.stat(directory)
        self.publish(staged, directory, name, files.RENAME_NOREPLACE)
        put_times_back(directory, before)

    def discard(self, staged: bytes) -> None:
        """Remove ``staged`` from the workdir, whatever it is; it need not exist.

        What cannot be removed now the next mount sweeps away: whatever else was done, or has failed, counts for more.
        """
        try:
            remove_tree(self.work, staged)
        except OSError:
            pass

    # -- whiteouts ---------------------------------------------------------------------------------------------------

    def write_whiteout(self, directory: int, name: bytes) -> None:
        """Hide the lower ``name``, which this layer itself does not have. One step. Raises OSError."""
        if not self.dialect.device_whiteouts:
            self._write_marker(directory, ondisk.aufs_whiteout(name))
            return
        refusal = self._link_whiteout(directory, name) if self._links_whiteouts else errno.EPERM
        if refusal:
            os.mknod(name, _WHITEOUT_MODE, 0, dir_fd=directory)
            self._links_whiteouts = refusal == errno.EMLINK  # the next one can have as many names again

    def _link_whiteout(self, directory: int, name: bytes) -> int:
        """Give one whiteout another name, which costs less than to make one more (ovl_whiteout in fs/overlayfs/dir.c).

        Return 0, or the errno with which more names are refused. Raises OSError.
        """
        if not self._has_whiteout:
            os.mknod(_WHITEOUT, _WHITEOUT_MODE, 0, dir_fd=self.work)
            self._has_whiteout = True
            self.whiteouts.add(os.stat(_WHITEOUT, dir_fd=self.work, follow_symlinks=False).st_ino)
        try:
            files.linkat(self.work, _WHITEOUT, directory, name)
        except OSError as error:
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP):
                raise
            self._give_up_whiteout()
            return error.errno
        return 0

    def _give_up_whiteout(self) -> None:
        self.whiteouts.clear()
        if self._has_whiteout:
            self._has_whiteout = False
            self.discard(_WHITEOUT)

    def _write_marker(self, directory: int, name: bytes) -> None:
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory))

    def remove_whiteout(self, directory: int, name: bytes) -> None:
        """Take away the AUFS marker that hides ``name``, which this layer has by now, if there is one.

        One that stays has no effect. A device whiteout is replaced, never removed first.
        """
        try:
            os.unlink(ondisk.aufs_whiteout(name), dir_fd=directory)
        except OSError:
            pass

    def replace_by_whiteout(self, directory: int, name: bytes, *, is_directory: bool) -> None:
        """Remove this layer's own ``name`` and hide the lower one, so that at no instant the lower one shows.

        Raises OSError.
        """
        if not self.dialect.device_whiteouts:
            self._write_marker(directory, ondisk.aufs_whiteout(name))  # of no effect while the name itself stands
            self.remove(directory, name, is_directory=is_directory)
            return
        staged = self.staging_name()
        self.write_whiteout(self.work, staged)
        try:
            self.publish(staged, directory, name, files.RENAME_EXCHANGE if is_directory else 0)
        except OSError:
            self.discard(staged)
            raise
        if is_directory:
            self.discard(staged)

    def remove(self, directory: int, name: bytes, *, is_directory: bool) -> None:
        """Remove this layer's own ``name``; a directory may still hold whiteouts, nothing else. Raises OSError."""
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            return
        try:
            os.rmdir(name, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            staged = self.staging_name()
            self.with_owners_rights(lambda: files.renameat2(directory, name, self.work, staged), (directory, name))
            self.discard(staged)

    def remove_whiteouts(self, part: Dir) -> None:
        """Take all whiteouts out of a directory of this layer: an opaque one must hold none. Raises OSError."""
        self.with_owners_rights(lambda: self._remove_whiteouts(part), (part.descriptor(), b""))

    def _remove_whiteouts(self, part: Dir) -> None:
        directory = part.descriptor()
        before = os.stat(directory)
        for name, kind, _ino in list(part.entries()):
            if kind == DT_CHR:
                state = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if ondisk.is_whiteout(state.st_mode, state.st_rdev):
                    os.unlink(name, dir_fd=directory)
            elif ondisk.hidden_by(name) is not None:
                os.unlink(name, dir_fd=directory)
        put_times_back(directory, before)

    def rewrite_whiteout(self, directory: int, name: bytes) -> None:
        """Delete ``name`` in this layer's own dialect, where an empty file of that name stands for it.

        Raises OSError.
        """
        if not self.dialect.device_whiteouts:
            self.write_whiteout(directory, name)
            os.unlink(name, dir_fd=directory)
            return
        staged = self.staging_name()
        self.write_whiteout(self.work, staged)
        self.publish(staged, directory, name)

    # -- rights ------------------------------------------------------------------------------------------------------

    def with_owners_rights(self, act: Callable[[], T], *places: Place) -> T:
        """Do the same, with notes in the workdir of what is lent: whoever opens this layer after a crash takes it back.

        Raises what ``act`` raises.
        """
        return with_owners_rights(act, *places, note=lambda opened, mode: self._note(opened, mode, places))

    def _note(self, opened: int, mode: int, places: tuple[Place, ...]) -> Callable[[], None]:
        """Write one note for each of ``places``; return what removes them."""
        from unionfs.layers import rights  # it has lent something

        written = []
        for place in places:
            note = self.staging_name() + _NOTE
            if rights.write_note(self.root.fd, (self.work, note), opened, mode, place):
                written.append(note)

        def remove() -> None:
            for note in written:
                self.discard(note)

        return remove

    # -- marks -------------------------------------------------------------------------------------------------------

    def mark_opaque(self, directory: int, name: bytes) -> None:
        """Make the directory ``name`` hide all lower ones of its name. Raises OSError."""
        self.with_owners_rights(lambda: self._hide_lower(directory, name), (directory, name))

    def _hide_lower(self, directory: int, name: bytes) -> None:
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            before = os.stat(inner)
            part = Dir(self, None, name, inner)
            if part.marks().xattr_whiteouts:  # from now on nothing says that empty files stand for deletions
                self._rewrite_whiteouts(part)
            if not self.mark(directory, name, ondisk.OPAQUE, b"y"):
                self._write_marker(inner, ondisk.OPAQUE_MARKER)
            put_times_back(inner, before)
        finally:
            os.close(inner)

    def _rewrite_whiteouts(self, part: Dir) -> None:
        for name, kind, _ino in list(part.entries()):
            if kind == DT_REG and part.is_xattr_whiteout(name):
                self.rewrite_whiteout(part.fd, name)

    def mark(self, directory: int, name: bytes, marker: bytes, value: bytes) -> bool:
        """Set the extended attribute for ``marker``; return False where this layer's dialect has none.

        Raises OSError.
        """
        attribute = self.dialect.attribute(marker)
        if attribute is None:
            return False
        place, path = (directory, name), files.proc_path(directory) + b"/" + name
        try:
            self.with_owners_rights(lambda: os.setxattr(path, attribute, value, follow_symlinks=False), place)
        except PermissionError:
            if marker not in _HINTS:
                raise
            return False  # xattr(7): links, special files and others' sticky directories take no user.* attributes
        return True

    def unmark(self, directory: int, name: bytes, marker: bytes) -> None:
        """Remove the extended attribute for ``marker``, of whichever dialect. Raises OSError."""
        path = files.proc_path(directory) + b"/" + name
        stored = {ondisk.TRUSTED_PREFIX + marker, ondisk.USER_PREFIX + marker}
        for attribute in stored.intersection(attributes_of(path)):
            os.removexattr(path, attribute, follow_symlinks=False)

    def holder(self, parent: Dir, name: bytes) -> Dir:
        """Return the directory ``name`` of ``parent`` in this layer."""
        return Dir(self, parent, name)


# -- what a file's data needs before a rename may show it, so that a power loss leaves no name with half of its data --


def leave(descriptor: int) -> None:
    """Do nothing: for what may be lost (``volatile``)."""


def choose_write_out(directory: int) -> WriteOut:
    """Return what to call with an open file before it is renamed, for the file system of the open ``directory``.

    A journal commits changes of metadata in their order. Where all that a write changes has been handed to the
    journal by the time the write has reached the disk, it is enough to wait for that: whatever keeps the rename keeps
    the file. That is so for ext4 (``ext4_end_io_end`` in fs/ext4/page-io.c ends the writeback of a page after its
    extent is no longer marked as unwritten) and for XFS (``xfs_end_ioend`` in fs/xfs/xfs_aops.c, which sets the size
    on disk first), and a commit flushes the disk's cache. It costs no commit a file, which fsync(2) does. Btrfs ends
    the writeback of a page before it enters the extent, and shows an empty file where the directory alone is synced
    afterwards, even one that was cloned: it gets fsync(2), as do ext4 without a journal of its own, and all others.
    ``tests/crash/test_power_loss.py``.
    """
    kind = files.filesystem_type(directory)
    if kind == files.XFS_MAGIC or (kind == files.EXT4_MAGIC and _has_journal(os.fstat(directory).st_dev)):
        return files.wait_for_data
    return os.fsync


def _has_journal(device: int) -> bool:
    """Tell whether an ext4 on ``device`` has a journal in itself: its inode is number 8 (``jbd2_journal_init_inode``
    in fs/jbd2/journal.c).
    """
    block = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    return os.path.exists(f"/proc/fs/jbd2/{os.path.basename(block)}-8")


# -- parts -----------------------------------------------------------------------------------------------------------


def put_times_back(directory: int, before: os.stat_result) -> None:
    """Give an open directory the times that it had ``before``, unless it is another's: then a change of names shows."""
    try:
        os.utime(files.proc_path(directory), ns=(before.st_atime_ns, before.st_mtime_ns))
    except OSError:
        pass


def attributes_of(path: bytes) -> list[bytes]:
    """Return the names of all extended attributes of ``path``, none where the file system has none. Raises OSError."""
    try:
        return list(map(os.fsencode, os.listxattr(path, follow_symlinks=False)))
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return []


def _sweep(root: int, work: int) -> None:
    """Take away the rights that were lent as a crash came, and remove all that an earlier server left in the workdir
    ``work``. Raises OSError.
    """
    try:
        os.removexattr(files.proc_path(work), "system.posix_acl_default")  # lent for one creation
    except OSError:
        pass  # there is none, or there are no ACLs
    left = [os.fsencode(name) for name in os.listdir(work)]
    notes = [name for name in left if name.endswith(_NOTE)]
    if notes:
        from unionfs.layers import rights  # a crash is rare

        rights.take_back(root, work, notes)
    for name in left:
        remove_tree(work, name)


def remove_tree(directory: int, name: bytes) -> None:
    """Remove ``name`` and all below it, never following a link, in constant stack however deep. Missing is fine."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in (errno.EISDIR, errno.EPERM):
            raise
        _remove_directory(directory, name)


def _remove_directory(directory: int, name: bytes) -> None:
    """Empty and remove a directory; directories found inside are first moved up beside it, which keeps
    the stack flat.
    """
    waiting = [name]
    serial = 0
    while waiting:
        current = waiting.pop()
        for child in _remove_files(directory, current):
            serial += 1
            waiting.append(b"%s~%x" % (name, serial))
            _move_up(directory, current, child, waiting[-1])
        os.rmdir(current, dir_fd=directory)


def _remove_files(directory: int, name: bytes) -> list[bytes]:
    """Remove what a directory holds but directories; return the names of these."""

    def remove() -> list[bytes]:
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            return [child for child in map(os.fsencode, os.listdir(inner)) if not _unlinked(inner, child)]
        finally:
            os.close(inner)

    return with_owners_rights(remove, (directory, name))


def _unlinked(directory: int, name: bytes) -> bool:
    """Remove a name unless it is a directory's; tell which."""
    try:
        os.unlink(name, dir_fd=directory)
    except IsADirectoryError:
        return False
    return True


def _move_up(directory: int, name: bytes, child: bytes, moved: bytes) -> None:
    """Move a directory out of another one, beside that: this writes to both, as its ".." changes."""
    path = name + b"/" + child
    with_owners_rights(
        lambda: os.rename(path, moved, src_dir_fd=directory, dst_dir_fd=directory), (directory, name), (directory, path)
    )
