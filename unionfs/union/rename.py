"""Renames: files, merged directories, exchanges, and what must stay behind so that nothing lower comes to light.

A directory with lower parts keeps them: a redirect says where they are. Where the writable layer's dialect has no
redirects, the merged tree is copied up whole and moved, so rename(2) never answers EXDEV.
"""

from __future__ import annotations

import errno
import os

from unionfs import ondisk
from unionfs.layers.layer import Dir
from unionfs.policy import Move, move
from unionfs.syscalls import files
from unionfs.union import inode_flags
from unionfs.union.copying import copy_metadata
from unionfs.union.listing import after_change
from unionfs.union.mutate import Mutations, error
from unionfs.union.nodes import AnyNode, DirNode, Node, let_go

Place = tuple[DirNode, bytes]
"""A directory and a name in it."""

_FLAGS = files.RENAME_NOREPLACE | files.RENAME_EXCHANGE | files.RENAME_WHITEOUT


class Renames:
    """Moves names within the tree that ``edit`` changes."""

    __slots__ = ("edit", "upper", "view")

    def __init__(self, edit: Mutations) -> None:
        self.edit = edit
        self.view = edit.view
        self.upper = edit.upper

    def rename(self, source: Place, target: Place, flags: int = 0) -> None:
        """Rename ``source`` to ``target`` with the flags of rename(2). Raises OSError.

        RENAME_WHITEOUT leaves what a program, which must be an overlay itself, sees as a whiteout.
        """
        if flags & ~_FLAGS:
            raise error(errno.EINVAL, source[1])
        node = self.edit.child(*source)
        found = self.view.lookup(*target)
        other = found[0] if found is not None else None
        if flags & files.RENAME_EXCHANGE:
            if other is None:
                raise error(errno.ENOENT, target[1])
            self._exchange(source, node, target, other)
            return
        if other is not None and flags & files.RENAME_NOREPLACE:
            raise error(errno.EEXIST, target[1])
        if other is not node:
            self._check_removable(source, node, target, other)
            self._check_replaceable(node, target[1], other)
            behind = self.edit.stage_program_whiteout() if flags & files.RENAME_WHITEOUT else b""
            try:
                self._move(source, node, target, other, behind)
            finally:
                if behind:
                    self.upper.discard(behind)

    def _check_removable(self, source: Place, node: AnyNode, target: Place, other: AnyNode | None) -> None:
        inode_flags.refuse_removal(self.view, source[0], node)
        if other is None:
            self.edit.may_create(*target)
        else:
            inode_flags.refuse_removal(self.view, target[0], other)

    def _check_replaceable(self, node: AnyNode, name: bytes, other: AnyNode | None) -> None:
        if other is None:
            return
        if isinstance(node, DirNode) and not isinstance(other, DirNode):
            raise error(errno.ENOTDIR, name)
        if isinstance(other, DirNode):
            if not isinstance(node, DirNode):
                raise error(errno.EISDIR, name)
            if not self.view.is_empty(other):
                raise error(errno.ENOTEMPTY, name)

    # -- one way -----------------------------------------------------------------------------------------------------

    def _move(self, source: Place, node: AnyNode, target: Place, other: AnyNode | None, behind: bytes) -> None:
        self._bring(source, node)
        to = self.edit.copyup.directory(target[0])
        if source[0].impure:
            self.edit.copyup.mark_impure(target[0])
        self.edit.adopt_whiteout(to.descriptor(), target[1])
        plan = self._plan(source, node, target)
        self._prepare(source, node, plan)
        if other is None:
            self._rename_on_disk(source, target, to, plan, behind)
        else:
            self._replace(source, target, other, to, plan, behind)
        self._follow(source, target, node)
        if behind:
            self.edit.list_program_whiteout(*source)

    def _replace(self, source: Place, target: Place, other: AnyNode, to: Dir, plan: Move, behind: bytes) -> None:
        """Rename over ``other``, whose name that was."""
        in_upper = self.edit.stands_in_upper(*target, other) or self.edit.index.before_loss(other, *target)
        self.edit.keep_open(other, last=in_upper)
        try:
            if isinstance(other, DirNode) and other.upper is not None:
                self._clear(to, other, other.upper)
            self._rename_on_disk(source, target, to, plan, behind)
        except OSError:
            let_go(other)
            raise
        self.edit.gone(*target, other, in_upper=in_upper)

    def _plan(self, source: Place, node: AnyNode, target: Place) -> Move:
        lower = self.view.find_lower(*target)
        directory = isinstance(node, DirNode)
        return move(
            directory=directory,
            merged=isinstance(node, DirNode) and bool(self.view.enter(node)),
            below_source=self.view.find_lower(*source) is not None,
            below_target=lower is not None,
            target_whiteout=directory and self.edit.shows_whiteout(*target),
        )

    def _rename_on_disk(self, source: Place, target: Place, to: Dir, plan: Move, behind: bytes) -> None:
        parent, name = source
        assert parent.upper is not None
        start, end = parent.upper.descriptor(), to.descriptor()
        if behind:
            self._leave(behind, (start, name), (end, target[1]))
            self.upper.remove_whiteout(end, target[1])
            return
        if not self.upper.dialect.device_whiteouts:
            if plan.whiteout_behind:
                self.upper.write_whiteout(start, name)  # of no effect while the name itself stands in this layer
            files.renameat2(start, name, end, target[1])
            self.upper.remove_whiteout(end, target[1])
            return
        flags = files.RENAME_WHITEOUT if plan.whiteout_behind else 0
        files.renameat2(start, name, end, target[1], files.RENAME_EXCHANGE if plan.exchange else flags)
        if plan.remove_behind:
            self._remove_behind(start, name)

    def _leave(self, staged: bytes, source: tuple[int, bytes], target: tuple[int, bytes]) -> None:
        """Rename, and put what is staged in the place of the old name; what fails leaves all as it was. Raises OSError.

        What stands at the new name stands at the old one meanwhile, so that nothing is lost at any instant.
        """

        def exchange() -> None:
            self.upper.with_owners_rights(
                lambda: files.renameat2(*source, *target, files.RENAME_EXCHANGE), source, target
            )

        vacant = not Dir(self.upper, None, b"", target[0]).has(target[1])
        if vacant:
            self.upper.publish(staged, *target, files.RENAME_NOREPLACE)
        try:
            exchange()
        except OSError:
            if vacant:
                os.unlink(target[1], dir_fd=target[0])
            raise
        if vacant:
            return
        try:
            self.upper.publish(staged, *source, files.RENAME_EXCHANGE)
        except OSError:
            exchange()
            raise
        self.upper.discard(staged)

    def _remove_behind(self, directory: int, name: bytes) -> None:
        """Take away a whiteout that hides nothing; one that stays does no harm."""
        try:
            os.unlink(name, dir_fd=directory)
        except OSError:
            pass

    def _clear(self, parent: Dir, node: DirNode, directory: Dir) -> None:
        """Empty a directory that may hold whiteouts, so that it can be renamed over, while it goes on hiding lower
        ones.
        """
        own = (directory.descriptor(), b"")
        if self.upper.with_owners_rights(lambda: next(directory.entries(), None), own) is None:
            return
        if self.upper.dialect.device_whiteouts:
            self._clear_at_once(parent, directory)
            node.lowers, node.table = (), None
            return
        self.upper.write_whiteout(parent.descriptor(), directory.name)  # beside the directory it makes it opaque
        node.lowers, node.table = (), None
        self.upper.remove_whiteouts(directory)
        if directory.has(ondisk.OPAQUE_MARKER):
            os.unlink(ondisk.OPAQUE_MARKER, dir_fd=directory.descriptor())

    def _clear_at_once(self, parent: Dir, directory: Dir) -> None:
        staged, work = self.upper.staging_name(), self.upper.work
        try:
            os.mkdir(staged, 0o700, dir_fd=work)
            copy_metadata(parent.proc_path(directory.name), work, staged)
            self.upper.mark_opaque(work, staged)
            self.upper.publish(staged, parent.descriptor(), directory.name, files.RENAME_EXCHANGE)
            directory.close()
        finally:
            self.upper.discard(staged)

    # -- both ways ---------------------------------------------------------------------------------------------------

    def _exchange(self, source: Place, node: AnyNode, target: Place, other: AnyNode) -> None:
        if node is other:
            return
        self._check_removable(source, node, target, other)
        self._bring(source, node)
        self._bring(target, other)
        for place, moved, end in ((source, node, target), (target, other, source)):
            self._prepare(place, moved, self._plan(place, moved, end))
        if source[0].impure or target[0].impure:
            self.edit.copyup.mark_impure(source[0])
            self.edit.copyup.mark_impure(target[0])
        here, there = source[0].upper, target[0].upper
        assert here is not None and there is not None
        files.renameat2(here.descriptor(), source[1], there.descriptor(), target[1], files.RENAME_EXCHANGE)
        self.view.nodes.exchange(node, source, other, target)
        for moved, place in ((node, target), (other, source)):
            self._relocate(moved)
            self._list(place, moved)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _bring(self, place: Place, node: AnyNode) -> None:
        """See that the writable layer itself has the name ``place`` of ``node``."""
        if isinstance(node, DirNode):
            self.edit.copyup.directory(node)
            return
        self.edit.copyup.attributes(node)
        parent, name = place
        directory = self.edit.copyup.directory(parent)
        if not self.edit.stands_in_upper(parent, name, node):
            self.edit.index.bring(node, directory.descriptor(), name)

    def _prepare(self, place: Place, node: AnyNode, plan: Move) -> None:
        if isinstance(node, DirNode):
            self._prepare_directory(place, node, plan)
        elif not node.in_upper and not self._redirect_data(place):
            self.edit.copyup.file(node)

    def _redirect_data(self, place: Place) -> bool:
        """Write down where the data of a file is whose attributes alone were copied; False if there is no way to."""
        parent, name = place
        assert parent.upper is not None
        redirect = parent.upper.marks(name).redirect
        if redirect is not None and redirect.startswith(b"/"):
            return True
        path = _lower_path(parent).rstrip(b"/") + b"/" + (redirect or name)
        return self._write_redirect(parent.upper.descriptor(), name, path)

    def _prepare_directory(self, place: Place, node: DirNode, plan: Move) -> None:
        """Before a directory moves: tie it to its lower parts, or hide what it would meet at its new name."""
        assert place[0].upper is not None
        directory = place[0].upper.descriptor()
        if plan.redirect and not self._redirect(directory, place[1], node):
            self.copy_whole(node)
        elif plan.opaque:
            self.upper.mark_opaque(directory, place[1])

    def _redirect(self, directory: int, name: bytes, node: DirNode) -> bool:
        """Write down where the lower parts of ``node`` are; False if this layer has no way to (overlayfs.rst,
        "redirect_dir").
        """
        return self._write_redirect(directory, name, _lower_path(node))

    def _write_redirect(self, directory: int, name: bytes, path: bytes) -> bool:
        if not self.upper.dialect.redirects or len(path) > ondisk.REDIRECT_MAX_BYTES:
            return False
        return self.upper.mark(directory, name, ondisk.REDIRECT, path)

    def copy_whole(self, root: DirNode) -> None:
        """Copy a merged directory up with all that is in it, and let each directory stand by itself.

        Neither the nodes on which nobody counts nor the descriptors of a large tree are kept. The directories are
        needed to the end: a file that is forgotten would take them along.
        """
        needed: list[DirNode] = []
        try:
            self._copy_directories(root, needed)
            for node in reversed(needed):
                self._stand_alone(node)
                self.view.cache.trim()
        finally:
            for node in reversed(needed):
                self.view.nodes.forget(node, 1)

    def _copy_directories(self, root: DirNode, needed: list[DirNode]) -> None:
        """Copy all that is in a tree; add its merged directories to ``needed``, those above before those below."""

        def need(node: DirNode) -> None:
            node.lookups += 1
            needed.append(node)
            waiting.append(node)

        waiting: list[DirNode] = []
        need(root)
        while waiting:
            node = waiting.pop()
            self.edit.copyup.directory(node)
            for name, _kind, _ino in list(self.view.names(node)):
                child = self.edit.child(node, name)
                if isinstance(child, DirNode) and self.view.enter(child):
                    need(child)
                    continue
                if isinstance(child, Node):
                    self.edit.copyup.file(child)
                    self._bring((node, name), child)
                self.view.nodes.forget(child, 0)
            self.view.cache.trim()

    def _stand_alone(self, node: DirNode) -> None:
        """Make a wholly copied directory opaque, and take away the whiteouts that it then must not hold."""
        assert node.upper is not None and node.upper.parent is not None
        self.upper.mark_opaque(node.upper.parent.descriptor(), node.upper.name)
        node.lowers, node.table = (), None
        self.view.nodes.keep_id(node, self.view.ino(self.view.stat(node)))
        self.upper.remove_whiteouts(node.upper)
        self.upper.unmark(node.upper.parent.descriptor(), node.upper.name, ondisk.REDIRECT)

    def _follow(self, source: Place, target: Place, node: AnyNode) -> None:
        """The layers have changed: let the table and the listings follow."""
        self.view.nodes.move(node, source, target)
        self._relocate(node)
        if source[0].listing is not None:
            source[0].listing.remove(source[1])
        self._list(target, node)

    def _list(self, place: Place, node: AnyNode) -> None:
        parent, name = place
        if parent.listing is not None:
            try:
                state = after_change(parent.listing, lambda: self.view.stat(node))
            except OSError:
                return  # the change itself is done
            parent.listing.add(name, state.st_mode >> 12, node.ino)

    def _relocate(self, node: AnyNode) -> None:
        """Let a directory's part in the writable layer know its new parent and name."""
        if isinstance(node, DirNode) and node.upper is not None:
            assert node.parent is not None and node.parent.upper is not None
            node.upper.parent, node.upper.name = node.parent.upper, node.name


def _lower_path(node: DirNode) -> bytes:
    """Return where the lower parts of a directory stand in the lower layers as they merge without the writable one.

    That is its path, but for what the redirects of the writable layer have moved (ovl_get_redirect in
    fs/overlayfs/dir.c).
    """
    names: list[bytes] = []
    place: DirNode | None = node
    while place is not None and place.parent is not None:
        redirect = place.upper.parent.marks(place.name).redirect if place.upper and place.upper.parent else None
        if redirect is not None and redirect.startswith(b"/"):
            names.append(redirect.strip(b"/"))
            break
        names.append(redirect or place.name)
        place = place.parent
    return b"/" + b"/".join(reversed(names))
