"""The table of conformance cases: what a case is, how it registers itself, and what stands below it.

A case is a short function of a ``Place``: a directory that is plain, or lies in a union mount. It must not know which.
Importing ``conformance.cases`` fills ``CASES``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from .trees import Entry

#: Where the tree of a case comes from: a lower layer, made through the mount, or a lower layer and then copied up.
ORIGINS = ("lower", "upper", "copied")


def libfuse2(what: str) -> dict[str, str]:
    """Return a deviation of the transport through libfuse 2, which speaks an old protocol by paths."""
    return {"fusepy": f"libfuse 2 {what}"}


class Place(NamedTuple):
    """One case's own directory ``path``, and a directory ``plain`` on the file system that holds the layers."""

    path: Path
    plain: Path
    remount: Callable[[], None]


class Case(NamedTuple):
    """A row: its floor (``basic`` or ``posix``), the tree it starts from, and who is known to fail it and why.

    ``deviates`` maps a subject, or ``subject:origin``, to the reason. A deviation that does not show is a failure too.
    """

    name: str
    floor: str
    run: Callable[[Place], None]
    tree: Mapping[str, Entry]
    origins: tuple[str, ...]
    deviates: Mapping[str, str]


CASES: dict[str, Case] = {}


def case(
    floor: str,
    tree: Mapping[str, Entry] | None = None,
    *,
    origins: tuple[str, ...] = ORIGINS,
    deviates: Mapping[str, str] | None = None,
) -> Callable[[Callable[[Place], None]], Callable[[Place], None]]:
    """Register the decorated function. Without a tree nothing comes from a lower layer: one origin is enough."""

    def register(function: Callable[[Place], None]) -> Callable[[Place], None]:
        name = function.__name__
        assert name not in CASES, f"two cases are named {name}"
        CASES[name] = Case(name, floor, function, tree or {}, origins if tree else ("upper",), deviates or {})
        return function

    return register
