"""The Python packages that speak to libfuse, behind one face: mfusepy (libfuse 2 and 3), or else fusepy (libfuse 2).

Both hand each callback of libfuse to a method of an object, and both lose something on the way, which is put back here:
fusepy the offset of readdir, the connection at init, and fallocate; mfusepy the flags of libfuse 3's rename and the
handle of its truncate; both the difference between a time and "now" or "leave it". Names pass as latin-1, a character a
byte, so that every name survives. This module does not know what the callbacks do.
"""

from __future__ import annotations

from importlib import import_module

from unionfs import errors
from unionfs.syscalls import libfuse

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class FileInfo(Protocol):
        """struct fuse_file_info: ``fh`` and ``keep_cache`` are ours to set; ``flags`` are those of open(2)."""

        flags: int
        fh: int
        keep_cache: int
        writepage: int

    class ConnectionInfo(Protocol):
        """struct fuse_conn_info: FUSE_CAP_* bits."""

        capable: int
        want: int

    class FuseModule(Protocol):
        """What both packages have in common."""

        FUSE: type[Any]
        _libfuse: Any
        c_stat: type[Any]
        fuse_file_info: type[Any]
        fuse_operations: type[Any]


ENCODING = "latin-1"
_PACKAGES = ("mfusepy", "fuse")


class Library:
    """One of the packages with the libfuse it found; ``version`` is the major one of that."""

    __slots__ = ("_is_mfusepy", "_module", "version")

    def __init__(self, module: FuseModule, *, is_mfusepy: bool) -> None:
        self._module = module
        self._is_mfusepy = is_mfusepy
        version: int = module._libfuse.fuse_version()
        self.version = version // 10 if version < 100 else version // 100  # 29 is 2.9, 310 is 3.10
        if not is_mfusepy and version == 29:
            module.fuse_operations = libfuse.with_fallocate(module.fuse_operations, module.fuse_file_info)

    def caller(self) -> tuple[int, int, int, int]:
        """Return user id, group id, umask and id of the process whose request is being answered."""
        return libfuse.caller(self._module._libfuse.fuse_get_context())

    def prepare(self, callbacks: object) -> None:
        """Tell the packages by attributes of ``callbacks`` that times are nanoseconds, and that a path may be None."""
        names = ("use_ns", "flag_nullpath_ok", "flag_nopath", "flag_utime_omit_ok")
        for name in names if self.version == 2 else names[:1]:
            setattr(callbacks, name, True)

    def run(self, callbacks: object, mountpoint: bytes, options: dict[str, str | int | bool]) -> None:
        """Mount, serve in this thread alone, and return when the mount has ended.

        ``callbacks`` has a method for each callback, called with a FileInfo where libfuse has one. Raises RuntimeError
        with libfuse's status if that is not 0.
        """
        session = type("Session", (self._module.FUSE,), self._corrections())
        callbacks = callbacks if self._is_mfusepy else _Callable(callbacks)
        where = mountpoint.decode(ENCODING)
        session(callbacks, where, raw_fi=True, encoding=ENCODING, foreground=True, nothreads=True, **options)

    def _corrections(self) -> dict[str, Any]:
        if self._is_mfusepy:
            return {
                "utimens_fuse_2": _utimens,
                "utimens_fuse_3": _utimens,
                "rename_fuse_3": _rename,
                "truncate_fuse_3": _truncate,
            }
        stat = self._module.c_stat

        def readdir(self: Any, path: bytes | None, buffer: int, fill: Any, offset: int, info: Any) -> int:
            return _readdir(self, stat(), buffer, fill, offset, info)

        corrections = (_init, _ioctl, _utimens, _fallocate)
        return {"readdir": readdir, **{function.__name__[1:]: function for function in corrections}}


def load() -> Library:
    """Return the first package that works. Raises errors.FusepyMissing or errors.LibfuseMissing."""
    lacks_libfuse = False
    for name in _PACKAGES:
        try:
            module: Any = import_module(name)
        except ModuleNotFoundError:
            continue
        except (OSError, AttributeError):  # no libfuse, or one of a version that the package does not know
            lacks_libfuse = True
            continue
        if hasattr(module, "fuse_operations"):  # another package calls itself fuse as well
            return Library(module, is_mfusepy=name == "mfusepy")
    raise errors.LibfuseMissing() if lacks_libfuse else errors.FusepyMissing()


class _Callable:
    """The callbacks as fusepy takes them: one object that is called with the callback's name."""

    init = readdir = True  # fusepy registers what it finds: these two are answered by the corrections above

    def __init__(self, callbacks: object) -> None:
        self._callbacks = callbacks

    def __call__(self, name: str, *args: object) -> object:
        return getattr(self._callbacks, name)(*args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._callbacks, name)


# -- methods of the packages' class FUSE, as they should be ----------------------------------------------------------


def _decode(path: bytes | None) -> str | None:
    return None if path is None else path.decode(ENCODING)


def _init(self: Any, address: int) -> None:
    self.operations.init_with_config(libfuse.connection(address), None)


def _readdir(self: Any, state: Any, buffer: int, fill: Any, offset: int, info: Any) -> int:
    while entries := self.operations.readdir_with_offset(None, offset, info.contents.fh):
        for name, attributes, offset in entries:
            state.st_mode, state.st_ino = attributes["st_mode"], attributes["st_ino"]
            if fill(buffer, name.encode(ENCODING), state, offset):
                return 0
    return 0


def _ioctl(self: Any, path: bytes | None, command: int, argument: int, info: Any, flags: int, data: int) -> int:
    result: int = self.operations.ioctl(None, command, argument, info.contents, flags, data)
    return result


def _utimens(self: Any, path: bytes | None, times: Any, info: Any = None) -> int:
    given = times.contents
    pairs = [(time.tv_sec, time.tv_nsec) for time in (given.actime, given.modtime)]
    result: int = self.operations.utimens(_decode(path), pairs)
    return result


def _fallocate(self: Any, path: bytes | None, mode: int, offset: int, size: int, info: Any) -> int:
    result: int = self.operations.fallocate(None, mode, offset, size, info.contents)
    return result


def _rename(self: Any, old: bytes, new: bytes, flags: int) -> int:
    result: int = self.operations.rename(_decode(old), _decode(new), flags)
    return result


def _truncate(self: Any, path: bytes | None, size: int, info: Any) -> int:
    result: int = self.operations.truncate(_decode(path), size, info.contents if info else None)
    return result
