"""Copy-up: bringing a lower file into the writable layer before its first change, all of it or nothing.

The copy is made whole in the workdir (data with its holes, owner, attributes, mode, times), its data is written out,
and it is renamed into place. Copying data may take long: a transport that serves others meanwhile sets ``deferring``,
gets ``Pending`` with the job, runs it in another thread, calls ``finish``, and asks again.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import ondisk
from unionfs.syscalls import files
from unionfs.union import inode_flags
from unionfs.union.copying import (
    CAPABILITY,
    amend,
    capability,
    copy_attributes,
    copy_data,
    free,
    gives,
    set_metadata,
    share_data,
)
from unionfs.union.nodes import AnyNode, Data, DirNode, Node

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.layers.layer import Dir
    from unionfs.layers.writable import WritableLayer
    from unionfs.union.links import LinkIndex
    from unionfs.union.view import View

#: What says that the data is elsewhere; the redirect says where, and means nothing without the other.
_DATA_MARKS = {
    os.fsdecode(prefix + marker)
    for prefix in (ondisk.TRUSTED_PREFIX, ondisk.USER_PREFIX)
    for marker in (ondisk.METACOPY, ondisk.REDIRECT)
}
_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WITHOUT_SET_ID = 0o1777
_SMALL_BYTES = 1 << 16


class Pending(Exception):
    """An operation needs a copy-up that another thread should make first."""

    def __init__(self, job: CopyJob) -> None:
        super().__init__()
        self.job = job


class CopyJob:
    """The copying of one regular file: ``run`` in any thread, then ``CopyUp.finish`` in the union's own."""

    __slots__ = ("bare", "copyup", "error", "flags", "node", "size", "source", "staged", "state", "target")

    def __init__(self, copyup: CopyUp, node: Node, state: os.stat_result, *, truncate: bool) -> None:
        self.copyup = copyup
        self.node = node
        self.state = state
        self.staged = b""
        self.size = 0 if truncate else state.st_size
        self.flags = 0
        self.bare = -1
        self.source = -1
        self.target = -1
        self.error: OSError | None = None

    @property
    def small(self) -> bool:
        """Whether copying, with writing out, may well take less time than to have another thread do it."""
        return 0 < self.size <= _SMALL_BYTES

    @property
    def original(self) -> int:
        """The open file whose attributes are to be copied."""
        return self.bare if self.bare >= 0 else self.source

    def run(self) -> None:
        """Copy; an error is kept for ``finish``."""
        try:
            if self.small:
                self.copyup.upper.pace.wait(self._copy)
            else:
                self._copy()
        except OSError as error:
            self.error = error

    def _copy(self) -> None:
        if self.size:
            self._copy_data()
        self.copyup.dress(self.original, self.target, self.state)
        inode_flags.copy(self.flags, self.target)
        if self.size:
            self.copyup.upper.write_out(self.target)

    def _copy_data(self) -> None:
        """Share the data or copy it; a file system that has refused to share is not asked again."""
        unshared = self.copyup.unshared
        device = -1 if self.node.data is not None else self.state.st_dev  # -1: the data is who knows where
        if device not in unshared:
            if share_data(self.source, self.target):
                return
            if device >= 0:
                unshared.add(device)
        copy_data(self.source, self.target, self.size, holes=self.state.st_blocks << 9 < self.state.st_size)

    def finish(self) -> None:
        """Publish the copy, or throw it away if it failed or is not wanted any longer. Raises OSError."""
        self.copyup.publish_job(self)

    def close(self) -> None:
        """Close all files."""
        for descriptor in (self.bare, self.source, self.target):
            if descriptor >= 0:
                os.close(descriptor)


class DataJob(CopyJob):
    """The copying of the data that a file in the writable layer lacks: into it, where it stands."""

    __slots__ = ("capability",)

    capability: bytes | None
    """What a write takes away from the file and has to be given back: file capabilities, capabilities(7)."""

    def _copy(self) -> None:
        if self.size:
            self._copy_data()
            self.copyup.upper.write_out(self.target)
        else:
            os.ftruncate(self.target, 0)

    def finish(self) -> None:
        """Say that the data is there, or take it away again if some is missing. Raises OSError."""
        self.copyup.complete(self)


class CopyUp:
    """Copies nodes of ``view`` up into its writable layer.

    A small copy is not deferred if the disk is quick: the hand-over would cost more than the copy.
    """

    __slots__ = ("deferring", "index", "jobs", "metacopy", "unshared", "upper", "view")

    def __init__(self, view: View, upper: WritableLayer, index: LinkIndex) -> None:
        self.view = view
        self.upper = upper
        self.index = index
        self.deferring = False
        self.metacopy = False  # whether a change of attributes leaves the data where it is
        self.jobs: dict[int, CopyJob] = {}
        self.unshared: set[int] = set()  # st_dev of file systems that do not share data with the writable layer's

    # -- directories -------------------------------------------------------------------------------------------------

    def directory(self, node: DirNode) -> Dir:
        """Return the part of ``node`` in the writable layer, making it and its parents where they are not there.

        Raises OSError.
        """
        waiting: list[DirNode] = []
        place: DirNode | None = node
        while place is not None and place.upper is None:
            waiting.append(place)
            place = place.parent
        if place is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), node.name)
        for lower in reversed(waiting):
            self._copy_directory(lower)
        assert node.upper is not None
        return node.upper

    def _copy_directory(self, node: DirNode) -> None:
        assert node.parent is not None and node.parent.upper is not None
        lowers = self.view.enter(node)
        flags = inode_flags.read(lowers[0].descriptor()) if lowers else 0
        state = self.view.stat(node)
        staged = self.upper.staging_name()
        work = self.upper.work
        os.mkdir(staged, 0o700, dir_fd=work)
        try:
            source = self.view.proc_path(node)
            copied = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=work)
            try:
                self.dress(source, copied, self.wanted(node, state))
                inode_flags.copy(flags, copied)
            finally:
                os.close(copied)
            self._protect(node, staged, flags)
            self.upper.publish_copy(staged, node.parent.upper.descriptor(), node.name)
        except OSError:
            self.upper.discard(staged)
            raise
        node.upper = self.upper.holder(node.parent.upper, node.name)

    # -- other files -------------------------------------------------------------------------------------------------

    def file(self, node: Node, *, truncate: bool = False, forbidding: int = 0) -> None:
        """Bring ``node`` into the writable layer; ``truncate`` leaves its data behind.

        Raises OSError (EPERM where it has one of the inode flags ``forbidding``), and Pending if deferring.
        """
        inode_flags.expect_none(node.protection & forbidding, node)
        if node.in_upper:
            return
        self._wait(node)
        self._file(node, self.view.stat(node), truncate=truncate, forbidding=forbidding)

    def _file(self, node: Node, state: os.stat_result, *, truncate: bool = False, forbidding: int) -> None:
        if node.owned:
            self._data(node, state, truncate=truncate)
        elif stat.S_ISREG(state.st_mode):
            self._regular(node, state, truncate=truncate, forbidding=forbidding)
        else:
            self._special(node, state)

    def attributes(self, node: Node, *, forbidding: int = 0) -> None:
        """Bring the attributes of ``node`` into the writable layer, with its data unless ``metacopy`` is on.

        Raises as :meth:`file` does. A file with several names is always copied whole.
        """
        inode_flags.expect_none(node.protection & forbidding, node)
        if node.in_upper:
            return
        self._wait(node)
        if node.owned:
            return
        state = self.view.stat(node)
        plain = stat.S_ISREG(state.st_mode) and state.st_size > 0 and state.st_nlink == 1
        if self.metacopy and plain and node.parent is not None:
            self._attributes_alone(node, state, forbidding)
        else:
            self._file(node, state, forbidding=forbidding)

    def _wait(self, node: Node) -> None:
        job = self.jobs.get(node.id)
        if job is not None:
            raise Pending(job)

    def _regular(self, node: Node, state: os.stat_result, *, truncate: bool, forbidding: int) -> None:
        job = CopyJob(self, node, self.wanted(node, state), truncate=truncate)
        job.staged = self.upper.staging_name()
        try:
            job.source = self.view.open(node, os.O_RDONLY)
            if node.data is not None:
                job.bare = self.view.open_own(node, os.O_RDONLY)
            job.flags = inode_flags.read(job.original)
            inode_flags.expect_none(job.flags & forbidding, node)
            job.target = os.open(job.staged, _CREATE, 0o600, dir_fd=self.upper.work)
        except OSError:
            job.close()
            raise
        self._start(job)

    def _start(self, job: CopyJob) -> None:
        if self.deferring and job.size and not (job.small and self.upper.pace.quick):
            self.jobs[job.node.id] = job
            raise Pending(job)
        job.run()
        self.finish(job)

    def finish(self, job: CopyJob) -> None:
        """Take over what ``job`` has copied. Raises OSError, that of the job if it failed."""
        self.jobs.pop(job.node.id, None)
        job.finish()

    def publish_job(self, job: CopyJob) -> None:
        """Publish a staged copy, or throw it away if it failed or is not wanted any longer. Raises OSError."""
        node = job.node
        try:
            if job.error is not None:
                raise job.error
            self._place(node, job.staged, job.state, job.flags)
        except OSError:
            self.upper.discard(job.staged)
            raise
        finally:
            job.close()

    def _special(self, node: Node, state: os.stat_result) -> None:
        staged = self.upper.staging_name()
        work = self.upper.work
        directory, name = self.view.place(node)
        wanted = self.wanted(node, state)
        if stat.S_ISLNK(state.st_mode):
            os.symlink(os.readlink(name, dir_fd=directory), staged, dir_fd=work)
        else:
            self.make_special(staged, wanted)
        try:
            source, target = self.view.proc_path(node), files.proc_path(work) + b"/" + staged
            names = copy_attributes(source, target)
            self.settle_special(staged, wanted)
            amend(source, target, names)
            os.utime(staged, ns=(state.st_atime_ns, state.st_mtime_ns), dir_fd=work, follow_symlinks=False)
            self._place(node, staged, state)
        except OSError:
            self.upper.discard(staged)
            raise

    # -- attributes without data: overlayfs.rst, "Metadata only copy up" ---------------------------------------------

    def _attributes_alone(self, node: Node, state: os.stat_result, forbidding: int) -> None:
        """Copy a file up as a hole of its size, with a mark that its data is still below."""
        assert node.home is not None
        flags = inode_flags.protection(self.view, node)
        inode_flags.expect_none(flags & forbidding, node)
        data = Data(node.home, node.home_name, in_upper=True)
        if node.data is not None:
            data.place, data.name = node.data.place, node.data.name
        assert node.parent is not None
        self.directory(node.parent)
        self.mark_impure(node.parent)
        staged = self.upper.staging_name()
        target = os.open(staged, _CREATE, 0o600, dir_fd=self.upper.work)
        try:
            os.ftruncate(target, state.st_size)
            self.dress(self.view.proc_path(node), target, self.wanted(node, state))
            self.upper.mark(self.upper.work, staged, ondisk.METACOPY, b"")
            self._place(node, staged, state, flags)
        except OSError:
            self.upper.discard(staged)
            raise
        finally:
            os.close(target)
        node.in_upper, node.data = False, data

    def _data(self, node: Node, state: os.stat_result, *, truncate: bool) -> None:
        """Copy the data of a file whose attributes are in the writable layer already."""
        data = node.data
        assert data is not None
        job = DataJob(self, node, state, truncate=truncate)
        try:
            if job.size:
                job.source = self.view.open(node, os.O_RDONLY)
            job.target = self.view.open_own(node, os.O_RDWR)
            job.capability = capability(job.target)
        except OSError:
            job.close()
            raise
        data.frozen = state
        self._start(job)

    def complete(self, job: DataJob) -> None:
        """End the copying of data alone; until its mark is gone, a file's data is the one below. Raises OSError."""
        node, target = job.node, job.target
        assert node.data is not None
        node.data.frozen = None
        try:
            if job.error is not None:
                free(target, job.size)
            set_metadata(target, job.state)
            if job.capability is not None:
                os.setxattr(target, CAPABILITY, job.capability)
            if job.error is not None:
                raise job.error
            for name in set(os.listxattr(target)) & _DATA_MARKS:
                os.removexattr(target, name)
        finally:
            job.close()
        node.in_upper, node.data = True, None

    # -- owners ------------------------------------------------------------------------------------------------------

    def wanted(self, node: AnyNode, state: os.stat_result) -> os.stat_result:
        """Return the attributes that the copy of ``node`` is to have, ``state`` being those of the original."""
        return state

    def dress(self, source: int | bytes, target: int, state: os.stat_result) -> None:
        """Give the open copy ``target`` the extended attributes of ``source``, and owner, mode and times of ``state``.

        In any thread. Raises OSError.
        """
        names = copy_attributes(source, target)
        self.settle(target, state)
        amend(source, target, names)

    def settle(self, target: int, state: os.stat_result) -> None:
        """Give the open copy ``target`` owner, mode and times of ``state``; in any thread. Raises OSError."""
        set_metadata(target, state)

    def make_special(self, staged: bytes, state: os.stat_result) -> None:
        """Make the copy of a FIFO, socket or device in the workdir. Raises OSError."""
        os.mknod(staged, state.st_mode, state.st_rdev, dir_fd=self.upper.work)

    def settle_special(self, staged: bytes, state: os.stat_result) -> None:
        """Give the copy ``staged`` of a file that cannot be opened owner and mode of ``state``. Raises OSError."""
        work = self.upper.work
        given = gives(lambda: os.chown(staged, state.st_uid, state.st_gid, dir_fd=work, follow_symlinks=False))
        if not stat.S_ISLNK(state.st_mode):
            files.fchmodat(work, staged, state.st_mode if given else state.st_mode & _WITHOUT_SET_ID)

    # -- publishing --------------------------------------------------------------------------------------------------

    def _place(self, node: Node, staged: bytes, state: os.stat_result, flags: int = 0) -> None:
        """Put the staged copy where ``node`` stands, through the index if the lower file has several names; one that
        stands nowhere any longer is kept open.

        Once it is in the index, that is where the file is, though the name may fail to follow.
        """
        if node.parent is None:
            node.descriptor = os.open(staged, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.upper.work)
            self._settle(node)
            self.upper.discard(staged)
            return
        place = self.directory(node.parent).descriptor()
        self._protect(node, staged, flags)
        self._mark_origin(node, staged)
        self.mark_impure(node.parent)
        if state.st_nlink > 1 and self.view.keeps_links:
            self.index.enter(node, staged, state)
            self._settle(node)
            self.index.link_in(node, place, node.name)
        else:
            self.upper.publish_copy(staged, place, node.name)
            self._settle(node)

    def _protect(self, node: AnyNode, staged: bytes, flags: int) -> None:
        """Write down which of the original's flags the copy itself cannot have, and obey them from now on."""
        node.protection = flags & ondisk.PROTECTED
        if node.protection:
            value = ondisk.encode_protection(node.protection)
            self.upper.mark(self.upper.work, staged, ondisk.PROTATTR, value)

    def _mark_origin(self, node: Node, staged: bytes) -> None:
        """See that the staged copy, when it is met again, is known for the file that it is a copy of."""
        origin = None
        if node.home is not None and self.upper.dialect.prefix is not None:
            origin = self.index.origin(node.home, node.home_name)
        marked = origin is not None and self.upper.mark(self.upper.work, staged, ondisk.ORIGIN, origin)
        if not marked or self.view.origin_ino(origin) != node.ino:
            copy = os.stat(staged, dir_fd=self.upper.work, follow_symlinks=False)
            self.view.nodes.keep_id(node, self.view.ino(copy))

    def _settle(self, node: Node) -> None:
        if node.links is None or node.home is not self.index.directory:
            node.home = None
        node.in_upper, node.data = True, None

    def mark_impure(self, parent: DirNode) -> None:
        """Tell the kernel's readdir that names here have inode numbers of lower files (overlayfs.rst, "impure")."""
        if parent.impure:
            return
        assert parent.upper is not None
        self.upper.mark(parent.upper.descriptor(), b".", ondisk.IMPURE, b"y")
        parent.impure = True
