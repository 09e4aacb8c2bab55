"""What workloads bring along from outside the mount: archives, a repository, wheels, programs.

Each is made when it is first asked for, outside of what is measured.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

from benchmarks import history, proc, trees
from benchmarks.scale import Scale

MAKE_LIMIT_S = 120.0
SOURCES = Path(__file__).parent / "programs"


class Assets:
    """The things of one run, below one directory."""

    def __init__(self, base: Path, scale: Scale) -> None:
        self.base = base
        self.scale = scale
        base.mkdir(parents=True, exist_ok=True)

    def program(self, name: str, package: str = "") -> str:
        """The path of a program of the machine; raises :class:`proc.Skip` with the package to install."""
        found = shutil.which(name)
        if not found:
            raise proc.Skip(f"{name} is not installed: apt-get install {package or name}")
        return found

    @cached_property
    def archive(self) -> Path:
        """A tar of as many files as the scale says, uncompressed."""
        return self._tar("new.tar", trees.files(self.scale.untar_files, seed=3))

    @cached_property
    def archive_over(self) -> Path:
        """A tar of files that the tree has too, from all of its directories; a third of it."""
        return self._tar("over.tar", itertools.islice(trees.files(self.scale.files, seed=3), 0, None, 3))

    def _tar(self, name: str, files: Iterable[trees.File]) -> Path:
        path, text = self.base / name, trees.pool()
        with tarfile.open(path, "w") as archive:
            for file in files:
                data = trees.content(file, text)
                member = tarfile.TarInfo(file.path)
                member.size, member.mtime = len(data), trees.LONG_AGO_NS // 10**9
                member.uid, member.gid = os.getuid(), os.getgid()
                archive.addfile(member, io.BytesIO(data))
        return path

    @cached_property
    def load(self) -> str:
        """The program of tight loops, compiled from ``programs/load.c``."""
        path = str(self.base / "load")
        compile_it = [self.program("cc", "gcc"), "-O2", "-o", path, str(SOURCES / "load.c")]
        proc.run(compile_it, limit_s=MAKE_LIMIT_S)
        return path

    @cached_property
    def repository(self) -> Path:
        """A bare git repository with a history of its own."""
        git = self.program("git")
        path = self.base / "history.git"
        stream = self.base / "history.fast-import"
        stream.write_bytes(history.stream(self.scale.git_commits, self.scale.git_files))
        proc.run([git, "init", "-q", "--bare", "-b", "main", str(path)], limit_s=MAKE_LIMIT_S)
        feed = ["sh", "-c", 'exec "$1" -C "$2" fast-import --quiet < "$3"', "sh", git, str(path), str(stream)]
        proc.run(feed, limit_s=MAKE_LIMIT_S)
        return path

    @cached_property
    def wheels(self) -> list[Path]:
        """Wheels of a hundred small modules each."""
        if not find_spec("pip"):
            raise proc.Skip("pip is not installed: apt-get install python3-pip")
        return [self._wheel(f"bench_package_{number}") for number in range(self.scale.wheels)]

    def _wheel(self, name: str) -> Path:
        """A wheel by hand, as the specification of binary distributions has it; pip does not insist on hashes."""
        path = self.base / f"{name}-1.0-py3-none-any.whl"
        info = f"{name}-1.0.dist-info"
        files = {f"{name}/module_{number}.py": f"VALUE = {number}\n" for number in range(100)}
        files |= {
            f"{name}/__init__.py": "",
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(path, "w") as wheel:
            for file, text in {**files, f"{info}/RECORD": record}.items():
                wheel.writestr(file, text)
        return path
