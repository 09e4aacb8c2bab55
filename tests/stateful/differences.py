"""Where our mount and the kernel's overlayfs differ on purpose: the only place that may say so.

Each row names the operation and both outcomes. The operation must have left the two trees equal: what a row cannot
reconcile is no row but a defect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from .actor import Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from .operations import Operation


class Difference(NamedTuple):
    """``applies`` recognises the operation and both outcomes; ``reason`` says why ours is right."""

    reason: str
    applies: Callable[[Operation, object, object], bool]


def _unlinked_lower(step: Operation, ours: object, theirs: object) -> bool:
    return step.name == "fchmod" and ours is None and theirs == Failed("ENOENT")


def _absent_acl(step: Operation, ours: object, theirs: object) -> bool:
    is_acl = step.name == "removexattr" and str(step.arguments[1]).startswith("system.posix_acl_")
    return is_acl and ours is None and theirs == Failed("ENODATA")


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "fchmod(2) works on every open file; overlayfs cannot copy up a lower file that has no name left",
        _unlinked_lower,
    ),
    Difference(
        "an ACL that is not there can be removed, as on other file systems; overlayfs says ENODATA for a lower file",
        _absent_acl,
    ),
)


def reason_for(step: Operation, ours: object, theirs: object) -> str | None:
    """Return why the outcomes of ``step`` may differ, None when they may not."""
    return next((row.reason for row in DIFFERENCES if row.applies(step, ours, theirs)), None)
