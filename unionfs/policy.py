"""Facts in, plan out: which steps a removal, a creation or a rename takes in the writable layer. And what
a mount may leave out.

Pure tables, so that each case can be read and tested by itself. "Below" means: a lower layer shows something under
that name once the writable layer says nothing about it.
"""

from __future__ import annotations

from unionfs.lean import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    #: How a name disappears: the writable layer's own file is removed; a whiteout hides what lower layers have; a
    #: whiteout takes the place of the writable layer's own file, in one step.
    Removal = Literal["remove", "hide", "replace"]


def removal(*, in_upper: bool, below: bool) -> Removal:
    """Return how to remove a name that shows."""
    if not below:
        return "remove"
    return "replace" if in_upper else "hide"


class Move(NamedTuple):
    """The steps of a rename within the writable layer, in their order."""

    redirect: bool  # write down where the lower parts of a directory stay
    opaque: bool  # hide what lower layers have at the new name
    exchange: bool  # a directory takes the place of a whiteout
    whiteout_behind: bool  # a whiteout must hide the old name
    remove_behind: bool  # the whiteout that was exchanged hides nothing: take it away


def move(*, directory: bool, merged: bool, below_source: bool, below_target: bool, target_whiteout: bool) -> Move:
    """Return how to move something that is in the writable layer already, over nothing, a whiteout or
    an empty target.
    """
    exchange = directory and target_whiteout
    return Move(
        redirect=merged,
        opaque=directory and not merged and below_target,
        exchange=exchange,
        whiteout_behind=below_source and not exchange,
        remove_behind=exchange and not below_source,
    )


class Offers(NamedTuple):
    """What a mount has beyond names, data and owners; each may be left out."""

    attributes: bool = True  # extended ones
    acls: bool = True  # that count; without, they are attributes as others are
    subdirectories: bool = True  # are counted as links of a directory

    @property
    def absent(self) -> frozenset[str]:
        """The operations that a mount does not have at all, by FUSE's names: the kernel then asks once and never again.

        Attributes can be read all the same: commands learn so of the mount itself.
        """
        return frozenset() if self.attributes else _ABOUT_ATTRIBUTES


_ABOUT_ATTRIBUTES = frozenset({"setxattr", "listxattr", "removexattr"})
