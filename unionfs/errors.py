"""Everything that can be refused before a mount or a process exists: one class a reason, its docstring the message.

Pure: it says what is wrong and what to do about it, and never looks for itself. What goes wrong with a file *inside* a
stack is an OSError with its errno, as from any file system, and has no class here.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class UnionfsError(Exception):
    """{reason}"""

    # A subclass's docstring is the template of its message: one line that names the thing and says what to do.
    # The keyword values of the constructor fill it; paths may be str, bytes or os.PathLike.

    exit_status: int = 1
    """What ``unionmount`` exits with when this ends it."""

    def __init__(self, **values: object) -> None:
        self.values = values
        template = type(self).__doc__ or type(self).__name__  # python -OO drops docstrings
        super().__init__(template.format_map({key: readable(value) or "''" for key, value in values.items()}))

    def __reduce__(self) -> tuple[Callable[..., UnionfsError], tuple[Any, ...]]:
        return _rebuild, (type(self), self.values)


def _rebuild(kind: type[UnionfsError], values: dict[str, object]) -> UnionfsError:
    return kind(**values)


def readable(value: object) -> str:
    """Return ``value`` as one line for a person: paths decoded, and what cannot be printed written as an escape."""
    text = os.fsdecode(value) if isinstance(value, (bytes, os.PathLike)) else str(value)
    printable = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in printable)


def describe_os_error(error: OSError) -> str:
    """Return one line for an OSError: its path or paths, if it has any, and what the system says about them."""
    names = [readable(name) for name in (error.filename, error.filename2) if name is not None]
    reason = error.strerror or readable(error) or type(error).__name__
    return ": ".join([" -> ".join(names), reason] if names else [reason])


class UsageError(UnionfsError):
    """{problem}; see 'unionmount --help'"""

    exit_status = 2


class Retold(UnionfsError):
    """{text}"""

    # What ended another process: its message, and the exit status that belongs to it.

    def __init__(self, *, text: str, status: int) -> None:
        super().__init__(text=text, status=status)
        self.exit_status = status


# Layers


class LayerError(UnionfsError):
    """{path}: cannot be a layer: {reason}"""


class LayerMissing(LayerError):
    """{path}: no such layer; create the directory or correct the path"""


class LayerNotDirectory(LayerError):
    """{path}: is not a directory; a layer must be one"""


class LayerUnreadable(LayerError):
    """{path}: this layer cannot be read ({reason}); change its permissions or run as its owner"""


class NoLayers(LayerError):
    """no lower layer given; name at least one with 'lowerdir=' or '--lower'"""


class UpperReadOnly(LayerError):
    """{path}: the upper layer cannot be written ({reason}); choose another, or leave it out for a read-only mount"""


class NoFileHandles(LayerError):
    """{path}: its files have no handles ({reason}), as 'nfs_export=on' needs them; leave that out"""


class WhiteoutsImpossible(LayerError):
    """{upper}: cannot hold '{dialect}' whiteouts ({reason}); name other ones, or none for the strongest it can hold"""


class ConversionImpossible(LayerError):
    """{path}: cannot be written as '{dialect}': {reason}"""


class UpperOverlapsLower(LayerError):
    """{upper}: the upper layer {relation} the lower layer {lower}; choose an upper that lies outside of every lower"""

    # relation: "is", "is inside" or "is above"


class WorkdirMissing(LayerError):
    """{upper}: this upper layer needs a workdir; give an empty directory beside it with 'workdir=' or '--work'"""


class WorkdirUnusable(LayerError):
    """{workdir}: the workdir cannot be written ({reason}); choose an empty directory beside the upper with '--work'"""


class WorkdirElsewhere(LayerError):
    """{workdir}: the workdir is on another file system than the upper layer {upper}; choose one beside the upper"""


class WorkdirOverlaps(LayerError):
    """{workdir}: the workdir {relation} the layer {layer}; choose an empty directory beside the upper"""

    # relation: "is", "is inside" or "is above"


class LayerInUse(LayerError):
    """{path}: is in use as the upper layer or workdir of another mount; unmount that one first, or choose another"""


class LeftVolatile(LayerError):
    """{workdir}: a volatile mount was not ended cleanly, the upper layer {upper} may be damaged; make both anew"""


# Mounting


class MountError(UnionfsError):
    """{mountpoint}: could not be mounted: {reason}"""


class BlockDeviceRefused(MountError):
    """{mountpoint}: could not be mounted from {device}: {reason}; 'fsname=' has to name a block device that is free"""


class MountpointMissing(MountError):
    """{mountpoint}: no such directory to mount on; create it first"""


class MountpointNotDirectory(MountError):
    """{mountpoint}: is not a directory; a stack can only be mounted on one"""


class MountpointTaken(MountError):
    """{mountpoint}: a unionmount is mounted here already; unmount it first with 'unionmount umount'"""


class MountpointInLayer(MountError):
    """{mountpoint}: the mountpoint {relation} the layer {layer}; choose a mountpoint outside of the layers"""

    # relation: "is" or "is inside"


class NotMounted(MountError):
    """{mountpoint}: no unionmount is mounted here; 'findmnt -t fuse.unionmount' lists those there are"""


class MountBusy(MountError):
    """{mountpoint}: is still in use; end the programs that use it ('fuser -vm' names them) and try again"""


class DeviceMissing(MountError):
    """{device}: there is no FUSE device; load the module with 'modprobe fuse', or pass the device into the container"""


class DeviceForbidden(MountError):
    """{device}: no right to use it ({reason}); run as root, or have it made readable and writable for you"""


class MountForbidden(MountError):
    """{mountpoint}: no right to mount ({reason}); run as root or in a user namespace, or install the package fuse3"""


class FusermountFailed(MountError):
    """{mountpoint}: fusermount3 refused: {reason}"""


class ServerDied(MountError):
    """{mountpoint}: the server ended before the mount answered ({reason}); run again with -f -d to see why"""


class FusepyMissing(MountError):
    """the fusepy transport needs the Python package fusepy; install it with 'pip install fusepy'"""


class LibfuseMissing(MountError):
    """the fusepy transport needs the library libfuse 2; install it (Debian: 'apt-get install libfuse2')"""


# Running a process


class RunError(UnionfsError):
    """{command}: could not be run: {reason}"""


class NamespacesForbidden(RunError):
    """this system lets you make no {kind} namespace ({reason}); run as root, or allow user namespaces"""


class CommandNotFound(RunError):
    """{command}: command not found in the stack; check the name, the PATH and the layers"""

    exit_status = 127


class CommandNotExecutable(RunError):
    """{command}: cannot be executed ({reason}); check its mode and its interpreter"""

    exit_status = 126
