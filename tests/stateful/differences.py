"""Where our mount and the kernel's overlayfs differ on purpose: the only place that may say so.

Each row recognises an operation by both outcomes. The operation must have left the two trees equal; the descriptor that
it was about is closed. What cannot be reconciled so is never asked, or is brought into line by ``Actor``:

- chown(2) that changes neither owner nor group clears the set-id bits elsewhere; the kernel's FUSE does not pass it on.
- copy_file_range(2) copies here whatever layers the files are in; overlayfs says EXDEV where these are on different
  file systems, and the caller has to copy.
- In the mode ``write-back`` the kernel dates a file before it asks for fallocate(2), also where that fails.
- fchmod(2) and the like of an unlinked FIFO or device of a lower layer bring its name back on overlayfs.
- With ``metacopy=on`` overlayfs dates a file whose data it copies, though it was only opened to write.
- Whether truncating to the size that a file has already dates it is up to the file system; tmpfs does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .actor import Failed, Stale

if TYPE_CHECKING:
    from collections.abc import Callable

    from .operations import Operation


class Difference(NamedTuple):
    """``applies`` recognises the operation and both outcomes; ``reason`` says why ours is right."""

    reason: str
    applies: Callable[[Operation, object, object], bool]


def _unlinked_lower(step: Operation, ours: object, theirs: object) -> bool:
    return (
        step.name in ("fchmod", "fchown", "fsetxattr")
        and ours is None
        and theirs in (Failed("ENOENT"), Failed("EEXIST"))
    )


def _absent_acl(step: Operation, ours: object, theirs: object) -> bool:
    is_acl = step.name == "removexattr" and str(step.arguments[1]).startswith("system.posix_acl_")
    return is_acl and ours is None and theirs == Failed("ENODATA")


def _counts_names_that_are_gone(step: Operation, ours: object, theirs: object) -> bool:
    if step.name != "fstat" or not (isinstance(ours, tuple) and isinstance(theirs, tuple)):
        return False
    return ours[:-1] == theirs[:-1] and ours[-1] == 0  # the last fact is the number of links


def _mapped_before_a_copy(step: Operation, ours: object, theirs: object) -> bool:
    return step.name == "mread" and isinstance(theirs, Stale) and not isinstance(ours, Stale)


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "fchmod(2) and the like work on every open file; overlayfs cannot copy up a lower file that has no name left",
        _unlinked_lower,
    ),
    Difference(
        "an open file that has lost all its names has no links; overlayfs shows those that it has in the lower layer",
        _counts_names_that_are_gone,
    ),
    Difference(
        "a mapping shows what its file has; on overlayfs, what it had before it was copied up", _mapped_before_a_copy
    ),
    Difference(
        "an ACL that is not there can be removed, as on other file systems; overlayfs says ENODATA for a lower file",
        _absent_acl,
    ),
)


def reason_for(step: Operation, ours: object, theirs: object) -> str | None:
    """Return why the outcomes of ``step`` may differ, None when they may not."""
    return next((row.reason for row in DIFFERENCES if row.applies(step, ours, theirs)), None)
