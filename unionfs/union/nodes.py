"""The table of the files that somebody knows: ids, names, parents, where each one's data is.

A node knows its parent, its name, and its place in a layer, so that a rename moves a link in this table and nothing
else. A node lives as long as somebody counts on it: the kernel, by its lookups; its children; or an open file. All that
a new server would need in order to go on is here. This module makes no system call but closing descriptors.

A file handle (open_by_handle_at(2)) holds an id: a file has one, also if it is forgotten and met again, and no other
file ever has it. For what is met in a layer that is the inode number to show. What was made since may have the number
of a file that is gone; it has an id apart, which is kept until it is gone too. Where handles are to hold over mounts,
it has its number as well, and a generation tells it from files that had the number before (``handles``).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from unionfs.layers.layer import Dir
    from unionfs.union.handles import Forgotten
    from unionfs.union.listing import Listing

ROOT_ID = 1
_FIRST_APART = 1 << 63
LACKS_NOTHING, LACKS_CAPABILITY, LACKS_ATTRIBUTES = range(3)  # what is known of the extended attributes of a file
Table = dict[bytes, "int | tuple[int, ...]"]
"""By name, the number of the lower part that has it; the numbers of all where they are directories, and merge."""
InodeKey = tuple[int, int]
"""st_dev and st_ino of the real file behind a node."""


class Node:
    """A file that is no directory.

    ``home`` and ``home_name`` say where in a layer it stands when that is not ``parent.upper``/``name``: in a lower
    layer, or in the index of hard links. ``descriptor`` is kept once the last name is gone (-1 otherwise).
    ``in_upper`` says that the writable layer has it whole; ``data`` where its data is when its attributes stand apart.
    ``protection`` are inode flags that this program has to obey itself, see ``union/inode_flags``.
    ``lacks`` says what it is known not to have: a file capability, which the kernel asks for before it lets anybody
    write, or any extended attribute that shows.
    """

    __slots__ = (
        "data",
        "descriptor",
        "generation",
        "home",
        "home_name",
        "id",
        "in_upper",
        "ino",
        "lacks",
        "links",
        "lookups",
        "name",
        "offered",
        "opened",
        "parent",
        "protection",
    )

    is_directory = False

    def __init__(self, node_id: int, parent: DirNode, name: bytes, ino: int) -> None:
        self.id = node_id
        self.generation = 0
        self.parent: DirNode | None = parent
        self.name = name
        self.ino = ino
        self.lookups = 0
        self.home: Dir | None = None
        self.home_name = name
        self.in_upper = True
        self.lacks = LACKS_NOTHING
        self.descriptor = -1
        self.offered = False  # whether the transport has handed its data out, or tried to
        self.opened: object | None = None  # what the transport knows of its open handles
        self.links: Links | None = None
        self.data: Data | None = None
        self.protection = 0

    @property
    def owned(self) -> bool:
        """Whether the writable layer has the attributes of this file, with its data or without."""
        return self.in_upper or (self.data is not None and self.data.in_upper)


class Data:
    """Where the data of a file is that has only its attributes where it stands (overlayfs.rst, "metacopy").

    ``place`` is None if there is no such data. ``in_upper`` says that the attributes stand in the writable layer.
    ``frozen`` are the attributes to show while the data is being copied to them.
    """

    __slots__ = ("frozen", "in_upper", "name", "place")

    def __init__(self, place: Dir | None, name: bytes, *, in_upper: bool) -> None:
        self.place = place
        self.name = name
        self.in_upper = in_upper
        self.frozen: os.stat_result | None = None


class Links:
    """What is known of a file with several names: which they are, its keys in the table, and how its links are counted.

    ``delta`` is what to add to the real file's st_nlink: names that stand in lower layers alone, minus the index's
    link.
    """

    __slots__ = ("delta", "keys", "names")

    def __init__(self) -> None:
        self.keys: set[InodeKey] = set()
        self.names: set[tuple[DirNode, bytes]] = set()
        self.delta = 0


class DirNode:
    """A directory: ``upper`` is its part in the writable layer, ``lowers`` its parts below, topmost first.

    ``lowers`` is None until somebody enters the directory. ``table`` remembers which of several lower parts has a name.
    """

    __slots__ = (
        "children",
        "default_acl",
        "descriptor",
        "generation",
        "id",
        "impure",
        "ino",
        "listing",
        "lookups",
        "lowers",
        "name",
        "parent",
        "protection",
        "seed",
        "table",
        "upper",
    )

    is_directory = True

    def __init__(self, node_id: int, parent: DirNode | None, name: bytes, ino: int) -> None:
        self.id = node_id
        self.generation = 0
        self.parent = parent
        self.name = name
        self.ino = ino
        self.lookups = 0
        self.upper: Dir | None = None
        self.lowers: tuple[Dir, ...] | None = None
        self.seed: tuple[Dir, ...] = ()  # lower parts found on the way, before opaqueness has been asked for
        self.children: dict[bytes, AnyNode] = {}
        self.table: Table | None = None
        self.listing: Listing | None = None
        self.default_acl: bool | None = None  # None: not asked yet
        self.descriptor = -1
        self.impure = False  # whether overlay.impure is known to stand
        self.protection = 0

    @property
    def owned(self) -> bool:
        """Whether the writable layer has the attributes of this directory."""
        return self.upper is not None

    def leave_layers(self) -> None:
        """Let go of the parts in the layers, which have the directory no longer.

        One that is open would take room on the disk until the cache of descriptors has no place for it.
        """
        if self.upper is not None:
            self.upper.close()
        self.upper, self.lowers, self.table, self.listing = None, (), None, None

    def path(self) -> bytes:
        """Return the absolute path in the merged tree, as it is now."""
        return _path(self)


AnyNode = Node | DirNode


def _path(node: AnyNode) -> bytes:
    names: list[bytes] = []
    place: AnyNode = node
    while place.parent is not None:
        names.append(place.name)
        place = place.parent
    return b"/" + b"/".join(reversed(names))


class NodeTable:
    """All nodes by id, and those with several names by the real file behind them.

    ``kept_ids`` are the ids that files do not tell by themselves, by the number that the real file would show; for
    those that show another one, ``_copies`` has it, with their generation. ``forgotten`` says where those are that left
    this table, once somebody has asked for one. ``exported``: file handles are to hold over mounts.
    """

    __slots__ = ("_copies", "_next", "by_id", "by_key", "exported", "forgotten", "kept_ids", "root")

    def __init__(self, root: DirNode) -> None:
        self.root = root
        self.by_id: dict[int, AnyNode] = {ROOT_ID: root}
        self.by_key: dict[InodeKey, Node] = {}
        self.kept_ids: dict[int, int] = {}
        self._copies: dict[int, tuple[int, int]] = {}
        self.exported = False
        self.forgotten: Forgotten | None = None
        self._next = _FIRST_APART

    def new_id(self) -> int:
        """Return an id that was never used in this table."""
        node_id = self._next
        self._next += 1
        return node_id

    def identify(self, node: AnyNode, real_ino: int) -> None:
        """Give a node that was met in a layer its id; ``real_ino`` is the number that its real file would show.

        Where two files would show one number, because somebody copied a file with the mark of its origin, the one that
        is met second has that of its real file from then on.
        """
        node_id = self.kept_ids.get(real_ino)
        if node_id is None and node.ino in self.by_id and node.ino != real_ino:
            node_id = self.kept_ids[real_ino] = real_ino
        if node_id is None:
            node_id = node.ino if node.ino < _FIRST_APART else ROOT_ID
        elif node_id < _FIRST_APART:
            node.ino = node_id
        node.id = self.new_id() if node_id in self.by_id or not node_id else node_id

    def identify_new(self, node: AnyNode) -> None:
        """Give a node that was just made its id."""
        if self.exported and 0 < node.ino < _FIRST_APART and node.ino not in self.by_id:
            node.id = node.ino
        else:
            node.id = self.new_id()
            self.keep_id(node, node.ino)

    def keep_id(self, node: AnyNode, real_ino: int) -> None:
        """Let ``node`` have its id again when ``real_ino`` is met in the writable layer."""
        self.kept_ids[real_ino] = node.id
        if real_ino != node.ino:
            self._copies[node.id] = real_ino, node.generation

    def kept_generation(self, node: AnyNode) -> int:
        """Return the generation that goes with an id which the file does not tell by itself, 0 for any other file."""
        copy = self._copies.get(node.id)
        return 0 if copy is None else copy[1]

    def drop_id(self, node: AnyNode) -> None:
        """A file is gone: its number may be another file's."""
        real_ino, _generation = self._copies.pop(node.id, (node.ino, 0))
        if self.kept_ids.get(real_ino) == node.id:
            del self.kept_ids[real_ino]

    def attach(self, node: AnyNode) -> None:
        """Enter ``node`` under its id and, if it has a name, as a child of its parent."""
        self.by_id[node.id] = node
        if node.parent is not None:
            node.parent.children[node.name] = node

    def share(self, node: Node, key: InodeKey) -> Links:
        """Let other names of the real file ``key`` find ``node``: it has, or had, more than one."""
        links = node.links
        if links is None:
            links = node.links = Links()
            if node.parent is not None:
                links.names.add((node.parent, node.name))
        links.keys.add(key)
        self.by_key[key] = node
        return links

    def add_name(self, node: Node, parent: DirNode, name: bytes) -> None:
        """Make ``name`` one more name of ``node``, which is shared."""
        assert node.links is not None
        node.links.names.add((parent, name))
        parent.children[name] = node
        if node.parent is None:
            node.parent, node.name = parent, name

    def drop_name(self, node: AnyNode, parent: DirNode, name: bytes) -> bool:
        """Forget one name of ``node``; return whether another one is known. The node itself stays."""
        parent.children.pop(name, None)
        names = _names(node)
        names.discard((parent, name))
        if not names:
            node.parent = None
            return False
        if (node.parent, node.name) == (parent, name):
            node.parent, node.name = next(iter(names))
        return True

    def move(self, node: AnyNode, place: tuple[DirNode, bytes], target: tuple[DirNode, bytes]) -> None:
        """Give ``node`` the parent and name ``target`` instead of those of ``place``."""
        parent, name = place
        if parent.children.get(name) is node:
            del parent.children[name]
        names = _names(node)
        if names:
            names.discard(place)
            names.add(target)
        if (node.parent, node.name) == place:
            node.parent, node.name = target
        target[0].children[target[1]] = node

    def exchange(
        self, node: AnyNode, place: tuple[DirNode, bytes], other: AnyNode, target: tuple[DirNode, bytes]
    ) -> None:
        """Let two nodes change places."""
        self.move(node, place, target)
        self.move(other, target, place)

    def forget(self, node: AnyNode, count: int) -> None:
        """Take back ``count`` lookups; a node on which nobody counts any longer leaves the table, and so may its
        parents.
        """
        node.lookups -= count
        waiting: list[AnyNode] = [node]
        while waiting:
            current = waiting.pop()
            if current.lookups <= 0 and current.id != ROOT_ID and not _is_needed(current):
                waiting.extend(self._remove(current))

    def _remove(self, node: AnyNode) -> Iterable[AnyNode]:
        """Take ``node`` out of the table; return the parents that it held there."""
        self.by_id.pop(node.id, None)
        if self.forgotten is not None:
            self.forgotten.note(node)
        let_go(node)
        if isinstance(node, Node) and node.links is not None:
            return self._remove_shared(node, node.links)
        parent = node.parent
        if parent is None:
            self.drop_id(node)
            return ()
        if parent.children.get(node.name) is node:
            del parent.children[node.name]
        return (parent,)

    def _remove_shared(self, node: Node, links: Links) -> list[DirNode]:
        """Take a file with several names out of the table, which is left by its directories in turn."""
        for key in links.keys:
            if self.by_key.get(key) is node:
                del self.by_key[key]
        for parent, name in links.names:
            if parent.children.get(name) is node:
                del parent.children[name]
        return [parent for parent, _ in links.names]


def let_go(node: AnyNode) -> None:
    """Close the descriptor of ``node``, if one is kept."""
    if node.descriptor >= 0:
        os.close(node.descriptor)
        node.descriptor = -1


def _names(node: AnyNode) -> set[tuple[DirNode, bytes]]:
    """Return the names of a shared file; an empty set for any other node."""
    if isinstance(node, Node) and node.links is not None:
        return node.links.names
    return set()


def _is_needed(node: AnyNode) -> bool:
    return bool(node.children) if isinstance(node, DirNode) else node.opened is not None
