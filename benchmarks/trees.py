"""Files and contents that are the same in every run: text cut out of one pool, sizes and places by a seeded generator.

Pure but for :func:`write`; knows nothing of layers, which :mod:`benchmarks.stacks` puts together.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from benchmarks.scale import KIB, MIB

POOL_BYTES = 2 * MIB
LONG_AGO_NS = 1_577_836_800 * 10**9
NEEDLE = b"needle in the haystack\n"
NEEDLE_EVERY = 50
TOP_DIRECTORIES = 30
FILES_PER_LEAF = 50
# Share of the files, and the sizes between which theirs lie: most are small, a few hold most of the bytes.
SIZES = ((0.70, 200, 4 * KIB), (0.25, 4 * KIB, 16 * KIB), (0.049, 16 * KIB, 64 * KIB), (0.001, 256 * KIB, MIB))


class File(NamedTuple):
    """A file to be written: where, how long, and at which place of the pool its text begins."""

    path: str
    size: int
    offset: int
    needle: bool


def pool() -> bytes:
    """Lines of made-up words, twice as long as the longest file, so that any file is a slice of it."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(4096)]
    lines = (" ".join(chance.choices(words, k=9)) for _ in range(POOL_BYTES // 40))
    return "\n".join(lines).encode()[:POOL_BYTES]


def files(count: int, seed: int = 0) -> Iterator[File]:
    """``count`` files below thirty directories of leaves of at most fifty, every fiftieth with the needle in it."""
    chance = random.Random(seed)
    per_top = max(1, count // TOP_DIRECTORIES)
    for number in range(count):
        top, rest = divmod(number, per_top)
        leaf, _ = divmod(rest, FILES_PER_LEAF)
        path = f"d{top:02d}/s{leaf:02d}/f{number:05d}.txt"
        yield File(path, _size(chance), chance.randrange(POOL_BYTES // 2), number % NEEDLE_EVERY == 0)


def _size(chance: random.Random) -> int:
    ((_, low, high),) = chance.choices(SIZES, weights=[share for share, _, _ in SIZES])
    return chance.randint(low, high)


def content(file: File, text: bytes) -> bytes:
    """The bytes of a file."""
    data = text[file.offset : file.offset + file.size]
    return NEEDLE + data if file.needle else data


def write(path: Path, data: bytes) -> None:
    """Write a file with an old date, so that no tool takes it for one that may still change."""
    try:
        path.write_bytes(data)
    except FileNotFoundError:
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
