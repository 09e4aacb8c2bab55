"""Opening a stack: layers, writable layer and workdir, with all that is wrong with them said before anything starts.

Each layer is a clone of its mount without what is mounted below it, where the system allows that (open_tree(2)): it
holds neither /proc nor the stack that is about to be mounted in it. The writable layer and its workdir share a clone,
and are locked for as long as they are open, so that no second server changes them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource

from unionfs import errors, ondisk
from unionfs.layers.layer import DescriptorCache, Layer
from unionfs.layers.writable import WritableLayer
from unionfs.policy import Offers
from unionfs.syscalls import mounts
from unionfs.union import handles
from unionfs.union.copyup import CopyUp
from unionfs.union.links import LinkIndex
from unionfs.union.mutate import Mutations
from unionfs.union.rename import Renames
from unionfs.union.view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from unionfs.idmap import Ownership

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_MOST_DIRECTORIES = 1024
_VOLATILE = (b"incompat", b"volatile")


class Config:
    """What to stack: absolute paths, ``lowers`` topmost first; ``volatile`` gives up durability for speed.

    ``data_layers`` show nothing themselves: they hold data of files in ``lowers`` (overlayfs.rst, "Data-only lower
    layers"). With ``metacopy``, a change of attributes copies no data; with ``nfs_export``, file handles hold over
    mounts. ``whiteouts`` names the dialect to write, None for the strongest that the writable layer can hold.
    """

    __slots__ = (
        "atime",
        "data_layers",
        "lowers",
        "makes_workdir",
        "metacopy",
        "nfs_export",
        "offers",
        "owners",
        "upper",
        "volatile",
        "whiteouts",
        "workdir",
    )

    def __init__(
        self,
        lowers: Sequence[bytes],
        upper: bytes | None = None,
        workdir: bytes | None = None,
        *,
        volatile: bool = False,
        metacopy: bool = False,
        nfs_export: bool = False,
        whiteouts: str | None = None,
        data_layers: Sequence[bytes] = (),
    ) -> None:
        self.lowers = [_absolute(path) for path in lowers]
        self.upper = None if upper is None else _absolute(upper)
        self.workdir = None if workdir is None else _absolute(workdir)
        self.makes_workdir = upper is not None and self.workdir == default_workdir(upper)
        self.volatile = volatile
        self.metacopy = metacopy
        self.nfs_export = nfs_export
        self.whiteouts = whiteouts
        self.data_layers = [_absolute(path) for path in data_layers]
        self.atime = mounts.MOUNT_ATTR_RELATIME  # when reading changes access times in the writable layer
        self.offers = Offers()
        self.owners: Ownership | None = None  # how owners are mapped; None: they are shown as they are


def _absolute(path: bytes) -> bytes:
    """Return ``path`` from the root on. Raises LayerMissing where it is empty, as an unset variable leaves it: that
    does not mean the working directory.
    """
    if not path:
        raise errors.LayerMissing(path=path)
    return os.path.abspath(path)


class Stack:
    """An open stack: ``view`` to read it and, if it is writable, ``edit`` and ``renames`` to change it."""

    __slots__ = ("_base", "config", "edit", "renames", "upper", "view")

    def __init__(self, config: Config, view: View, upper: WritableLayer | None, base: int) -> None:
        self.config = config
        self.view = view
        self.upper = upper
        self._base = base
        self.edit: Mutations | None = None
        self.renames: Renames | None = None
        if upper is not None:
            view.keeps_links = upper.can_link()
            view.index = LinkIndex(view, upper, base)
            self.edit = _mutations(view, upper, view.index)
            self.edit.copyup.metacopy = config.metacopy and upper.dialect.redirects
            self.renames = Renames(self.edit)

    def writable(self) -> Mutations:
        """Return what changes this stack. Raises OSError (EROFS) where there is no writable layer."""
        if self.edit is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self.edit

    def close(self) -> None:
        """Close everything and give the locks back."""
        close_lowers(self.view)
        if self.view.index is not None:
            self.view.index.close()
        if self.upper is not None:
            if self.config.volatile:
                _clear_volatile(self.upper.work)
            self.upper.close()
            os.close(self._base)


def open_stack(config: Config, *, own_process: bool = True) -> Stack:
    """Open all that ``config`` names. Raises a LayerError that names the directory and says what to do.

    In a process of its own a stack may raise the limit of descriptors; as a guest in a program it leaves that alone.
    """
    if not config.lowers:
        raise errors.NoLayers()
    opened: list[int] = []
    try:
        cache = DescriptorCache(_descriptor_budget(own_process=own_process))
        upper, base = open_writable(config, opened, cache) if config.upper is not None else (None, -1)
        lowers = _open_lowers(config, opened, cache)
        hidden = [] if upper is None else [os.fstat(descriptor) for descriptor in (upper.root.fd, base)]
        stack = Stack(config, _view(config, lowers, upper, cache, hidden), upper, base)
        if upper is not None and config.volatile:
            _mark_volatile(upper.work)  # nothing has been written before
        return stack
    except BaseException:
        for descriptor in opened:
            os.close(descriptor)
        raise


def open_to_read(config: Config) -> View:
    """Open the layers to look at them, also while a server uses them: no lock is taken and nothing changed. Raises
    LayerError.

    The view is to be closed with :func:`close_view`.
    """
    if not config.lowers:
        raise errors.NoLayers()
    opened: list[int] = []
    cache = DescriptorCache(_descriptor_budget(own_process=False))
    try:
        upper = None if config.upper is None else _open_lower(config.upper, 0, opened, cache)
        lowers = _open_lowers(config, opened, cache)
    except BaseException:
        for descriptor in opened:
            os.close(descriptor)
        raise
    parts = [path for path in (config.upper, config.workdir) if path is not None and os.path.exists(path)]
    return _view(config, lowers, upper, cache, [os.stat(path) for path in parts])


def _view(
    config: Config, layers: list[Layer], upper: Layer | None, cache: DescriptorCache, hidden: list[os.stat_result]
) -> View:
    """Return the view of ``layers``, the data-only ones last, in none of which the ``hidden`` places show."""
    places = frozenset(map(_identity, hidden))
    for layer in layers:
        layer.hidden = places
    count = len(config.lowers)
    view = _new_view(config, layers[:count], upper, cache)
    view.data_layers = layers[count:]
    view.counts_subdirectories = config.offers.subdirectories
    if config.nfs_export:
        handles.export(view)
    return view


def _new_view(config: Config, lowers: list[Layer], upper: Layer | None, cache: DescriptorCache) -> View:
    if config.owners is None:
        return View(lowers, upper, cache)
    from unionfs.union.owners import MappedView  # not needed by most

    return MappedView(lowers, upper, cache, config.owners)


def _mutations(view: View, upper: WritableLayer, index: LinkIndex) -> Mutations:
    if type(view) is View:
        return Mutations(view, CopyUp(view, upper, index))
    from unionfs.union.mapped import mutations

    return mutations(view, upper, index)


def close_view(view: View) -> None:
    """Close what :func:`open_to_read` has opened."""
    close_lowers(view)
    if view.upper is not None:
        view.upper.close()


def close_lowers(view: View) -> None:
    """Close the lower layers and every directory that the cache has kept open."""
    view.cache.clear()
    for layer in view.lowers + view.data_layers:
        layer.close()


def _descriptor_budget(*, own_process: bool) -> int:
    """Return how many directories may stay open, having raised the limit as far as it may go if the process is ours."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if own_process and soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    return max(16, min(_MOST_DIRECTORIES, soft // 4))


# -- lower layers ----------------------------------------------------------------------------------------------------


def open_directory(path: bytes) -> int:
    """Open a directory that a user named as a layer. Raises LayerError."""
    try:
        return os.open(path, _DIRECTORY)
    except FileNotFoundError:
        raise errors.LayerMissing(path=path) from None
    except NotADirectoryError:
        raise errors.LayerNotDirectory(path=path) from None
    except OSError as error:
        raise errors.LayerUnreadable(path=path, reason=error.strerror) from None


def _open_lowers(config: Config, opened: list[int], cache: DescriptorCache) -> list[Layer]:
    """Open the lower layers, and below them the data-only ones."""
    return [_open_lower(path, index, opened, cache) for index, path in enumerate(config.lowers + config.data_layers, 1)]


def _open_lower(path: bytes, index: int, opened: list[int], cache: DescriptorCache) -> Layer:
    descriptor = clone(open_directory(path))
    opened.append(descriptor)
    return Layer(path, descriptor, index, cache)


def can_clone() -> bool:
    """Tell whether this process may clone the mount of its root directory; in most user namespaces it may not."""
    try:
        os.close(mounts.clone_tree(mounts.AT_FDCWD, b"/"))
    except OSError:
        return False
    return True


def clone(plain: int) -> int:
    """Return the same directory opened in a mount of its own, with nothing mounted below it, where reading leaves
    access times alone; ``plain`` where that fails.
    """
    try:
        tree = _clone_tree(plain, b"", mounts.MOUNT_ATTR_NOATIME)
    except OSError:
        return plain
    try:
        cloned = os.open(b".", _DIRECTORY, dir_fd=tree)
    except OSError:
        return plain
    finally:
        os.close(tree)
    os.close(plain)
    return cloned


def _clone_tree(directory: int, path: bytes, atime: int) -> int:
    """Return a clone of the mount at ``path`` that keeps access times as ``atime`` says (MOUNT_ATTR_*), where the
    system lets us choose. Raises OSError.
    """
    tree = mounts.clone_tree(directory, path)
    try:
        mounts.set_attributes(tree, b"", atime, clear=mounts.MOUNT_ATTR_ATIME)
    except OSError:
        pass  # before Linux 5.12
    return tree


# -- the writable layer and its workdir ------------------------------------------------------------------------------


def default_workdir(upper: bytes) -> bytes:
    """Return the workdir of a writable layer for which none was named: a hidden directory beside it."""
    parent, name = os.path.split(os.path.realpath(upper))
    return os.path.join(parent, b"." + name + b".unionfs-work")


def remove_workdir(workdir: bytes) -> None:
    """Remove a workdir that nothing needs any longer; one that holds an index of hard links stays."""
    for path in (os.path.join(workdir, b"work"), workdir):
        try:
            os.rmdir(path)
        except OSError:
            return


def open_writable(config: Config, opened: list[int], cache: DescriptorCache) -> tuple[WritableLayer, int]:
    """Open and lock the writable layer and its workdir, whose descriptor is returned as well. Raises LayerError.

    Each descriptor is added to ``opened``: those are to be closed if anything fails, here or later.
    """
    assert config.upper is not None
    if config.workdir is None:
        raise errors.WorkdirMissing(upper=config.upper)
    top = open_directory(config.upper)
    opened.append(top)
    _check_writable(config.upper, top)
    _check_upper(config)
    if config.makes_workdir:
        _make_workdir(config.workdir)
    base = open_directory(config.workdir)
    opened.append(base)
    _check_workdir(config)
    _check_same_mount(config, top, base)
    _stand_apart((top, base), [os.path.realpath(path) for path in (config.upper, config.workdir)], config.atime)
    for descriptor, path in ((top, config.upper), (base, config.workdir)):
        lock(descriptor, path)
    work = _open_work(base, config)
    opened.append(work)
    dialect = None if config.whiteouts is None else demanded_dialect(config.whiteouts)
    return WritableLayer(config.upper, top, work, cache, durable=not config.volatile, dialect=dialect), base


def _make_workdir(workdir: bytes) -> None:
    try:
        os.makedirs(workdir, mode=0o700, exist_ok=True)
    except OSError as error:
        raise errors.WorkdirUnusable(workdir=workdir, reason=error.strerror) from None


def demanded_dialect(name: str) -> ondisk.Dialect:
    """Return the dialect that a user has named. Raises UsageError."""
    dialect = ondisk.dialect_named(name)
    if dialect is None:
        known = ", ".join(dialect.name for dialect in ondisk.DIALECTS)
        raise errors.UsageError(problem=f"no such kind of whiteouts: '{name}'; there are {known}")
    return dialect


def _check_writable(path: bytes, descriptor: int) -> None:
    if os.fstatvfs(descriptor).f_flag & os.ST_RDONLY:
        raise errors.UpperReadOnly(path=path, reason=os.strerror(errno.EROFS))
    if not os.access(b"/proc/self/fd/%d" % descriptor, os.W_OK | os.X_OK, effective_ids=True):
        raise errors.UpperReadOnly(path=path, reason=os.strerror(errno.EACCES))


def _check_upper(config: Config) -> None:
    """Refuse layers that contain one another: what is written to one would change the other under way."""
    assert config.upper is not None
    for lower in config.lowers + config.data_layers:
        open_directory_exists(lower)
        relation = relate(config.upper, lower)
        if relation is not None and not _in_machine_root(relation, lower):
            raise errors.UpperOverlapsLower(upper=config.upper, relation=relation, lower=lower)


def _check_workdir(config: Config) -> None:
    """Refuse a workdir that has to do with any layer."""
    assert config.upper is not None and config.workdir is not None
    relation = relate(config.workdir, config.upper)
    if relation is not None:
        raise errors.WorkdirOverlaps(workdir=config.workdir, relation=relation, layer=config.upper)
    for lower in config.lowers + config.data_layers:
        relation = relate(config.workdir, lower)
        if relation is not None and not _in_machine_root(relation, lower):
            raise errors.WorkdirOverlaps(workdir=config.workdir, relation=relation, layer=lower)


def open_directory_exists(path: bytes) -> None:
    """Raise the LayerError that fits if ``path`` cannot be a layer."""
    os.close(open_directory(path))


def _in_machine_root(relation: str, lower: bytes) -> bool:
    """Everything is inside of ``/``: as a layer it is allowed all the same, and then does not show
    what is written to.
    """
    return relation == "is inside" and os.path.realpath(lower) == b"/"


def relate(path: bytes, other: bytes) -> str | None:
    """Return what ``path`` has to do with ``other``, both directories: "is", "is inside", "is above" or None."""
    chain, other_chain = _ancestors(path), _ancestors(other)
    if chain[0] == other_chain[0]:
        return "is"
    if other_chain[0] in chain:
        return "is inside"
    return "is above" if chain[0] in other_chain else None


def _ancestors(path: bytes) -> list[tuple[int, int]]:
    """Return what identifies a directory and those above it, up to the root."""
    place = os.path.realpath(path)
    found = []
    while True:
        found.append(_identity(os.stat(place)))
        parent = os.path.dirname(place)
        if parent == place:
            return found
        place = parent


def _identity(state: os.stat_result) -> tuple[int, int]:
    return state.st_dev, state.st_ino


def _check_same_mount(config: Config, top: int, base: int) -> None:
    """See whether a rename leads from the workdir to the writable layer, by trying one of a file that is missing."""
    try:
        os.rename(b"#missing", b"#missing", src_dir_fd=base, dst_dir_fd=top)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise errors.WorkdirElsewhere(workdir=config.workdir, upper=config.upper) from None


def _stand_apart(descriptors: tuple[int, int], paths: list[bytes], atime: int) -> None:
    """Let two directories of one mount be open in a clone of it instead, where this process may make one.

    What they lie on can then be unmounted as soon as we have been, while the server is still ending, or earlier; and
    access times are kept as is asked for. The kernel's overlayfs does the same (ovl_get_upper in fs/overlayfs/super.c).
    """
    above = os.path.commonpath(paths)
    fresh: list[int] = []
    try:
        fresh.append(_clone_tree(mounts.AT_FDCWD, above, atime))
        fresh.extend(os.open(os.path.relpath(path, above), _DIRECTORY, dir_fd=fresh[0]) for path in paths)
        if all(map(os.path.sameopenfile, fresh[1:], descriptors)):
            for ours, plain in zip(fresh[1:], descriptors, strict=True):
                os.dup2(ours, plain, inheritable=False)
    except OSError:
        return
    finally:
        for descriptor in fresh:
            os.close(descriptor)


def lock(descriptor: int, path: bytes) -> None:
    """Lock an open directory for as long as it is open. Raises LayerInUse."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise errors.LayerInUse(path=path) from None
    except OSError:
        return  # a file system without locks


def _open_work(base: int, config: Config) -> int:
    """Open ``work`` in the workdir, where the kernel's overlayfs has its own as well. Raises LayerError."""
    try:
        try:
            os.mkdir(b"work", 0o700, dir_fd=base)
        except FileExistsError:
            os.chmod(b"work", 0o700, dir_fd=base)
        work = os.open(b"work", _DIRECTORY | os.O_NOFOLLOW, dir_fd=base)
    except OSError as error:
        raise errors.WorkdirUnusable(workdir=config.workdir, reason=error.strerror) from None
    if _is_volatile(work):
        os.close(work)
        raise errors.LeftVolatile(workdir=config.workdir, upper=config.upper)
    return work


# -- volatile mounts: overlayfs.rst, "Volatile mount" ----------------------------------------------------------------


def _is_volatile(work: int) -> bool:
    try:
        os.stat(b"/".join(_VOLATILE), dir_fd=work)
    except OSError:
        return False
    return True


def _mark_volatile(work: int) -> None:
    """Leave a sign that what is written now may be lost in a crash; :meth:`Stack.close` takes it away."""
    os.mkdir(_VOLATILE[0], 0o700, dir_fd=work)
    os.mkdir(b"/".join(_VOLATILE), 0o700, dir_fd=work)


def _clear_volatile(work: int) -> None:
    os.rmdir(b"/".join(_VOLATILE), dir_fd=work)
    os.rmdir(_VOLATILE[0], dir_fd=work)
