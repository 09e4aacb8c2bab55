"""How much work there is: the sizes of the full, the quick and the tiny run. Numbers alone; no file is touched here."""

from __future__ import annotations

from typing import NamedTuple

KIB = 1024
MIB = 1024 * KIB


class Scale(NamedTuple):
    """The sizes of one run; a name that ends in ``_bytes`` or ``_s`` has that unit, the others are counts."""

    name: str
    rounds: int
    budget_s: float | None
    limit_s: float
    files: int
    untar_files: int
    git_commits: int
    git_files: int
    modules: int
    wheels: int
    c_files: int
    data_bytes: int
    random_ops: int
    fsync_ops: int
    sqlite_rows: int
    processes: int
    copyup_bytes: int
    layer_counts: tuple[int, ...]
    dir_entries: tuple[int, ...]
    depths: tuple[int, ...]
    known_files: int
    stack_counts: tuple[int, ...]
    shared_bytes: int


FULL = Scale(
    name="full",
    rounds=3,
    budget_s=None,
    limit_s=300,
    files=30_000,
    untar_files=10_000,
    git_commits=300,
    git_files=2_000,
    modules=500,
    wheels=6,
    c_files=80,
    data_bytes=400 * MIB,
    random_ops=20_000,
    fsync_ops=500,
    sqlite_rows=500,
    processes=8,
    copyup_bytes=1024 * MIB,
    layer_counts=(1, 10, 100, 500),
    dir_entries=(1_000, 10_000, 100_000, 1_000_000),
    depths=(1, 10, 100, 1_000),
    known_files=100_000,
    stack_counts=(1, 10, 50),
    shared_bytes=500 * MIB,
)

QUICK = FULL._replace(
    name="quick",
    budget_s=220.0,
    limit_s=30,
    files=6_000,
    untar_files=1_000,
    git_commits=40,
    git_files=300,
    modules=200,
    wheels=2,
    c_files=12,
    data_bytes=48 * MIB,
    random_ops=4_000,
    fsync_ops=40,
    sqlite_rows=40,
    copyup_bytes=64 * MIB,
    layer_counts=(1, 10, 100),
    dir_entries=(1_000, 10_000),
    depths=(1, 100),
    known_files=6_000,
    stack_counts=(1, 10),
    shared_bytes=48 * MIB,
)

TINY = QUICK._replace(
    name="tiny",
    rounds=2,
    budget_s=None,
    limit_s=20,
    files=600,
    untar_files=100,
    git_commits=5,
    git_files=40,
    modules=20,
    wheels=1,
    c_files=3,
    data_bytes=4 * MIB,
    random_ops=200,
    fsync_ops=5,
    sqlite_rows=5,
    processes=3,
    copyup_bytes=4 * MIB,
    layer_counts=(1, 10),
    dir_entries=(1_000,),
    depths=(1, 10),
    known_files=600,
    stack_counts=(1,),
    shared_bytes=4 * MIB,
)

SCALES = {scale.name: scale for scale in (FULL, QUICK, TINY)}
