"""A union file system in Python: layers merged by a FUSE server, and processes run on top of them.

``Union`` is a stack of layers in the program itself, with no mount; ``mount`` and ``run`` start a server of their own.
The names are loaded when they are first used: the command line must start fast. This module holds nothing else.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs import errors
    from unionfs.api import mount, run
    from unionfs.errors import UnionfsError
    from unionfs.union.changes import Change
    from unionfs.union.explain import Explanation, Fact
    from unionfs.union.union import Union

__version__ = "0.1.0"
__all__ = ["Change", "Explanation", "Fact", "Union", "UnionfsError", "__version__", "errors", "mount", "run"]

_HOMES = {
    "Change": "unionfs.union.changes",
    "Explanation": "unionfs.union.explain",
    "Fact": "unionfs.union.explain",
    "Union": "unionfs.union.union",
    "UnionfsError": "unionfs.errors",
    "errors": "unionfs.errors",
    "mount": "unionfs.api",
    "run": "unionfs.api",
}


def __getattr__(name: str) -> object:
    """Load a public name from its home; see PEP 562."""
    import sys

    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    __import__(home)
    module = sys.modules[home]
    value = globals()[name] = module if name == "errors" else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
