"""The parts of the benchmark that do not measure: arithmetic, tables, the registry, what becomes of a bad peer."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bars, history, proc, report, stats, trees
from benchmarks.assets import Assets
from benchmarks.peers import PEERS, BuiltFuseOverlayfs, Mounted, Peer, Place, choose
from benchmarks.registry import BARS, Row, Workload, add, select
from benchmarks.result import Result, figure
from benchmarks.runner import Key, Outcome, Runner
from benchmarks.scale import SCALES, TINY
from benchmarks.site import Setting, Site
from benchmarks.stacks import BUILDERS, Stacks
from benchmarks.system import Mount, _mount
from benchmarks.tracing import Counted, served_s
from benchmarks.workloads import WORKLOADS

Run = Callable[[Callable[[Site], None], int], Outcome]

LIMIT_S = 20.0
positive = st.floats(min_value=1e-6, max_value=1e6)


# Arithmetic


def test_ratio_pairs_the_rounds() -> None:
    assert stats.ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == stats.Ratio(3.0, 2.0, 4.0)


def test_ratio_takes_the_rounds_that_both_have() -> None:
    assert stats.ratio([2.0], [1.0, 10.0]) == stats.Ratio(2.0, 2.0, 2.0)


def test_ratio_of_nothing_is_none() -> None:
    assert stats.ratio([], [1.0]) is None
    assert stats.ratio([1.0], [0.0]) is None


@given(st.lists(st.tuples(positive, positive), min_size=1, max_size=9))
def test_inverse_is_the_ratio_from_the_other_side(pairs: list[tuple[float, float]]) -> None:
    mine, other = [first for first, _ in pairs], [second for _, second in pairs]
    there, back = stats.ratio(mine, other), stats.ratio(other, mine)
    assert there
    assert back
    assert there.low <= there.median <= there.high
    inverted = stats.inverse(there)
    assert math.isclose(inverted.low, back.low)
    assert math.isclose(inverted.high, back.high)


@given(st.lists(positive, min_size=1, max_size=9))
def test_geometric_mean_lies_between(values: list[float]) -> None:
    mean = stats.geometric_mean(values)
    assert mean is not None
    assert min(values) * 0.999 <= mean <= max(values) * 1.001


def test_geometric_mean() -> None:
    assert stats.geometric_mean([]) is None
    assert stats.geometric_mean([2.0, 8.0]) == pytest.approx(4.0)


# Report


def result_of(samples: dict[tuple[str, str], list[float]], rows: list[Row] | None = None) -> Result:
    """A result with these values by row and peer."""
    found = {Key(row, peer): values for (row, peer), values in samples.items()}
    names = list(dict.fromkeys(peer for _, peer in samples))
    lines = rows or [Row(name) for name in dict.fromkeys(row for row, _ in samples)]
    outcome = Outcome(found, {}, {Key("walk", "broken"): "it broke"}, {Key("walk", "unable"): "it cannot"})
    return Result(lines, names, outcome, {"system": "test"}, {"absent": "apt-get install absent"})


def test_markdown_has_medians_ratios_and_what_was_left_out() -> None:
    text = report.as_markdown(
        result_of(
            {
                ("walk", "overlayfs"): [1.0, 1.0, 1.0],
                ("walk", "fuse-overlayfs"): [4.0, 6.0, 8.0],
                ("walk", "unionmount"): [2.0, 2.0, 2.0],
            }
        )
    )
    assert "| walk | 1 s | 6 s | 2 s |" in text
    assert "| walk | 6.00 (4.00 to 8.00) | 3.00 (2.00 to 4.00) |" in text
    assert "| walk | 6.00 (4.00 to 8.00) | 2.00 (2.00 to 2.00) |" in text
    for line in (
        "- absent: apt-get install absent",
        "- broken, walk failed: it broke",
        "- unable, walk: it cannot",
    ):
        assert line in text


def test_geometric_mean_leaves_out_what_is_no_time() -> None:
    rows = [Row("walk"), Row("memory", unit="B")]
    result = result_of(
        {("walk", "a"): [2.0], ("walk", "b"): [1.0], ("memory", "a"): [900.0], ("memory", "b"): [1.0]}, rows
    )
    assert result.geomean("a", "b") == (2.0, 1)


def test_missed_bars_are_named() -> None:
    rows = [Row("walk", "cold"), Row("memory", unit="B", limit=600), Row("run", faster_than=("podman", 3.0))]
    result = result_of(
        {
            ("walk", "overlayfs"): [1.0],
            ("walk", "fuse-overlayfs"): [2.0],
            ("walk", "unionmount"): [1.9],
            ("memory", "unionmount"): [700.0],
            ("run", "podman"): [1.0],
            ("run", "unionmount"): [0.5],
        },
        rows,
    )
    assert bars.missed(result, "unionmount") == [
        "- unionmount, walk: 1.05 times as fast as fuse-overlayfs, not 1.2",
        "- unionmount, walk: 1.90 times overlayfs, not 1.5",
        "- unionmount, memory: 700 B, not 600 B",
        "- unionmount, run: 2.00 times as fast as podman, not 3.0",
        "- unionmount, geometric mean: 1.05 times as fast as fuse-overlayfs, not 3.0",
    ]


def test_a_missed_bar_is_told_with_what_there_is_to_reach() -> None:
    rows = [Row("walk", "cold"), Row("read", "warm")]
    times = {"overlayfs": 1.0, "fuse-overlayfs": 2.0, "unionmount": 1.9}
    found = result_of({(row.name, peer): [seconds] for row in rows for peer, seconds in times.items()}, rows)
    found.outcome.counted[Key("walk", "unionmount")] = Counted({"LOOKUP": 5}, served_s=0.9)
    assert bars.missed(found, "unionmount") == [
        "- unionmount, walk: 1.05 times as fast as fuse-overlayfs, not 1.2; at best 2.00",
        "- unionmount, walk: 1.90 times overlayfs, not 1.5; at best 1.00",
        "- unionmount, read: 1.05 times as fast as fuse-overlayfs, not 1.2",
        "- unionmount, read: 1.90 times overlayfs, not 1.15",
        "- unionmount, geometric mean: 1.05 times as fast as fuse-overlayfs, not 3.0; at best 1.45",
    ]
    assert "At best" in report.as_markdown(found)


def test_served_is_the_time_from_a_request_to_its_answer() -> None:
    trace = """\
# tracer: nop
  unionmount-71      [000] .....  5.000010: sys_enter: NR 19 (3, 7f, 1, 0, 0, 0)
        grep-80      [001] .....  5.000020: fuse_request_send: connection 7 req 2 opcode 1 (FUSE_LOOKUP) len 50
  unionmount-71      [000] .....  5.000100: sys_exit: NR 19 = 88
  union mount-72     [001] .....  5.000101: sys_exit: NR 19 = 88
  unionmount-71      [000] .....  5.000130: sys_enter: NR 20 (3, 7f, 1, 0, 0, 0)
  unionmount-71      [000] .....  5.000140: sys_enter: NR 19 (3, 7f, 1, 0, 0, 0)
  union mount-72     [001] .....  5.000111: sys_enter: NR 19 (3, 7f, 1, 0, 0, 0)
  unionmount-71      [000] .....  5.000200: sys_exit: NR 19 = 56
"""
    assert served_s(trace.splitlines()) == pytest.approx(40e-6)


def test_no_bar_is_missed_by_who_is_fast() -> None:
    result = result_of({("walk", "fuse-overlayfs"): [4.0], ("walk", "overlayfs"): [1.0], ("walk", "unionmount"): [1.0]})
    assert bars.missed(result, "unionmount") == []


def test_json_holds_every_sample() -> None:
    loaded: dict[str, Any] = json.loads(report.as_json(result_of({("walk", "a"): [1.25, 2.5]})))
    assert loaded["rows"]["walk"]["samples"] == {"a": [1.25, 2.5]}
    assert loaded["failed"] == [{"workload": "walk", "peer": "broken", "reason": "it broke"}]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12.345, "s", "12.3 s"),
        (0.0123, "s", "12.3 ms"),
        (4.2e-6, "s", "4.2 µs"),
        (1234.0, "B", "1,234 B"),
        (0.5, "", "0.5"),
    ],
)
def test_figures_have_three_digits(value: float, unit: str, text: str) -> None:
    assert figure(value, unit) == text


# Registry


def test_every_group_of_the_issue_is_there() -> None:
    groups = {entry.group for entry in WORKLOADS.values()}
    assert groups == {"walk", "change", "git", "programs", "io", "parallel", "copyup", "growth", "startup", "sharing"}


@pytest.mark.parametrize("entry", WORKLOADS.values(), ids=lambda entry: entry.name)
def test_a_workload_is_complete(entry: Workload) -> None:
    assert entry.rows
    assert entry.stack.partition(":")[0] in BUILDERS
    assert all(row.bar in ("", *BARS) for row in entry.rows)
    assert entry.fits(SCALES["full"])


def test_rows_are_unique() -> None:
    rows = [row.name for entry in WORKLOADS.values() for row in entry.rows]
    assert len(rows) == len(set(rows))


def test_a_row_cannot_be_entered_twice() -> None:
    taken = next(iter(WORKLOADS.values())).rows
    with pytest.raises(ValueError, match="there already"):
        add(Workload("another", "walk", taken, lambda site: None))
    assert "another" not in WORKLOADS


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("untar", {"untar-new", "untar-over"}),
        ("untar-new", {"untar-new"}),
        ("grep-warm2", {"grep"}),
        ("walk", {"find", "stat", "grep"}),
        ("copyup-*", {"copyup-xfs", "copyup-btrfs", "copyup-ext4"}),
        ("git", {"git"}),
    ],
)
def test_workloads_are_chosen_by_name_row_group_or_pattern(pattern: str, names: set[str]) -> None:
    assert {entry.name for entry in select([pattern], WORKLOADS.values())} == names


def test_an_unknown_workload_is_an_error() -> None:
    with pytest.raises(LookupError, match="nonsense"):
        select(["nonsense"], WORKLOADS.values())


def test_peers_are_chosen_by_name_or_beginning() -> None:
    assert [peer.name for peer in choose(["overlayfs", "union"])] == [
        peer.name for peer in PEERS if peer.name == "overlayfs" or peer.name.startswith("union")
    ]
    assert [peer.name for peer in choose(["unionmount"])] == ["unionmount"]
    with pytest.raises(LookupError, match="nonsense"):
        choose(["nonsense"])


def test_another_build_is_a_peer_called_by_its_version(tmp_path: Path) -> None:
    program = tmp_path / "fuse-overlayfs"
    program.write_text("#!/bin/sh\necho fusermount3 version: 1\necho fuse-overlayfs: version 9.9\n")
    with pytest.raises(ValueError, match="is no program"):
        BuiltFuseOverlayfs(str(program))
    program.chmod(0o755)
    peer = BuiltFuseOverlayfs(str(program))
    assert (peer.name, peer.missing()) == ("fuse-overlayfs-9.9", None)
    place = Place((tmp_path,), tmp_path, tmp_path, tmp_path, tmp_path)
    assert peer.foreground(place)[:2] == [str(program), "-f"]


def test_a_missing_peer_says_what_to_install() -> None:
    class Absent(Idle):
        program = "no-such-program"
        package = "no-such-package"

    assert Absent().missing() == "no-such-program is not installed: apt-get install no-such-package"


# What is generated is the same in every run


def test_trees_are_deterministic() -> None:
    text = trees.pool()
    first, second = list(trees.files(300)), list(trees.files(300))
    assert first == second
    assert len({file.path for file in first}) == 300
    for file in first:
        assert len(trees.content(file, text)) == file.size + (len(trees.NEEDLE) if file.needle else 0)


def test_the_pool_has_no_needle_of_its_own() -> None:
    assert trees.NEEDLE.strip() not in trees.pool()


def test_the_history_is_deterministic() -> None:
    assert history.stream(3, 40) == history.stream(3, 40)


def test_the_tree_shows_each_file_once(tmp_path: Path) -> None:
    stack = Stacks(tmp_path, TINY).get("tree")
    seen = {path.relative_to(layer) for layer in stack.layers for path in layer.rglob("*.txt")}
    assert len(seen) == stack.files == TINY.files
    assert all((layer / "tree").is_dir() for layer in stack.layers)


# Commands and their limits


def test_a_command_that_fails_says_so() -> None:
    with pytest.raises(proc.StepFailed, match="exit status 3: no luck"):
        proc.run(["sh", "-c", "echo no luck >&2; exit 3"], limit_s=LIMIT_S)


def test_a_command_that_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    told = tmp_path / "pid"
    with pytest.raises(proc.StepFailed, match="no answer"):
        proc.run(["sh", "-c", f"sleep 600 & echo $! > {told}; wait"], limit_s=0.5)
    deadline = time.monotonic() + LIMIT_S
    while running(told.read_text().strip()):
        assert time.monotonic() < deadline, "the child of the command outlived it"
        time.sleep(0.01)


def running(pid: str) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_no_setting_of_python_reaches_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """With PYTHONDONTWRITEBYTECODE each start would compile all modules anew, which takes longer than the start."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert [name for name in proc.environment() if name.startswith("PYTHON")] == []


def test_a_command_that_does_not_exist_is_a_failure() -> None:
    with pytest.raises(proc.StepFailed, match="no-such-program"):
        proc.run(["no-such-program"], limit_s=LIMIT_S)


def test_copies_keep_their_output_apart() -> None:
    done = proc.run(
        [sys.executable, "-c", "import os\nfor _ in range(500): os.write(1, b'copy {i}\\n')"], limit_s=LIMIT_S, copies=4
    )
    lines = done.output.splitlines()
    assert sorted(lines) == sorted(b"copy %d" % number for number in range(4) for _ in range(500))


def test_the_mount_table_is_read() -> None:
    line = r"43 27 0:39 / /tmp/a\040b rw,noatime shared:1 - fuse.fuse-overlayfs x rw"
    assert _mount(line) == Mount(Path("/tmp/a b"), 39, "fuse.fuse-overlayfs")


# Rounds


class Idle(Peer):
    """A peer that mounts nothing and notes what is done with it."""

    name = "idle"
    log: ClassVar[list[str]] = []

    def mount(self, place: Place) -> Mounted:
        self.log.append(f"mount {self.name}")
        return Noted(place.root, self)


class Second(Idle):
    """Another one."""

    name = "second"


class Noted(Mounted):
    """The mount of such a peer."""

    def __init__(self, root: Path, peer: Idle) -> None:
        super().__init__(root)
        self.peer = peer

    def close(self) -> None:
        self.peer.log.append(f"close {self.peer.name}")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs one workload on the two idle peers and gives back the outcome."""

    def go(body: Callable[[Site], None], rounds: int) -> Outcome:
        setting = Setting(tmp_path, TINY, Stacks(tmp_path / "stacks", TINY), Assets(tmp_path / "assets", TINY))
        entry = Workload("work", "walk", (Row("work"), Row("late")), body, stack="depth:1")
        runner = Runner([Idle(), Second()], [entry], setting, lambda what, share: None)
        runner.run(rounds, None)
        return runner.outcome

    Idle.log.clear()
    return go


def test_rounds_are_interleaved(run: Run) -> None:
    outcome = run(lambda site: site.note("work", 1.0), 2)
    assert Idle.log == ["mount idle", "close idle", "mount second", "close second"] * 2
    assert outcome.samples == {Key("work", "idle"): [1.0, 1.0], Key("work", "second"): [1.0, 1.0]}


def test_a_peer_that_fails_is_recorded_and_the_run_goes_on(
    run: Run,
) -> None:
    def body(site: Site) -> None:
        site.note("work", 1.0)
        if site.peer.name == "idle":
            site.step("false")
        site.note("late", 2.0)

    outcome = run(body, 2)
    assert list(outcome.failed) == [Key("work", "idle")]
    assert outcome.samples[Key("work", "idle")] == [1.0], "not tried again"
    assert outcome.samples[Key("late", "second")] == [2.0, 2.0]
    assert Idle.log.count("mount idle") == Idle.log.count("close idle") == 1


def test_wrong_output_is_a_failure(run: Run) -> None:
    outcome = run(lambda site: site.measure("work", "echo", "one", lines=2), 1)
    assert outcome.failed[Key("work", "idle")] == "work: 1 lines instead of 2"
    assert outcome.samples == {}


def test_a_skip_carries_its_reason(run: Run) -> None:
    def body(site: Site) -> None:
        raise proc.Skip("not here")

    assert run(body, 2).skipped == {Key("work", "idle"): "not here", Key("work", "second"): "not here"}


def test_the_mount_is_closed_on_interruption(run: Run) -> None:
    def body(site: Site) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(body, 1)
    assert Idle.log == ["mount idle", "close idle"]


def test_a_long_workload_is_part_of_few_rounds(tmp_path: Path) -> None:
    setting = Setting(tmp_path, TINY, Stacks(tmp_path / "stacks", TINY), Assets(tmp_path / "assets", TINY))
    rows = (Row("short"),), (Row("long"),)
    short = Workload("short", "walk", rows[0], lambda site: site.note("short", 1.0), stack="depth:1")
    long = Workload("long", "walk", rows[1], lambda site: site.note("long", 1.0), stack="depth:1", rounds=1)
    runner = Runner([Idle()], [short, long], setting, lambda what, share: None)
    runner.run(3, None)
    assert {key.row: len(values) for key, values in runner.outcome.samples.items()} == {"short": 3, "long": 1}
    assert runner.rounds_done == 3


def test_a_cold_row_is_not_noted_when_caches_cannot_be_dropped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.system.may_drop_caches", lambda: False)

    def body(site: Site) -> None:
        site.cool()
        site.measure("work", "true")
        site.measure("late", "true")

    assert {key.row for key in run(body, 1).samples} == {"late"}
