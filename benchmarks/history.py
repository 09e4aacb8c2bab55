"""A git history as a stream for ``git fast-import``, the same bytes in every run. Pure."""

from __future__ import annotations

import random

from benchmarks import trees

AUTHOR = b"Bench Mark <bench@example.org>"
CHANGED_SHARE = 20


def stream(commits: int, files: int) -> bytes:
    """``commits`` commits: the first adds ``files`` files, each further one changes a twentieth and adds one."""
    chance = random.Random(4)
    text = trees.pool()
    paths = [file.path for file in trees.files(files, seed=5)]
    parts: list[bytes] = []
    for number in range(commits):
        some = [*chance.sample(paths, max(1, files // CHANGED_SHARE)), f"more/{number}.txt"]
        changed = some if number else paths
        parts += _commit(number, {path: _text(chance, text) for path in changed})
    return b"".join(parts)


def _text(chance: random.Random, text: bytes) -> bytes:
    place = chance.randrange(len(text) // 2)
    return text[place : place + chance.randint(200, 6000)]


def _commit(number: int, changed: dict[str, bytes]) -> list[bytes]:
    """One commit of git-fast-import(1), tagged with its number."""
    when = b"%d +0000" % (trees.LONG_AGO_NS // 10**9 + number * 3600)
    message = b"change %d" % number
    parts = [b"commit refs/heads/main\ncommitter %b %b\n" % (AUTHOR, when), _data(message)]
    for path, content in changed.items():
        parts += [b"M 100644 inline %b\n" % path.encode(), _data(content)]
    return [*parts, b"\nreset refs/tags/c%d\nfrom refs/heads/main\n\n" % number]


def _data(content: bytes) -> bytes:
    return b"data %d\n%b\n" % (len(content), content)
