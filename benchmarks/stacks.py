"""The stacks of layers that the workloads stand on, made once when first asked for, the same in every run."""

from __future__ import annotations

import compileall
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks import proc, trees
from benchmarks.scale import MIB, Scale

LAYERS = ("top", "mid", "base")
HIDDEN_SHARE = 0.05
C_HEADERS = 40
FILES_PER_LAYER = 20
IMAGE_SPARE_BYTES = 512 * MIB
MAKE_LIMIT_S = 120.0


class Stack(NamedTuple):
    """Layers, topmost first, all in one directory, and what the merged view of them must show."""

    base: Path
    layers: tuple[Path, ...]
    files: int = 0
    needles: int = 0
    names: tuple[str, ...] = ()


Builder = Callable[[Path, Scale, str], Stack]
BUILDERS: dict[str, Builder] = {}


def builder(function: Builder) -> Builder:
    """Enter the decorated function into the table of stacks."""
    BUILDERS[function.__name__] = function
    return function


class Stacks:
    """The stacks of one run, below one directory."""

    def __init__(self, base: Path, scale: Scale) -> None:
        self.base = base
        self.scale = scale
        self.made: dict[str, Stack] = {}

    def get(self, name: str) -> Stack:
        """The stack of this name, made if it is not there yet; ``kind:parameter`` is what the kind's builder makes."""
        if name not in self.made:
            directory = self.base / name.replace(":", "-")
            directory.mkdir(parents=True)
            kind, _, parameter = name.partition(":")
            self.made[name] = BUILDERS[kind](directory, self.scale, parameter)
        return self.made[name]


def layers_in(base: Path, names: tuple[str, ...] = LAYERS) -> tuple[Path, ...]:
    """Make empty layers of these names."""
    paths = tuple(base / name for name in names)
    for path in paths:
        path.mkdir()
    return paths


@builder
def tree(base: Path, scale: Scale, _parameter: str) -> Stack:
    """The main stack: a third of the directories in the base alone, a third in two layers, a third in all three.

    One in twenty files of the upper layers hides another one of the same name in the base.
    """
    return _tree(base, scale.files)


@builder
def known(base: Path, scale: Scale, _parameter: str) -> Stack:
    """The same with as many files as the memory of the server is measured for."""
    return _tree(base, scale.known_files)


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


@builder
def data(base: Path, scale: Scale, _parameter: str) -> Stack:
    """One large file in the base, below two layers that have the directory but not the file."""
    return _large(base, scale.data_bytes)


@builder
def shared(base: Path, scale: Scale, _parameter: str) -> Stack:
    """The same with the size that many stacks are to share."""
    return _large(base, scale.shared_bytes)


@builder
def image(base: Path, scale: Scale, parameter: str) -> Stack:
    """The same on a file system of its own on a loop device: ``xfs`` and ``btrfs`` have reflinks, ``ext4`` has none."""
    disk = base / "disk"
    with disk.open("wb") as file:
        file.truncate(2 * scale.copyup_bytes + IMAGE_SPARE_BYTES)
    proc.run([f"mkfs.{parameter}", "-q", str(disk)], limit_s=MAKE_LIMIT_S)
    inside = base / "inside"
    inside.mkdir()
    proc.run(["mount", "-o", "loop", str(disk), str(inside)], limit_s=MAKE_LIMIT_S)
    return _large(inside, scale.copyup_bytes)


def _large(base: Path, size_bytes: int) -> Stack:
    top, mid, low = layers_in(base)
    for layer in (top, mid):
        trees.write(layer / "data/small", b"small\n")
    text = trees.pool()
    trees.write(low / "data/large", b"")
    with (low / "data/large").open("wb") as large:
        for _ in range(size_bytes // len(text)):
            large.write(text)
    os.utime(low / "data/large", ns=(trees.LONG_AGO_NS, trees.LONG_AGO_NS))
    return Stack(base, (top, mid, low), 2)


@builder
def code(base: Path, scale: Scale, _parameter: str) -> Stack:
    """A Python package of hundreds of compiled modules, and a C project with headers in two layers."""
    top, mid, low = layers_in(base)
    package = mid / "python/bigpackage"
    modules = [f"module_{number:03d}" for number in range(scale.modules)]
    trees.write(package / "__init__.py", "".join(f"from . import {name}\n" for name in modules).encode())
    for name in modules:
        body = "".join(f"def function_{number}(a, b=1):\n    return a + b\n" for number in range(10))
        trees.write(package / f"{name}.py", body.encode())
    compileall.compile_dir(package, quiet=2)
    _c_project(top, low, scale.c_files)
    return Stack(base, (top, mid, low))


def _c_project(top: Path, low: Path, count: int) -> None:
    for number in range(C_HEADERS):
        layer = top if number % 2 else low
        trees.write(layer / f"c/include/h{number}.h", f"#pragma once\nint f{number}(int);\n".encode())
    includes = "".join(f"#include <h{number}.h>\n" for number in range(C_HEADERS))
    for number in range(count):
        body = f"int g{number}(int x) {{ return x * {number}; }}\n"
        source = f"#include <stdio.h>\n#include <stdlib.h>\n{includes}{body}"
        trees.write(low / f"c/src/g{number}.c", source.encode())
    trees.write(low / "c/src/main.c", b"int main(void) { return 0; }\n")
    make = (
        "OBJS := $(patsubst src/%.c,obj/%.o,$(wildcard src/*.c))\nprogram: $(OBJS)\n\tcc -o $@ $^\n"
        "obj/%.o: src/%.c\n\t@mkdir -p obj\n\tcc -Iabsent1 -Iabsent2 -Iinclude -c -o $@ $<\n"
    )
    trees.write(low / "c/Makefile", make.encode())


@builder
def layers(base: Path, _scale: Scale, parameter: str) -> Stack:
    """As many layers as the parameter says, each with its own twenty files in one directory that all of them have."""
    count = int(parameter)
    paths = layers_in(base, tuple(f"l{number}" for number in range(count)))
    for number, path in enumerate(paths):
        for file in range(FILES_PER_LAYER):
            trees.write(path / f"common/f{number}-{file}", b"x")
    # Names of the lowest layer alone: every other one is asked in vain by who has to ask.
    names = tuple(f"common/f{count - 1}-{file}" for file in range(FILES_PER_LAYER))
    return Stack(base, paths, count * FILES_PER_LAYER, names=names)


@builder
def entries(base: Path, _scale: Scale, parameter: str) -> Stack:
    """One directory of as many entries as the parameter says, half of them in each of two layers."""
    paths = layers_in(base, ("top", "base"))
    for path in paths:
        (path / "many").mkdir()
    for number in range(int(parameter)):
        os.close(os.open(paths[number % 2] / f"many/entry-{number:07d}", os.O_CREAT | os.O_WRONLY))
    return Stack(base, paths, int(parameter))


@builder
def depth(base: Path, _scale: Scale, parameter: str) -> Stack:
    """A file below as many directories as the parameter says, all of which two layers have."""
    paths = layers_in(base, ("top", "base"))
    name = "d/" * int(parameter)
    for path in paths:
        proc.run(["mkdir", "-p", str(path / name)], limit_s=MAKE_LIMIT_S)
    trees.write(paths[1] / name / "file", b"x")
    return Stack(base, paths, 1, names=(f"{name}file",))


@builder
def system_root(base: Path, _scale: Scale, _parameter: str) -> Stack:
    """The least root file system: ``true`` and what it is linked with."""
    (low,) = layers_in(base, ("base",))
    listed = proc.run(["ldd", "/bin/true"], limit_s=MAKE_LIMIT_S).output.decode().split()
    for file in ["/bin/true", *(word for word in listed if word.startswith("/"))]:
        proc.run(["install", "-D", file, f"{low}{file}"], limit_s=MAKE_LIMIT_S)
    for name in ("proc", "dev", "tmp", "sys", "etc", "run"):
        (low / name).mkdir()
    return Stack(base, (low,))
