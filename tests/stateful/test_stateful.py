"""Our mount against the kernel's overlayfs, and that against itself: the comparison can hold, and can fail."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.support.mounts import run, union_mount
from tests.support.probes import requires

from .machine import Way, fewest_steps, machine, oracle, run_by_chance, without_redirects
from .operations import known_to_libfuse2, unmapped

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from .machine import Comparison

pytestmark = [requires("root", "overlayfs"), pytest.mark.timeout(300)]

#: The kernel's overlayfs in the place of ours.
KERNEL = Way(oracle, limit=unmapped, dialects=(None,), keeps_numbers=False)
FUSEPY = Way(partial(union_mount, words=("--transport", "fusepy")), limit=known_to_libfuse2, keeps_numbers=False)
#: The ways of ours to work, and what the kernel's overlayfs needs for the same.
WAYS = {
    "passthrough": Way(union_mount),
    "metacopy": Way(
        partial(union_mount, options="metacopy=on"), partial(oracle, options=",metacopy=on"), dates_opened=True
    ),
    **{name: Way(partial(union_mount, words=("--mode", name))) for name in ("write-through", "write-back", "opened")},
}
FIRST = {name: 1000 * index for index, name in enumerate(WAYS)}
#: Operations of the short form, where they are not 2,000.
SHORT = {"passthrough": 6000}
#: Operations of the long form, in tests of so many each: each has seeds of its own.
LONG = int(os.environ.get("UNIONFS_STATEFUL_STEPS", "20000"))
ONE_TEST = 1000
ONE_RUN = 150
#: The file system of the upper layer, and those of the lower ones in turn.
LAYOUTS = {
    "lowers on two others": ("tmpfs", "xfs", "btrfs"),
    "an upper on xfs": ("xfs", "tmpfs", "btrfs"),
    "an upper on btrfs": ("btrfs", "xfs"),
}
#: Shrinking a failure to the fewest operations takes minutes: for whoever looks for its cause.
SHRINK = os.environ.get("UNIONFS_STATEFUL_SHRINK") == "1"


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs for the layers: it has xattrs, file handles and whiteouts, and no disk to wait for."""
    tmp_path.chmod(0o755)
    run("mount", "-t", "tmpfs", "-o", "mode=0755", "layers", tmp_path)
    yield tmp_path
    run("umount", tmp_path)


@pytest.fixture(scope="module")
def filesystems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A file system of each kind, by its name."""
    base = tmp_path_factory.mktemp("filesystems")
    found = {kind: base / kind for kind in ("tmpfs", "xfs", "btrfs")}
    mounted: list[Path] = []
    try:
        for kind, place in found.items():
            place.mkdir()
            image = place.with_suffix(".img")
            if kind != "tmpfs":
                image.touch()
                os.truncate(image, 512 << 20)
                run(f"mkfs.{kind}", "-q", image)
            run("mount", "-t", kind, *(("layers",) if kind == "tmpfs" else ("-o", "loop", image)), place)
            mounted.append(place)
            place.chmod(0o755)
        yield found
    finally:
        for place in mounted:
            run("umount", place)


def compare(scratch: Path, way: Way, operations: int, *, number: int = 0, elsewhere: Sequence[Path] = ()) -> None:
    """Do about ``operations`` operations, the same for the same ``number``: a part as hypothesis likes, most by chance.

    Hypothesis repeats and varies what it did, which is right for few steps but finds less in as many.
    """
    kind = machine(scratch, way, elsewhere)
    chosen = settings(
        max_examples=max(operations // 4 // ONE_RUN, 1),
        stateful_step_count=ONE_RUN,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    for run_number in range(operations * 3 // 4 // ONE_RUN):
        by_chance(kind, number * 1000 + run_number)
    run_state_machine_as_test(seed(number)(kind), settings=chosen)


def by_chance(kind: type[Comparison], seed: int) -> None:
    """Do one run, and tell its operations when it fails: as few as needed with UNIONFS_STATEFUL_SHRINK=1."""
    steps, told = list(range(1, ONE_RUN + 1)), list[str]()
    reason = failure(kind, seed, steps, told)
    if reason and SHRINK:
        steps = fewest_steps(lambda fewer: failure(kind, seed, fewer, []) is not None, steps)
        told.clear()
        reason = failure(kind, seed, steps, told) or reason
    assert reason is None, "\n".join((f"seed {seed}", *told, reason))


def failure(kind: type[Comparison], seed: int, steps: list[int], told: list[str]) -> str | None:
    """Return what was wrong in a run."""
    try:
        run_by_chance(kind, seed, steps, told)
    except (AssertionError, OSError) as error:
        return repr(error) if isinstance(error, OSError) else str(error)
    return None


def test_overlayfs_agrees_with_itself(scratch: Path) -> None:
    """Whatever the machine reports of two equal mounts would be its own mistake."""
    compare(scratch, KERNEL, 500)


def test_a_difference_is_found(scratch: Path) -> None:
    """Without redirects overlayfs refuses to rename directories: that must not escape."""
    with pytest.raises(AssertionError, match=r"rename(.|\n)*EXDEV"):
        compare(scratch, KERNEL._replace(ours=without_redirects), 2000)


@requires("fuse")
@pytest.mark.parametrize("way", WAYS)
def test_ours_agrees_with_overlayfs(scratch: Path, way: str) -> None:
    """The short form, each way with operations of its own."""
    compare(scratch, WAYS[way], SHORT.get(way, 2000), number=FIRST[way])


@requires("fuse", "loop", "mkfs.xfs", "mkfs.btrfs")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_ours_agrees_with_overlayfs_over_several_file_systems(filesystems: dict[str, Path], layout: str) -> None:
    """Whose inode numbers, handles and errors are not those of the upper's."""
    upper, *lowers = (filesystems[kind] for kind in LAYOUTS[layout])
    number = 1 + list(LAYOUTS).index(layout)
    compare(upper, WAYS["passthrough"], 2000, number=100 * number, elsewhere=lowers)


@requires("fuse", "libfuse2")
def test_ours_through_libfuse_agrees_with_overlayfs(scratch: Path) -> None:
    """The short form, with what libfuse 2 can be asked."""
    compare(scratch, FUSEPY, 1000)


@pytest.mark.long
@requires("fuse")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("number", range(1, LONG // ONE_TEST + 1))
def test_ours_agrees_with_overlayfs_for_long(scratch: Path, way: str, number: int) -> None:
    """The long form."""
    compare(scratch, WAYS[way], ONE_TEST, number=FIRST[way] + number)
