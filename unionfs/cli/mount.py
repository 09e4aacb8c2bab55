"""Mounting: the calling convention of fuse-overlayfs and mount helpers, and the same in words.

This module is on the way of every mount, so it parses by hand: argparse alone would take longer than mounting does.
"""

from __future__ import annotations

import os
import sys

from unionfs import cli, errors
from unionfs.fuse import modes, mounting, server
from unionfs.policy import Offers
from unionfs.union.stack import Config, default_workdir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from unionfs.idmap import Ownership

HELP = """\
usage: unionmount -o lowerdir=A:B[,upperdir=U,workdir=W][,OPTION...] [SOURCE] MOUNTPOINT
       unionmount mount --lower A [--lower B ...] [--upper U [--work W]] MOUNTPOINT
       unionmount umount MOUNTPOINT
       unionmount run --lower DIR [...] [--upper DIR] [--] [COMMAND ...]
       unionmount diff MOUNTPOINT | --upper U --lower A [...]
       unionmount explain PATH
       unionmount stats MOUNTPOINT [-- COMMAND ...]
       unionmount convert DIR --to overlay|userxattr|oci [--lower A ...]
       unionmount check [--repair] DIR [LOWER ...]

  -o OPTIONS            mount options, as for mount(8) and fuse-overlayfs; '\\:' is a colon within a path
  -f                    stay in the foreground
  -d, --debug           stay in the foreground and print every request
  -V, --version         print the version
  -h, --help            print this
  --mode NAME           how data moves: passthrough, write-through, write-back or opened; auto takes what fits best
  --transport NAME      direct (Linux's /dev/fuse), fusepy (libfuse), or auto
  --whiteouts NAME      how to write deletions: overlay, userxattr or oci; the strongest that the upper can hold
  --data DIR            a layer that only holds data of files in others, as 'lowerdir=A::DIR'
Without an upper directory the mount is read-only.
"""

_OURS = ("lowerdir", "upperdir", "workdir", "metacopy", "nfs_export", "whiteouts", "mode", "writeback")
_ADDED = ("lowerdir+", "datadir+")
#: Words of fuse-overlayfs that ask for what is always so here, or for what only its own machinery has.
_FLAGS = frozenset({"volatile", "userxattr"})
_ACCEPTED = frozenset({"kernel_cache", "auto_unmount", "nonempty"})
#: Words of fuse-overlayfs that leave out a part of what a mount offers.
_LEFT_OUT = {
    "noxattrs": ("attributes", "acls"),
    "noxattrs=1": ("attributes", "acls"),
    "noxattrs=0": (),
    "noacl": ("acls",),
    "static_nlink": ("subdirectories",),
}
_ABOUT_OWNERS = ("uidmapping=", "gidmapping=", "squash_to_", "xattr_permissions=")
_ACCEPTED_VALUES = frozenset({"redirect_dir", "timeout", "threaded", "fsync", "fast_ino", "xino", "index", "max_write"})


class Request:
    """What a command line asks for, as it is being read."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.lowers: list[str] = []
        self.data: list[str] = []
        self.upper: str | None = None
        self.work: str | None = None
        self.whiteouts: str | None = None
        self.places: list[str] = []
        self.foreground = False
        self.debug = False
        self.transport = "auto"
        self.mode: str | None = None


def run_mount(words: list[str]) -> int:
    """``unionmount mount``: the options in words."""
    return _mount(_parse(words))


def run_helper(words: list[str]) -> int:
    """The calling convention of fuse-overlayfs: ``[-f] [-d] -o OPTIONS [SOURCE] MOUNTPOINT``."""
    if not words:
        raise errors.UsageError(problem="nothing to do: name a command, or layers and a mountpoint")
    request = _parse(words)
    if request.places and not request.words and not request.lowers:
        word = request.places[0]
        raise errors.UsageError(problem=f"'{word}' is no command, and no 'lowerdir=' or '--lower' says what to mount")
    return _mount(request)


def _parse(words: list[str]) -> Request:
    request = Request()
    rest = iter(words)
    for word in rest:
        if word in ("-h", "--help"):
            cli.answer(HELP)
        if word in ("-V", "--version"):
            from unionfs import __version__

            cli.answer(f"unionmount: version {__version__}\n")
        if word == "--":
            request.places.extend(rest)
        elif word.startswith("-") and len(word) > 1:
            _flag(request, word, rest)
        else:
            request.places.append(word)
    return request


def _flag(request: Request, word: str, rest: Iterator[str]) -> None:
    """Read one option, and its value from the word itself or the next one."""
    if word == "-f":
        request.foreground = True
    elif word in ("-d", "--debug"):
        request.debug = request.foreground = True
    elif word.startswith("-o"):
        request.words.extend(split_options(word[2:] or _value(word, rest)))
    else:
        name, equals, value = word.partition("=")
        if name not in ("--lower", "--data", "--upper", "--work", "--whiteouts", "--transport", "--mode"):
            raise errors.UsageError(problem=f"unknown option '{word}'")
        value = value if equals else _value(word, rest)
        if name == "--lower":
            request.lowers.append(value)
        elif name == "--data":
            request.data.append(value)
        else:
            setattr(request, name[2:], value)


def _value(word: str, rest: Iterator[str]) -> str:
    value = next(rest, None)
    if value is None:
        raise errors.UsageError(problem=f"option '{word}' needs a value")
    return value


def split_options(text: str) -> list[str]:
    r"""Split mount options at commas, but not within double quotes (SELinux contexts) nor at ``\,``, which stays."""
    return _split(text, ",", quotes=True)


def split_layers(text: str) -> list[str]:
    r"""Split the value of ``lowerdir`` at colons; ``\:`` is a colon and ``\\`` a backslash."""
    return [unescape(part) for part in _split(text, ":", quotes=False)]


def unescape(text: str) -> str:
    """Take away the backslash before a colon, a comma or a backslash."""
    plain, escaped = "", False
    for char in text:
        if escaped:
            plain, escaped = plain + ("" if char in ":,\\" else "\\") + char, False
        elif char == "\\":
            escaped = True
        else:
            plain += char
    return plain + "\\" * escaped


def add_layer(parts: list[str], name: str, path: str) -> None:
    """Add to the parts of ``lowerdir`` what ``lowerdir+`` or ``datadir+`` names, a layer each: colons are as they are
    (ovl_parse_layer in fs/overlayfs/params.c). Raises UsageError.
    """
    if not path:
        raise errors.UsageError(problem=f"option '{name}=' needs a value")
    if name == "datadir+":
        parts += ["", path]
    elif "" in parts:
        raise errors.UsageError(problem="a layer of 'lowerdir+=' cannot follow one that only holds data")
    else:
        parts.append(path)


def split_data_layers(parts: list[str]) -> tuple[list[str], list[str]]:
    """Part the layers of ``lowerdir`` into ordinary ones and those after ``::``, which hold data alone.

    Raises UsageError.
    """
    if parts == [""]:
        raise errors.NoLayers()
    start = parts.index("") if "" in parts else len(parts)
    lowers, data = parts[:start], parts[start + 1 :: 2]
    if parts[start::2] != [""] * len(data) or "" in data:
        raise errors.UsageError(
            problem="'lowerdir' names an empty layer; '::' stands before each data-only layer, at the end"
        )
    return lowers, data


def _split(text: str, separator: str, *, quotes: bool) -> list[str]:
    parts, current, quoted, escaped = [], "", False, False
    for char in text:
        if escaped:
            current, escaped = current + "\\" + char, False
        elif char == "\\":
            escaped = True
        elif char == '"' and quotes:
            quoted = not quoted
            current += char
        elif char == separator and not quoted:
            parts.append(current)
            current = ""
        else:
            current += char
    return [*parts, current + ("\\" if escaped else "")]


def _mount(request: Request) -> int:
    named = _take_ours(request)
    ownership = _take_owners(request)
    offers = _take_offers(request)
    mountpoint = _mountpoint(request)
    source = [f"fsname={place}" for place in request.places[:-1] if place]  # by it mount -a knows what stands already
    words = [unescape(word) for word in request.words if not _is_accepted(word)]
    options, unknown = mounting.parse_options(source + words)
    for word in unknown:
        if word not in _FLAGS:
            print(f"unknown argument ignored: {word}", file=sys.stderr)
    config = _config(request, named, _FLAGS.intersection(unknown))
    config.owners, config.offers, config.atime = ownership, offers, options.atime
    if config.nfs_export and request.transport == "fusepy":
        raise errors.UsageError(problem="'nfs_export=on' needs the direct transport; libfuse numbers files anew")
    resolved = mounting.check_mountpoint(mountpoint)
    service = server.Service(config, resolved, options, request.transport, request.debug, _mode(request, named))
    if request.foreground:
        server.serve(service)
    else:
        server.start(service)
    return 0


def _config(request: Request, named: dict[str, list[str]], flags: frozenset[str]) -> Config:
    lowers, data = split_data_layers(named["lowerdir"])
    upper, work = _one(request.upper, named["upperdir"]), _one(request.work, named["workdir"])
    if upper is not None and work is None and request.upper is not None:
        work = default_workdir(upper)
    implied = ["userxattr"] if "userxattr" in flags else []
    return Config(
        [os.fsencode(path) for path in request.lowers + lowers],
        upper,
        work,
        volatile="volatile" in flags,
        metacopy=named["metacopy"] == ["on"],
        nfs_export=named["nfs_export"] == ["on"],
        whiteouts=request.whiteouts or next(iter(named["whiteouts"] + implied), None),
        data_layers=[os.fsencode(path) for path in data + request.data],
    )


def _mode(request: Request, named: dict[str, list[str]]) -> str:
    """Return which mode is asked for; ``writeback=1`` is fuse-overlayfs's word for one of them. Raises UsageError."""
    words = ["write-back"] * (named["writeback"] == ["1"]) + named["mode"]
    name = request.mode or (words or [modes.AUTO])[-1]
    if name not in (modes.AUTO, *modes.NAMED):
        known = ", ".join((modes.AUTO, *modes.NAMED))
        raise errors.UsageError(problem=f"no such mode: '{name}'; there are {known}")
    return name


def _take_ours(request: Request) -> dict[str, list[str]]:
    """Take the layers out of the option words."""
    named: dict[str, list[str]] = {name: [] for name in _OURS}
    others = []
    for word in request.words:
        name, equals, value = word.partition("=")
        if equals and name in _ADDED:
            add_layer(named["lowerdir"], name, value.replace("\\,", ","))
        elif equals and name in named:
            named[name] = split_layers(value) if name == "lowerdir" else [unescape(value)]
        elif word:
            others.append(word)
    request.words = others
    return named


def _take_owners(request: Request) -> Ownership | None:
    """Take what is said about owners out of the option words."""
    if not any(word.startswith(_ABOUT_OWNERS) for word in request.words):
        return None
    from unionfs.cli import owners  # not needed by most

    ownership, request.words = owners.take(request.words)
    return ownership


def _take_offers(request: Request) -> Offers:
    """Take what the mount is to leave out out of the option words."""
    left_out = [name for word in request.words for name in _LEFT_OUT.get(word, ())]
    request.words = [word for word in request.words if word not in _LEFT_OUT]
    return Offers()._replace(**dict.fromkeys(left_out, False))


def _one(option: str | None, named: list[str]) -> bytes | None:
    if option is not None:
        return os.fsencode(option)
    return os.fsencode(named[0]) if named else None


def _is_accepted(word: str) -> bool:
    return word in _ACCEPTED or word.partition("=")[0] in _ACCEPTED_VALUES


def _mountpoint(request: Request) -> bytes:
    if not request.places:
        raise errors.UsageError(problem="no mountpoint given")
    if len(request.places) > 2:
        raise errors.UsageError(problem=f"'{request.places[2]}' is one argument too many")
    return os.fsencode(request.places[-1])
