"""Looking at a stack, mounted or not: what its writable layer changes, whence a name comes."""

from __future__ import annotations

import os

from unionfs import cli, errors
from unionfs.cli import attributes
from unionfs.fuse import mounting
from unionfs.union.changes import changes_of
from unionfs.union.explain import explain_of
from unionfs.union.stack import Config

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = """\
usage: unionmount diff MOUNTPOINT
       unionmount diff --upper U --lower A [--lower B ...]
       unionmount explain PATH
       unionmount explain --lower A [--lower B ...] [--upper U] PATH

diff      print what the writable layer adds (A), changes (C) and deletes (D), one name a line.
explain   print which layer a name comes from, and what every other layer has there; with layers, PATH is that in the
          stack.
"""


class Request:
    """Layers given by name, and the other words."""

    def __init__(self, words: list[str]) -> None:
        self.lowers: list[bytes] = []
        self.upper: bytes | None = None
        self.places: list[bytes] = []
        rest = iter(words)
        for word in rest:
            self._read(word, rest)

    def _read(self, word: str, rest: Iterator[str]) -> None:
        name, equals, value = word.partition("=")
        if name not in ("--lower", "--upper"):
            if word.startswith("-") and word != "-":
                raise errors.UsageError(problem=f"unknown option '{word}'")
            self.places.append(os.fsencode(word))
            return
        found = value if equals else next(rest, None)
        if found is None:
            raise errors.UsageError(problem=f"option '{name}' needs a value")
        if name == "--lower":
            self.lowers.append(os.fsencode(found))
        else:
            self.upper = os.fsencode(found)


def run_diff(words: list[str]) -> int:
    """Print what the writable layer adds (A), changes (C) and deletes (D), one name a line."""
    request = Request(words)
    if request.lowers or request.upper is not None:
        if request.places or request.upper is None:
            raise errors.UsageError(problem="diff takes a mountpoint, or --upper and the --lower layers below it")
        config = Config(request.lowers, request.upper)
    elif len(request.places) == 1:
        config = _mounted(request.places[0])
    else:
        raise errors.UsageError(problem="diff takes one mountpoint, or --upper and --lower")
    for change in changes_of(config):
        cli.tell(str(change))
    return 0


def run_explain(words: list[str]) -> int:
    """Print which layer a name comes from, and what every other layer has there."""
    request = Request(words)
    if len(request.places) != 1:
        raise errors.UsageError(problem="explain takes one path")
    if request.lowers:
        config, path = Config(request.lowers, request.upper), request.places[0]
    else:
        mountpoint, path = _split(request.places[0])
        config = _mounted(mountpoint)
    cli.tell(str(explain_of(config, path)))
    return 0


def _mounted(mountpoint: bytes) -> Config:
    """Return the configuration of what is mounted at ``mountpoint``. Raises errors.NotMounted."""
    told = attributes.read(mountpoint, "config")
    lowers, upper, work = told["lower"], told["upper"], told["workdir"]
    assert isinstance(lowers, list)
    return Config(
        [os.fsencode(path) for path in lowers],
        None if upper is None else os.fsencode(str(upper)),
        None if work is None else os.fsencode(str(work)),
    )


def _split(path: bytes) -> tuple[bytes, bytes]:
    """Return the mountpoint that ``path`` is in, and its path there. Raises errors.NotMounted."""
    parent, name = os.path.split(os.path.abspath(path))
    whole = os.path.join(os.path.realpath(parent), name)
    places = [mount.mountpoint for mount in mounting.mountinfo() if mounting.is_ours(mount)]
    inside = [place for place in places if whole == place or whole.startswith(place.rstrip(b"/") + b"/")]
    if not inside:
        raise errors.NotMounted(mountpoint=path)
    mountpoint = max(inside, key=len)
    return mountpoint, whole[len(mountpoint.rstrip(b"/")) :] or b"/"
