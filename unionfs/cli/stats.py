"""``unionmount stats``: what the server of a mount was asked, and how many system calls it has made for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from unionfs import cli, errors
from unionfs.cli import attributes
from unionfs.syscalls.counting import ReadsAndWrites, SystemCalls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    Told = dict[str, Any]
    Kinds = Mapping[str, type[SystemCalls] | type[ReadsAndWrites]]

HELP = """\
usage: unionmount stats MOUNTPOINT [-- COMMAND [ARGUMENT ...]]

Print, as JSON, what the server was asked since it mounted, and how often it has read or written. With a command: how
much of that came while it ran, and how many system calls the server made (those that only wait are left out). To count
these takes root. What the command prints goes to standard error; the exit status is the command's.
"""
_ALWAYS: Kinds = {"reads_and_writes": ReadsAndWrites}
_FROM_NOW_ON: Kinds = {"system_calls": SystemCalls, **_ALWAYS}
_SIGNALLED = 128


def run_stats(words: list[str]) -> int:
    """Print what the server of a mount was asked so far, or while a command ran; return the status of the command."""
    separator, command = words[1:2], words[2:]
    if not words or words[0].startswith("-") or separator != (["--"] if command else []):
        raise errors.UsageError(problem="stats takes one mountpoint, and '-- COMMAND' to count while that runs")
    with closing(_Server(os.fsencode(words[0]), _FROM_NOW_ON if command else _ALWAYS)) as server:
        told, status = _during(server, command) if command else (server.ask(), 0)
    cli.tell(json.dumps(told, indent=2))
    return status


class _Server:
    """What the server of a mount tells, and what can be counted of it. Raises errors.NotMounted."""

    def __init__(self, mountpoint: bytes, kinds: Kinds) -> None:
        self._mountpoint = mountpoint
        self._counters: dict[str, SystemCalls | ReadsAndWrites] = {}
        pid = int(str(attributes.read(mountpoint, "config")["pid"]))
        for name, kind in kinds.items():
            try:
                self._counters[name] = kind(pid)
            except OSError as error:
                print(f"unionmount: no {name}: {errors.describe_os_error(error)}", file=sys.stderr)

    def ask(self) -> Told:
        """Return all of it, as it is now."""
        told = attributes.read(self._mountpoint, "stats")
        return told | {name: counter.count() for name, counter in self._counters.items()}

    def close(self) -> None:
        """Count no more."""
        for counter in self._counters.values():
            counter.close()


def _during(server: _Server, command: Sequence[str]) -> tuple[Told, int]:
    """Return by how much everything grew while ``command`` ran, without what asking adds, and its exit status."""
    first, before = server.ask(), server.ask()
    status = subprocess.call(command, stdout=sys.stderr)
    grown = _less(_less(server.ask(), before), _less(before, first))
    grown["requests"] = {name: count for name, count in grown["requests"].items() if count}
    if "system_calls" in grown:
        grown["system_calls_per_request"] = round(grown["system_calls"] / max(1, sum(grown["requests"].values())), 2)
    return grown, status if status >= 0 else _SIGNALLED - status


def _less(told: Told, other: Told) -> Told:
    """Return the differences of all numbers."""
    return {
        name: _less(value, other.get(name, {})) if isinstance(value, dict) else value - other.get(name, 0)
        for name, value in told.items()
    }
