"""The mount options about owners, in the words of fuse-overlayfs, which podman and containerd use.

``uidmapping=`` and ``gidmapping=`` (``DISK:VIEW:SIZE``, joined by colons, podman's begin with one), ``squash_to_root``,
``squash_to_uid=``, ``squash_to_gid=``, and ``xattr_permissions=`` 1 (for root) or 2 (for anybody).
"""

from __future__ import annotations

from unionfs import errors, idmap
from unionfs.idmap import IdMap, Ownership

_STORES = {"1": idmap.PRIVILEGED_OVERRIDE, "2": idmap.CONTAINERS_OVERRIDE}
_MAPS = {"uidmapping": "uids", "gidmapping": "gids", "squash_to_uid": "uids", "squash_to_gid": "gids"}


def take(words: list[str]) -> tuple[Ownership | None, list[str]]:
    """Return what ``words`` say about owners, None for nothing, and the other words. Raises errors.UsageError.

    ``squash_to_uid`` and ``squash_to_gid`` go before ``squash_to_root``, wherever they stand.
    """
    ours = [word for word in words if _is_ours(word)]
    if not ours:
        return None, words
    ownership = Ownership()
    for word in sorted(ours, key=lambda word: word != "squash_to_root"):
        ownership = _apply(ownership, word)
    return ownership, [word for word in words if not _is_ours(word)]


def _is_ours(word: str) -> bool:
    name, equals, _value = word.partition("=")
    return word == "squash_to_root" or (bool(equals) and (name in _MAPS or name == "xattr_permissions"))


def _apply(ownership: Ownership, word: str) -> Ownership:
    name, _equals, value = word.partition("=")
    if name == "squash_to_root":
        return ownership._replace(uids=ownership.uids._replace(squash=0), gids=ownership.gids._replace(squash=0))
    if name == "xattr_permissions":
        if value not in _STORES:
            raise errors.UsageError(problem=f"mount option '{word}': neither 1 nor 2")
        return ownership._replace(attribute=_STORES[value], always=True)
    field = _MAPS[name]
    changed: IdMap = getattr(ownership, field)
    changed = _squash(changed, word, value) if name.startswith("squash") else _map(changed, word, value)
    return ownership._replace(uids=changed) if field == "uids" else ownership._replace(gids=changed)


def _squash(ids: IdMap, word: str, value: str) -> IdMap:
    if not value.isdecimal() or int(value) >= idmap.EVERY_ID:
        raise errors.UsageError(problem=f"mount option '{word}': not an id")
    return ids._replace(squash=int(value))


def _map(ids: IdMap, word: str, value: str) -> IdMap:
    try:
        return ids._replace(ranges=idmap.parse_ranges(value))
    except ValueError:
        raise errors.UsageError(problem=f"mount option '{word}': not triples of CONTAINER:HOST:SIZE") from None
