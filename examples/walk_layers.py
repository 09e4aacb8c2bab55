"""A tree of layers walked without a mount: which layer each name comes from, and what it hides.

    python examples/walk_layers.py LAYER...    # topmost first; without arguments, three small layers of its own

The layers may be in any of the formats in use: of overlayfs, of fuse-overlayfs, or unpacked from container images.
"""

from __future__ import annotations

import posixpath
import sys
import tempfile
from pathlib import Path

import unionfs


def main(layers: list[Path]) -> int:
    """Print the merged tree of ``layers``; return the exit status."""
    try:
        union = unionfs.Union(lower=layers)
    except unionfs.UnionfsError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    with union:
        for directory, directories, names in union.walk("/"):
            directories.sort()
            for name in sorted((*directories, *names)):
                print(describe(union, posixpath.join(directory, name)))
    return 0


def describe(union: unionfs.Union, path: str) -> str:
    """Return one line about a name: its size in bytes, its layer, what it is merged with, what it hides."""
    found = union.explain(path)
    source = Path(found.source.layer).name if found.source is not None else "?"
    merged = [Path(fact.layer).name for fact in found.facts if fact.role == "merged"]
    hides = [Path(fact.layer).name for fact in found.hides]
    notes = [f"merged with {', '.join(merged)}"] * bool(merged) + [f"hides that of {', '.join(hides)}"] * bool(hides)
    line = f"{union.lstat(path).st_size:>8}  {path:<24} {source}"
    return line + (f"  ({'; '.join(notes)})" if notes else "")


def make_layers(place: Path) -> list[Path]:
    """Make three layers: a base, an application, and a patch that deletes a file as container images do."""
    layers = [place / name for name in ("patch", "application", "base")]
    patch, application, base = layers
    for path, text in {
        base / "etc/app.conf": "defaults\n",
        base / "etc/motd": "welcome\n",
        base / "bin/sh": "#!\n",
        application / "etc/app.conf": "mode = fast\n",
        application / "bin/app": "#!/bin/sh\n",
        patch / "etc/.wh.motd": "",
        patch / "bin/app": "#!/bin/sh\nexec true\n",
    }.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return layers


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main([Path(word) for word in sys.argv[1:]]))
    with tempfile.TemporaryDirectory(prefix="layers-") as temporary:
        sys.exit(main(make_layers(Path(temporary))))
