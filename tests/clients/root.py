"""A root directory for a container, small and made from the machine's own programs, as a tar archive."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.support.mounts import LIMIT_S

PROGRAMS = ("sh", "cat", "chmod", "chown", "cp", "ln", "ls", "mkdir", "mkfifo", "mv", "rm", "stat", "touch", "truncate")
DIRECTORIES = {"etc": 0o755, "tmp": 0o1777, "proc": 0o555, "sys": 0o555, "dev": 0o755, "run": 0o755}
PASSWD = b"root:x:0:0::/:/bin/sh\njoe:x:4711:4712::/srv:/bin/sh\n"


def write(archive: Path) -> None:
    """Write the archive: programs with the libraries that they need, and a few directories and files."""
    with tarfile.open(archive, "w") as tar:
        programs = sorted(path.lstrip("/") for path in _files())
        above = {str(parent) for path in (*programs, "srv/some/file") for parent in Path(path).parents}
        for name in sorted(above | set(DIRECTORIES)):
            _add(tar, name, DIRECTORIES.get(name, 0o755), kind=tarfile.DIRTYPE)
        _add(tar, "etc/passwd", 0o644, PASSWD)
        for index in range(20):
            _add(tar, f"srv/some/file{index}", 0o640, b"file %d" % index, owner=index)
        for path in programs:
            _add(tar, path, 0o755, Path("/", path).read_bytes())


def _files() -> set[str]:
    """Return the programs, as /bin/NAME, and all that the dynamic linker loads for them; ldd(1)."""
    found = set()
    for program in PROGRAMS:
        path = shutil.which(program, path="/bin:/usr/bin")
        assert path is not None, f"{program} is not installed"
        listed = subprocess.run(["ldd", path], capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout
        found |= {path, *re.findall(r"(/\S+) \(0x", listed)}
    return found


def _add(
    tar: tarfile.TarFile, name: str, mode: int, data: bytes = b"", *, owner: int = 0, kind: bytes = tarfile.REGTYPE
) -> None:
    member = tarfile.TarInfo(name)
    member.mode, member.uid, member.gid, member.type, member.size = mode, owner, owner, kind, len(data)
    tar.addfile(member, io.BytesIO(data))
