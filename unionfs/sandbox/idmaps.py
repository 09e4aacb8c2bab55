"""Which user and group ids exist in a new user namespace, and telling the kernel; user_namespaces(7).

The caller becomes root there. Where /etc/subuid and /etc/subgid grant the caller more ids, and the setuid helpers that
may map them exist (newuidmap(1), newgidmap(1)), those follow from id 1 on; otherwise there is just the one.
"""

from __future__ import annotations

import os

from unionfs.lean import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.sandbox.signals import Mask


class IdRange(NamedTuple):
    """One line of a map: ``size`` ids from ``inside`` on are those from ``outside`` on."""

    inside: int
    outside: int
    size: int


class IdMaps(NamedTuple):
    """The maps of one user namespace, and the programs that can write them (empty: the process does it by itself)."""

    uids: tuple[IdRange, ...]
    gids: tuple[IdRange, ...]
    helpers: tuple[str, ...] = ()


def single() -> IdMaps:
    """Return the maps that anybody may have: the caller's own ids, as root's."""
    return IdMaps((IdRange(0, os.geteuid(), 1),), (IdRange(0, os.getegid(), 1),))


def for_caller() -> IdMaps:
    """Return the largest maps that the caller is granted. Raises nothing: what cannot be read grants nothing."""
    helpers = tuple(path for path in map(_find, ("newuidmap", "newgidmap")) if path)
    if len(helpers) < 2:
        return single()
    names = _names_of(os.geteuid())
    uids, gids = granted(_read("/etc/subuid"), names), granted(_read("/etc/subgid"), names)
    if not uids or not gids:
        return single()
    return IdMaps(stacked(os.geteuid(), uids), stacked(os.getegid(), gids), helpers)


def granted(table: str, names: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return (first id, count) of each line for one of ``names`` in the text of an /etc/subuid; see subuid(5)."""
    ranges = []
    for line in table.splitlines():
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in names and fields[1].isdecimal() and fields[2].isdecimal():
            ranges.append((int(fields[1]), int(fields[2])))
    return ranges


def stacked(own: int, ranges: list[tuple[int, int]]) -> tuple[IdRange, ...]:
    """Return the map with ``own`` as 0 and the ids of ``ranges`` counted on from 1."""
    lines = [IdRange(0, own, 1)]
    for first, count in ranges:
        lines.append(IdRange(lines[-1].inside + lines[-1].size, first, count))
    return tuple(lines)


def write_own(maps: IdMaps) -> None:
    """Write single maps for this process, which is in a new user namespace. Raises OSError.

    setgroups(2) has to be given up first: with it, a process could leave a group that denies it something.
    """
    for name, text in (("setgroups", "deny"), ("uid_map", _text(maps.uids)), ("gid_map", _text(maps.gids))):
        with open(f"/proc/self/{name}", "w") as stream:
            stream.write(text)


def write_for(process_id: int, maps: IdMaps, mask: Mask) -> bool:
    """Have the helpers write the maps of another process, with signal mask ``mask``; tell whether both did.

    They say on standard error why not.
    """
    return all(
        _run([helper, str(process_id), *_arguments(ranges)], mask)
        for helper, ranges in zip(maps.helpers, (maps.uids, maps.gids), strict=True)
    )


def _run(command: list[str], mask: Mask) -> bool:
    child = os.posix_spawn(command[0], command, os.environ, setsigmask=mask)
    return os.waitpid(child, 0)[1] == 0


def _arguments(ranges: tuple[IdRange, ...]) -> list[str]:
    return [str(number) for line in ranges for number in line]


def _text(ranges: tuple[IdRange, ...]) -> str:
    return "".join("{} {} {}\n".format(*line) for line in ranges)


def _names_of(uid: int) -> tuple[str, ...]:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name, str(uid)
    except KeyError:
        return (str(uid),)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def _find(name: str) -> str | None:
    for directory in ("/usr/bin", "/bin", "/usr/sbin", "/usr/local/bin"):
        path = f"{directory}/{name}"
        if os.access(path, os.X_OK):
            return path
    return None
