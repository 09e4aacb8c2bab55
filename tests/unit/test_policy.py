"""The tables of removal and renaming: each row, and what must hold of all of them."""

from __future__ import annotations

from itertools import product

import pytest

from unionfs.policy import Move, move, removal

REMOVALS = {
    # (the writable layer has it, a lower layer would show): what to do
    (True, False): "remove",
    (True, True): "replace",
    (False, True): "hide",
}


@pytest.mark.parametrize(("facts", "plan"), REMOVALS.items(), ids=lambda value: str(value))
def test_removal(facts: tuple[bool, bool], plan: str) -> None:
    """A whiteout stands if and only if something would come to light."""
    in_upper, below = facts
    assert removal(in_upper=in_upper, below=below) == plan


FIELDS = ("directory", "merged", "below_source", "below_target", "target_whiteout")

#: (directory, merged, below_source, below_target, target_whiteout): the steps
MOVES = {
    # A file: nothing is written down, but its old name may have to be hidden.
    (False, False, False, False, False): set(),
    (False, False, True, False, False): {"whiteout_behind"},
    (False, False, False, True, False): set(),
    (False, False, True, True, False): {"whiteout_behind"},
    (False, False, False, True, True): set(),
    (False, False, True, True, True): {"whiteout_behind"},
    # A directory of the writable layer alone: what it would merge with at its new name must be hidden.
    (True, False, False, False, False): set(),
    (True, False, True, False, False): {"whiteout_behind"},
    (True, False, False, True, False): {"opaque"},
    (True, False, True, True, False): {"opaque", "whiteout_behind"},
    (True, False, False, True, True): {"opaque", "exchange", "remove_behind"},
    (True, False, True, True, True): {"opaque", "exchange"},
    # A merged directory: it must find its lower parts again.
    (True, True, True, False, False): {"redirect", "whiteout_behind"},
    (True, True, False, False, False): {"redirect"},  # renamed before: nothing is below its present name
    (True, True, True, True, False): {"redirect", "whiteout_behind"},
    (True, True, False, True, False): {"redirect"},
    (True, True, True, True, True): {"redirect", "exchange"},
    (True, True, False, True, True): {"redirect", "exchange", "remove_behind"},
}


@pytest.mark.parametrize(("facts", "steps"), MOVES.items(), ids=lambda value: str(value))
def test_move(facts: tuple[bool, ...], steps: set[str]) -> None:
    """Each row of the table."""
    plan = move(**dict(zip(FIELDS, facts, strict=True)))
    assert {name for name, wanted in plan._asdict().items() if wanted} == steps


ALL = [
    facts for facts in product((False, True), repeat=len(FIELDS)) if facts[0] or not facts[1]
]  # only a directory can be merged


@pytest.mark.parametrize("facts", ALL, ids=str)
def test_every_move_is_sound(facts: tuple[bool, ...]) -> None:
    """Nothing lower comes to light at the old name, and nothing foreign merges in at the new one."""
    named = dict(zip(FIELDS, facts, strict=True))
    plan: Move = move(**named)
    hidden_behind = plan.whiteout_behind or (plan.exchange and not plan.remove_behind)
    assert hidden_behind == named["below_source"]
    assert not (plan.redirect and plan.opaque), "a redirect already leads past what is below the new name"
    if named["directory"] and named["below_target"]:
        assert plan.redirect or plan.opaque
    if not named["directory"]:
        assert not any((plan.redirect, plan.opaque, plan.exchange))
