"""What workloads bring along from outside the mount: archives, programs. Each is made when it is first asked for."""

from __future__ import annotations

import io
import tarfile
from functools import cached_property
from pathlib import Path

from benchmarks import trees
from benchmarks.scale import Scale


class Assets:
    """The things of one run, below one directory."""

    def __init__(self, base: Path, scale: Scale) -> None:
        self.base = base
        self.scale = scale
        base.mkdir(parents=True, exist_ok=True)

    @cached_property
    def archive(self) -> Path:
        """A tar of as many files as the scale says, uncompressed."""
        path = self.base / "new.tar"
        text = trees.pool()
        with tarfile.open(path, "w") as archive:
            for file in trees.files(self.scale.untar_files, seed=3):
                data = trees.content(file, text)
                member = tarfile.TarInfo(file.path)
                member.size, member.mtime = len(data), trees.LONG_AGO_NS // 10**9
                archive.addfile(member, io.BytesIO(data))
        return path
