"""Layers that are not mounted: what is wrong with them, and in which dialect their deletions are written."""

from __future__ import annotations

import os

from unionfs import cli, errors
from unionfs.union import check as checks
from unionfs.union.convert import convert
from unionfs.union.stack import default_workdir

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

HELP = """\
usage: unionmount check [--repair] [--work DIR] DIR [LOWER ...]
       unionmount convert DIR --to overlay|userxattr|oci [--lower DIR ...] [--data DIR ...] [--work DIR]

check     look for what ought not to be in the layers, the topmost first: what a crash has left in the workdir,
          redirects that lead nowhere, whiteouts that hide nothing; with --repair, mend it. 1 if anything is left.
convert   rewrite the deletions of a layer, in place; --lower (the topmost first) and --data name the layers below,
          which only redirects and files without data need.
"""
_MANY = ("--lower", "--data")
_ONE = ("--work", "--to")


class Request:
    """A command line: options with their values, and the other words."""

    def __init__(self, words: list[str], known: tuple[str, ...], flags: tuple[str, ...] = ()) -> None:
        self.values: dict[str, list[str]] = {name: [] for name in (*_MANY, *_ONE)}
        self.flags: set[str] = set()
        self.places: list[bytes] = []
        rest = iter(words)
        for word in rest:
            if word in flags:
                self.flags.add(word)
            elif word == "--":
                self.places.extend(map(os.fsencode, rest))
            elif word.startswith("-") and len(word) > 1:
                self._option(word, rest, known)
            else:
                self.places.append(os.fsencode(word))

    def _option(self, word: str, rest: Iterator[str], known: tuple[str, ...]) -> None:
        name, equals, value = word.partition("=")
        if name not in known:
            raise errors.UsageError(problem=f"unknown option '{word}'")
        found = value if equals else next(rest, None)
        if found is None:
            raise errors.UsageError(problem=f"option '{name}' needs a value")
        self.values[name].append(found)

    def one(self, name: str) -> str | None:
        """Return the last value of an option, None if it was not given."""
        return next(reversed(self.values[name]), None)

    def paths(self, name: str) -> list[bytes]:
        """Return the values of an option as paths."""
        return [os.fsencode(value) for value in self.values[name]]


def run_convert(words: list[str]) -> int:
    """Rewrite a layer in another dialect, and say how much there was."""
    request = Request(words, ("--to", "--lower", "--data", "--work"))
    dialect, work = request.one("--to"), request.one("--work")
    if len(request.places) != 1 or dialect is None:
        raise errors.UsageError(problem="convert takes one directory, and '--to' with the dialect to write")
    workdir = None if work is None else os.fsencode(work)
    done = convert(request.places[0], dialect, request.paths("--lower"), workdir, request.paths("--data"))
    name = os.fsdecode(request.places[0])
    cli.tell(f"{name}: {done.deletions} deleted names and {done.hiding_directories} hiding directories")
    return 0


def run_check(words: list[str]) -> int:
    """Print what is wrong with layers, one finding a line; with ``--repair``, what is left after mending."""
    request = Request(words, ("--work",), ("--repair",))
    if not request.places:
        raise errors.UsageError(problem="check takes the directories to look at, the topmost first")
    work = request.one("--work")
    workdir = _workdir_of(request.places[0]) if work is None else os.fsencode(work)
    look = checks.repair if "--repair" in request.flags else checks.check
    left = 0
    for number, layer in enumerate(request.places):
        for finding in look(layer, workdir if number == 0 else None, request.places[number + 1 :]):
            cli.tell(str(finding))
            left += 1
    return 1 if left else 0


def _workdir_of(layer: bytes) -> bytes | None:
    """Return the workdir that was made for a layer when none was named, if it is there."""
    workdir = default_workdir(layer)
    return workdir if os.path.isdir(workdir) else None
