"""The merged view: lookup, attributes, listing, and where each name comes from.

The rules are those of the kernel's Documentation/filesystems/overlayfs.rst: the topmost layer that has a name decides;
directories of one name merge until one of them is opaque; a whiteout ends the search. Nothing here changes a layer.
"""

from __future__ import annotations

import errno
import os
import stat

from unionfs import ondisk
from unionfs.layers.layer import DT_DIR, Dir, Layer, read_marks
from unionfs.syscalls import process
from unionfs.union import handles, metacopy, pieces
from unionfs.union.inode_flags import forbidding, refuse
from unionfs.union.listing import Listing
from unionfs.union.nodes import ROOT_ID, AnyNode, DirNode, Node, NodeTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from unionfs.layers.layer import Columns, DescriptorCache
    from unionfs.union.links import LinkIndex
    from unionfs.union.listing import Found

NAME_MAX_BYTES = 255
_ACL_PREFIX = b"system.posix_acl_"
_S_IFMT = 0o170000
_S_IFDIR = stat.S_IFDIR
_S_IFCHR = stat.S_IFCHR
_S_IFREG = stat.S_IFREG

Lower = tuple[Dir, os.stat_result]


class View:
    """The merged tree of ``lowers`` (topmost first) under ``upper``, as nodes; ``data_layers`` hold data alone.

    A ``guarded`` view has rights that the owner of a layer may lack: it follows no redirect that he can set himself.
    """

    __slots__ = (
        "cache",
        "counts_subdirectories",
        "data_layers",
        "guarded",
        "index",
        "keeps_links",
        "lowers",
        "nodes",
        "numbers",
        "upper",
    )

    def __init__(self, lowers: list[Layer], upper: Layer | None, cache: DescriptorCache) -> None:
        self.lowers = lowers
        self.data_layers: list[Layer] = []
        self.guarded = process.is_superuser()
        self.counts_subdirectories = True  # as links of a directory that is not merged, which has none to spare
        self.keeps_links = True  # whether a file with several names stays one file when it is copied up
        self.upper = upper
        self.cache = cache
        self.index: LinkIndex | None = None
        self.numbers = pieces.Numbers(lowers if upper is None else [upper, *lowers])
        self.nodes = NodeTable(self._make_root())
        self.enter(self.nodes.root)

    def _make_root(self) -> DirNode:
        root = DirNode(ROOT_ID, None, b"", ROOT_ID)
        root.upper = self.upper.root if self.upper else None
        root.seed = tuple(layer.root for layer in self.lowers)
        top = root.upper or root.seed[0]
        root.ino = self.ino(os.fstat(top.descriptor()))
        root.lookups = 1
        return root

    # -- identity ----------------------------------------------------------------------------------------------------

    def ino(self, state: os.stat_result, part: Dir | None = None, name: bytes = b"") -> int:
        """Return the inode number to show for a real file: unique over all file systems of the stack.

        It stands in ``part`` of a layer, or is that; None for what the writable layer alone can have.
        """
        base = self.numbers.bases.get(state.st_dev)
        return state.st_ino ^ (self.numbers.enter(state.st_dev, part, name) if base is None else base)

    # -- lookup ------------------------------------------------------------------------------------------------------

    def lookup(self, parent: DirNode, name: bytes) -> tuple[AnyNode, os.stat_result] | None:
        """Return the node called ``name`` in ``parent`` with its attributes, None where there is none.

        Raises OSError.
        """
        node = parent.children.get(name)
        if node is not None:
            return node, self.stat(node)
        found = self.find(parent, name)
        if found is None:
            return None
        place, state = found
        if state.st_mode & _S_IFMT == _S_IFDIR:
            return self._new_directory(parent, name, place, state), state
        return self._new_file(parent, name, place, state)

    def find(self, parent: DirNode, name: bytes) -> Lower | None:
        """Return the layer directory whose ``name`` shows in ``parent``, with that file's attributes.

        Raises OSError.
        """
        if len(name) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        if name.startswith(ondisk.WHITEOUT_PREFIX):
            return None
        upper = parent.upper
        if upper is None:
            return self.find_lower(parent, name)
        try:
            state = os.stat(name, dir_fd=upper.fd if upper.fd >= 0 else upper.descriptor(), follow_symlinks=False)
        except FileNotFoundError:
            found = self.find_lower(parent, name)
            if found is not None and self._deleted_by_marker(upper, name):
                return None
            return found
        if not state.st_size and pieces.is_whiteout(upper, name, state):
            return None
        return upper, state

    def find_lower(self, parent: DirNode, name: bytes) -> Lower | None:
        """Return what ``name`` is in the layers below the writable one, whatever that one says. Raises OSError."""
        lowers = parent.lowers
        if lowers is None:
            lowers = self.enter(parent)
        if not lowers:
            return None
        place = lowers[0]
        if len(lowers) > 1:
            position = pieces.table(parent, lowers).get(name)
            if position is None:
                return None
            place = lowers[position if isinstance(position, int) else position[0]]
        try:
            state = os.stat(name, dir_fd=place.fd if place.fd >= 0 else place.descriptor(), follow_symlinks=False)
        except FileNotFoundError:
            return None
        if not state.st_size and pieces.is_whiteout(place, name, state):
            return None
        return place, state

    def _deleted_by_marker(self, upper: Dir, name: bytes) -> bool:
        marker = ondisk.aufs_whiteout(name)
        return len(marker) <= NAME_MAX_BYTES and upper.has(marker)

    def _new_directory(self, parent: DirNode, name: bytes, place: Dir, state: os.stat_result) -> DirNode:
        ino = self.ino(state, place, name)
        node = DirNode(0, parent, name, ino)
        part = Dir(place.layer, place, name)
        if place.layer is self.upper:
            node.upper = part
            lowers = self.enter(node)
            if lowers:
                node.ino = self.ino(pieces.stat_directory(lowers[0]), lowers[0])
        else:
            node.seed = (part,)
        self.nodes.identify(node, ino)
        handles.attach(self, node)
        return node

    def _new_file(
        self, parent: DirNode, name: bytes, place: Dir, state: os.stat_result
    ) -> tuple[AnyNode, os.stat_result]:
        home: Dir | None = None if place.layer is self.upper else place
        home_name, in_upper = name, home is None
        several = state.st_nlink > 1 and self.keeps_links
        if several:
            if self.index is not None:
                home, home_name, state = self._indexed(home, name, state)
                in_upper = home is None or home is self.index.directory
            shared = self.nodes.by_key.get((state.st_dev, state.st_ino))
            if shared is not None:
                self.nodes.add_name(shared, parent, name)
                return shared, state
        ino = self.ino(state, place, name)
        node = Node(0, parent, name, ino)
        node.home, node.home_name, node.in_upper = home, home_name, in_upper
        origin = None
        sparse = state.st_blocks << 9 < state.st_size and state.st_mode & _S_IFMT == _S_IFREG
        if in_upper and (parent.impure or home is not None or sparse):
            origin = self._take_marks(node)
        elif sparse and not in_upper:
            metacopy.note_sparse(self, node)
        if state.st_nlink > 1 and not several:  # its names fall apart when they are copied up: none has the number
            node.id = self.nodes.new_id()
        else:
            self.nodes.identify(node, ino)
        handles.attach(self, node, origin)
        if node.data is not None:
            state = self.stat(node)
        if several or (in_upper and home is not None):
            self.nodes.share(node, (state.st_dev, state.st_ino))
            if self.index is not None:
                self.index.count(node, state, in_upper=in_upper)
        return node, state

    def _indexed(
        self, home: Dir | None, name: bytes, state: os.stat_result
    ) -> tuple[Dir | None, bytes, os.stat_result]:
        """Return where a file with several names is at home, if that is the index, and its attributes there."""
        assert self.index is not None
        if home is None:
            entry = self.index.entry_of(state)
            return (None, name, state) if entry is None else (self.index.directory, entry, state)
        copy = self.index.find(home, name, state)
        return (home, name, state) if copy is None else (self.index.directory, *copy)

    def _take_marks(self, node: Node) -> bytes | None:
        """Give a copied-up file the inode number of the lower file that it was (overlayfs.rst, "Inode properties").

        If only its attributes were copied, the lower layers have its data. Return its ``overlay.origin``.
        """
        assert self.upper is not None
        marks = self.upper.with_owners_rights(lambda: read_marks(self.proc_path(node)), self.place(node))
        if marks.metacopy:
            metacopy.note(self, node, marks)
        node.protection = marks.protection
        node.ino = self.origin_ino(marks.origin) or node.ino
        return marks.origin

    def origin_ino(self, value: bytes | None) -> int | None:
        """Return the inode number to show for a file with this ``overlay.origin``, None where that does not tell it."""
        origin = ondisk.decode_origin(value) if value is not None else None
        if origin is None or origin.ino is None:
            return None
        layer = self.origin_layer(origin)
        return None if layer is None else origin.ino ^ self.numbers.of_origin(origin, layer)

    def origin_layer(self, origin: ondisk.Origin) -> Layer | None:
        """Return a lower layer on the file system that ``origin`` names, None where there is none."""
        return next((layer for layer in self.lowers if layer.uuid == origin.uuid), None)

    # -- directories -------------------------------------------------------------------------------------------------

    def enter(self, node: DirNode) -> tuple[Dir, ...]:
        """Return the parts of a directory below the writable layer, topmost first, finding them at the first call."""
        if node.lowers is None:
            node.lowers = self._merge_root(node) if node.parent is None else self._merge(node)
        return node.lowers

    def _merge_root(self, node: DirNode) -> tuple[Dir, ...]:
        if node.upper is not None:
            marks = node.upper.marks()
            node.impure, node.protection = marks.impure, marks.protection
            if node.upper.is_opaque(marks):
                return ()
        return self._stack(node.seed)

    def _merge(self, node: DirNode) -> tuple[Dir, ...]:
        if node.upper is not None:
            return node.upper.layer.with_owners_rights(lambda: self._below_upper(node), self.place(node))
        assert node.parent is not None
        beside = self.enter(node.parent)
        found = node.seed if len(beside) == 1 else self._candidates(node.parent, node.name)
        return self._stack(found, beside)

    def _below_upper(self, node: DirNode) -> tuple[Dir, ...]:
        assert node.upper is not None and node.parent is not None
        marks = node.upper.marks()
        node.impure, node.protection = marks.impure, marks.protection
        beside = self.enter(node.parent)
        if self._follows(marks) and marks.redirect is not None:
            if node.upper.is_opaque(marks):  # it wins, as in ovl_lookup_single of fs/overlayfs/namei.c
                return ()
            return self.redirected(marks.redirect, beside)
        if not beside or node.upper.is_opaque(marks) or self._is_marked_deleted(node.upper):
            return ()
        return self._stack(self._candidates(node.parent, node.name), beside)

    def _is_marked_deleted(self, upper: Dir) -> bool:
        """Tell whether a marker beside a directory deletes what lower layers have under its name, as OCI layers do."""
        return upper.parent is not None and self._deleted_by_marker(upper.parent, upper.name)

    def _candidates(self, parent: DirNode, name: bytes) -> Iterable[Dir]:
        """Return the lower directories called ``name``, down to the first layer that has something else there."""
        lowers = self.enter(parent)
        if len(lowers) < 2:
            return pieces.named(lowers, name)
        positions = pieces.table(parent, lowers).get(name)
        if positions is None or isinstance(positions, int):
            return ()
        return [Dir(lowers[position].layer, lowers[position], name) for position in positions]

    def _stack(self, candidates: Iterable[Dir], beside: tuple[Dir, ...] = ()) -> tuple[Dir, ...]:
        """Take directories of one name, topmost first, as far as they merge; follow a redirect where one says so.

        ``beside`` are the lower parts of the directory that they stand in. The root of a layer stands where it was put.
        """
        parts: list[Dir] = []
        marks = ondisk.NO_MARKS
        bottom = self.lowers[-1]
        for part in candidates:
            if (parts and parts[-1].is_opaque(marks)) or pieces.ends_at(part):
                break
            parts.append(part)
            if part.layer is bottom:
                break
            marks = part.marks()
            if marks.redirect is not None and self._follows(marks) and part.parent is not None:
                if not part.is_opaque(marks):
                    parts.extend(self.redirected(marks.redirect, beside, part.layer.index))
                break
        return tuple(parts)

    def _follows(self, marks: ondisk.Marks) -> bool:
        """Tell whether a redirect may be followed: not one that an owner can point where he himself may not look."""
        return not (marks.untrusted and self.guarded)

    def redirected(self, redirect: bytes, beside: tuple[Dir, ...], above: int = 0) -> tuple[Dir, ...]:
        """Return the directories that ``redirect`` names in the layers below number ``above``.

        An absolute redirect starts at the roots of these layers, any other one names a sibling (overlayfs.rst,
        "redirect_dir").
        """
        names = ondisk.redirect_names(redirect)
        if not names:
            return ()
        if not redirect.startswith(b"/"):
            below = tuple(part for part in beside if part.layer.index > above)
            return self._stack(pieces.named(below, redirect), below)
        return self.below(names, above)

    def below(self, names: list[bytes], above: int) -> tuple[Dir, ...]:
        """Return the directories at the path ``names`` in the layers below number ``above``, as they merge there."""
        parts = self._stack(layer.root for layer in self.lowers if layer.index > above)
        for name in names:
            parts = self._stack(pieces.named(parts, name), parts)
        return parts

    # -- listing -----------------------------------------------------------------------------------------------------

    def listing(self, node: DirNode) -> Listing:
        """Return the names in a directory, read as they are asked for. Raises OSError."""
        if node.listing is None or node.listing.failed:
            node.listing = Listing(self._batches(node))
        return node.listing

    def look_up_listed(self, node: DirNode, name: bytes, position: int) -> AnyNode | None:
        """Return the node of a name that was listed without its inode number; None if it is gone. Raises OSError."""
        found = self.lookup(node, name)
        if found is None:
            return None
        self.listing(node).set_ino(position, found[0].ino)
        return found[0]

    def names(self, node: DirNode) -> Iterator[Found]:
        """Yield the merged names of a directory once each, with type and inode number (0 where that takes a lookup)."""
        for found in self._batches(node):
            yield from zip(*found, strict=True)

    def _batches(self, node: DirNode) -> Iterator[Columns]:
        """Yield the same, many at a time."""
        upper, lowers = node.upper, self.enter(node)
        hidden: set[bytes] = set()
        if upper is not None:
            deleted: list[bytes] = []
            for found in pieces.shown(upper, deleted):
                if lowers:
                    hidden.update(found[0])
                yield self._numbered(upper, found, files=not node.impure, directories=False)
            hidden.update(deleted)
        unmerged = upper is None and len(lowers) == 1
        for part, found in pieces.merged(node, lowers):
            visible = pieces.without(found, hidden)
            yield self._numbered(part, visible, files=True, directories=unmerged)

    def _numbered(self, part: Dir, found: Columns, *, files: bool, directories: bool) -> Columns:
        """Return what was found with the inode numbers to show; 0 where a layer does not tell them for this kind."""
        base, doubtful, nested = self.numbers.of_listing(part)
        names, kinds, inos = found
        if files and not base and ((directories and not doubtful) or DT_DIR not in kinds):
            return found
        told = [
            (directories and ino > doubtful and ino not in nested) if kind == DT_DIR else files
            for kind, ino in zip(kinds, inos, strict=True)
        ]
        return names, kinds, [ino ^ base if known else 0 for ino, known in zip(inos, told, strict=True)]

    def is_empty(self, node: DirNode) -> bool:
        """Tell whether a directory shows no name, whatever whiteouts it holds. Raises OSError.

        Who removes all that is in it has listed it before; nobody need be allowed to read it.
        """
        if node.upper is None:
            return self.listing(node).is_empty()
        return node.upper.layer.with_owners_rights(lambda: self.listing(node).is_empty(), self.place(node))

    # -- attributes --------------------------------------------------------------------------------------------------

    def stat(self, node: AnyNode) -> os.stat_result:
        """Return the attributes of the real file behind ``node``. Raises OSError."""
        if isinstance(node, Node) and node.data is not None:
            return metacopy.attributes(self, node)
        if node.descriptor >= 0:
            return os.stat(node.descriptor)
        if isinstance(node, DirNode):
            return pieces.stat_directory(node.upper or node.seed[0])
        home = node.home
        if home is None:
            assert node.parent is not None and node.parent.upper is not None
            home = node.parent.upper
            return os.stat(node.name, dir_fd=home.fd if home.fd >= 0 else home.descriptor(), follow_symlinks=False)
        return os.stat(node.home_name, dir_fd=home.fd if home.fd >= 0 else home.descriptor(), follow_symlinks=False)

    def place(self, node: AnyNode) -> tuple[int, bytes]:
        """Return a directory descriptor and the name in it at which the real file behind ``node`` stands.

        Raises OSError.
        """
        if isinstance(node, DirNode):
            return pieces.place(node.upper or node.seed[0])
        home = node.home
        if home is not None:
            return home.descriptor(), node.home_name
        if node.parent is None or node.parent.upper is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), node.name)
        return node.parent.upper.descriptor(), node.name

    def proc_path(self, node: AnyNode) -> bytes:
        """Return a path to the real file for calls that take no descriptor; follow no link at its end.

        Raises OSError.
        """
        if node.descriptor >= 0:
            return b"/proc/self/fd/%d" % node.descriptor
        directory, name = self.place(node)
        return b"/proc/self/fd/%d/%s" % (directory, name)

    def open(self, node: Node, flags: int) -> int:
        """Open the data of ``node`` as it stands now, in whichever layer; return the descriptor. Raises OSError.

        To read a file of a lower layer leaves its access time alone, unless it is another's and we have no privilege.
        """
        if node.protection:
            refuse(self, node, forbidding(flags))
        if node.in_upper:
            return self.open_own(node, flags)
        try:
            return metacopy.open_lower(self, node, flags | os.O_NOATIME)
        except PermissionError:
            return metacopy.open_lower(self, node, flags)

    def open_own(self, node: Node, flags: int) -> int:
        """Open the file that has the attributes of ``node``, though its data may be elsewhere. Raises OSError."""
        if node.descriptor >= 0:
            return os.open(b"/proc/self/fd/%d" % node.descriptor, flags | os.O_CLOEXEC)
        directory, name = self.place(node)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)

    def readlink(self, node: Node) -> bytes:
        """Return the target of a symbolic link. Raises OSError."""
        directory, name = self.place(node) if node.descriptor < 0 else (node.descriptor, b"")
        return os.readlink(name, dir_fd=directory)

    def getxattr(self, node: AnyNode, name: bytes) -> bytes:
        """Return the value of an extended attribute; those that belong to the format do not exist. Raises OSError."""
        if name.startswith(ondisk.FUSE_OVERLAYFS_PREFIX):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), name)
        try:
            return os.getxattr(
                self.proc_path(node), ondisk.escape_attribute(name), follow_symlinks=node.descriptor >= 0
            )
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP and name.startswith(_ACL_PREFIX):
                error.errno = errno.ENODATA  # or the kernel would refuse every access to a file that can have no ACL
            raise

    def listxattr(self, node: AnyNode) -> list[bytes]:
        """Return the names of the extended attributes that a program may see. Raises OSError."""
        stored = os.listxattr(self.proc_path(node), follow_symlinks=node.descriptor >= 0)
        shown = (ondisk.unescape_attribute(os.fsencode(name)) for name in stored)
        return [name for name in shown if name is not None]

    def shown(self, node: AnyNode, state: os.stat_result) -> os.stat_result:
        """Return the attributes to show for ``node``, ``state`` being the real ones: others where owners are mapped."""
        return state

    def statfs(self) -> os.statvfs_result:
        """Return the figures of the file system that is written to, or of the topmost layer's. Raises OSError."""
        return os.statvfs((self.upper or self.lowers[0]).root.fd)

    def links(self, node: AnyNode, state: os.stat_result) -> int:
        """Return the st_nlink to show: 1 for a merged directory, as overlayfs does; names in all layers for a file."""
        if isinstance(node, DirNode):
            if node.parent is None and node.id != ROOT_ID:
                return 0
            return 1 if not self.counts_subdirectories or pieces.is_merged(node) else state.st_nlink
        if node.links is not None:
            return max(0, state.st_nlink + node.links.delta)
        return state.st_nlink if node.parent is not None or node.owned else 0
