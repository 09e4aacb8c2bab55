"""The stacks of layers that the workloads stand on, made once when first asked for, the same in every run."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import trees
from benchmarks.scale import Scale

LAYERS = ("top", "mid", "base")
HIDDEN_SHARE = 0.05


class Stack(NamedTuple):
    """Layers, topmost first, all in one directory, and what the merged view of them must show."""

    base: Path
    layers: tuple[Path, ...]
    files: int = 0
    needles: int = 0


Builder = Callable[[Path, Scale], Stack]
BUILDERS: dict[str, Builder] = {}


def builder(name: str) -> Callable[[Builder], Builder]:
    """Enter the decorated function into the table of stacks."""
    def enter(function: Builder) -> Builder:
        BUILDERS[name] = function
        return function
    return enter


class Stacks:
    """The stacks of one run, below one directory."""

    def __init__(self, base: Path, scale: Scale) -> None:
        self.base = base
        self.scale = scale
        self.made: dict[str, Stack] = {}

    def get(self, name: str) -> Stack:
        """The stack of this name, made if it is not there yet; ``kind:number`` is made by the builder of the kind."""
        if name not in self.made:
            directory = self.base / name.replace(":", "-")
            directory.mkdir(parents=True)
            kind, _, parameter = name.partition(":")
            scale = self.scale._replace(name=parameter) if parameter else self.scale
            self.made[name] = BUILDERS[kind](directory, scale)
        return self.made[name]


def layers_in(base: Path, names: tuple[str, ...] = LAYERS) -> tuple[Path, ...]:
    """Make empty layers of these names."""
    paths = tuple(base / name for name in names)
    for path in paths:
        path.mkdir()
    return paths


@builder("tree")
def tree(base: Path, scale: Scale) -> Stack:
    """The main stack: a third of the directories in the base alone, a third in two layers, a third in all three.

    One in twenty files of the upper layers hides another one of the same name in the base.
    """
    return _tree(base, scale.files)


def _tree(base: Path, count: int) -> Stack:
    top, mid, low = layers_in(base)
    chance, text, needles = random.Random(2), trees.pool(), 0
    for file in trees.files(count):
        choices = ((low,), (low, mid), (low, mid, top))[int(file.path[1:3]) % 3]
        layer = chance.choice(choices)
        trees.write(layer / "tree" / file.path, trees.content(file, text))
        if layer is not low and chance.random() < HIDDEN_SHARE:
            trees.write(low / "tree" / file.path, b"hidden\n")
        needles += file.needle
    return Stack(base, (top, mid, low), count, needles)


@builder("data")
def data(base: Path, scale: Scale) -> Stack:
    """One large file in the base, below two layers that have the directory but not the file."""
    top, mid, low = layers_in(base)
    for layer in (top, mid):
        trees.write(layer / "data/small", b"small\n")
    text = trees.pool()
    trees.write(low / "data/large", b"")
    with (low / "data/large").open("wb") as large:
        for _ in range(scale.data_bytes // len(text)):
            large.write(text)
    return Stack(base, (top, mid, low), 2)


