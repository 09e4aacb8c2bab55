"""Layered data for an experiment: the raw data and a correction as read-only layers, one writable layer per run.

Each run sees all of the data as if it were its own, writes where it likes, and leaves a directory that holds nothing
but what it changed. A later run stands on an earlier one by taking its directory as one more layer. No mount, no
privilege.

    python examples/experiment_layers.py [DIRECTORY]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import unionfs

CORRECTED = "north.json"


def main(place: Path) -> int:
    """Make the data in ``place``, run the experiment on it, and print what each run left."""
    raw, correction = make_data(place)
    for factor in (1, 2):
        experiment([correction, raw], place / f"run-{factor}", factor)
    experiment([place / "run-2", correction, raw], place / "run-2-then-3", 3)
    print("the raw data:", sorted(os.listdir(raw)), json.loads((raw / CORRECTED).read_text()))
    return 0


def make_data(place: Path) -> tuple[Path, Path]:
    """Write the raw data, and a correction of one of its files, as two directories."""
    raw, correction = place / "raw", place / "correction"
    for directory in (raw, correction):
        directory.mkdir()
    for index, name in enumerate(("north", "south", "scratch")):
        (raw / f"{name}.json").write_text(json.dumps([index, index + 1, index + 2]))
    (correction / CORRECTED).write_text(json.dumps([10, 20, 30]))
    return raw, correction


def experiment(layers: list[Path], upper: Path, factor: int) -> None:
    """Scale every series by ``factor`` in place, drop what is not needed, write a summary."""
    upper.mkdir()
    with unionfs.Union(lower=layers, upper=upper, volatile=True) as data:
        data.unlink("scratch.json", missing_ok=True)
        for path in list(data.glob("*.json")):
            series = json.loads(data.read_text(path))
            data.write_text(path, json.dumps([value * factor for value in series]))
        total = sum(sum(json.loads(data.read_text(path))) for path in data.glob("*.json"))
        data.mkdir("results", exist_ok=True)
        data.write_text("results/total.txt", f"{total}\n")
        print(f"{upper.name}: total {total}; changes: {', '.join(map(str, data.changes()))}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(main(Path(sys.argv[1])))
    with tempfile.TemporaryDirectory(prefix="experiment-") as temporary:
        sys.exit(main(Path(temporary)))
