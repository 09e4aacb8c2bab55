"""``python -m benchmarks``: reads the command line, sets the run up, and sees to it that nothing of it is left."""

from __future__ import annotations

import argparse
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import datetime, timezone
from pathlib import Path

from benchmarks import plot, proc, report, system
from benchmarks.assets import Assets
from benchmarks.bars import OURS
from benchmarks.peers import BuiltFuseOverlayfs, Peer, choose
from benchmarks.progress import Progress
from benchmarks.registry import Workload, select
from benchmarks.result import Result
from benchmarks.runner import Runner
from benchmarks.scale import SCALES, Scale
from benchmarks.site import Setting
from benchmarks.stacks import Stacks
from benchmarks.tracing import counter_of_this_machine
from benchmarks.workloads import WORKLOADS

RESULTS = Path(__file__).resolve().parent / "results"
REMOVE_LIMIT_S = 600.0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add = parser.add_argument
    add("--size", choices=list(SCALES), default="full", help="how much work there is (default: full)")
    add("--quick", dest="size", action="store_const", const="quick", help="--size quick: under five minutes")
    add("--only", action="append", default=[], metavar="W", help="workloads, rows, groups or patterns, with commas")
    add("--peers", default="", metavar="A,B", help="names of peers, or their beginnings")
    add(
        "--fuse-overlayfs",
        action="append",
        default=[],
        type=BuiltFuseOverlayfs,
        metavar="PATH",
        help="take this build of fuse-overlayfs as one more peer",
    )
    add("--rounds", type=int, metavar="N", help="rounds instead of the size's own number")
    add("--counts", action="store_true", help="count the FUSE requests of all, not only of unionmount")
    add("--list", action="store_true", help="show workloads and peers, and run nothing")
    add("--directory", type=Path, metavar="DIR", help="where the stacks are made (default: the system's /tmp)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] = sys.argv[1:]) -> int:
    """Run what the command line asks for; 0, or 1 when a workload failed, 2 for a wrong name, 130 after Ctrl-C."""
    options = parse(argv)
    try:
        options.only = [name for names in options.only for name in names.split(",")]
        chosen = select(options.only, [entry for entry in WORKLOADS.values() if entry.fits(SCALES[options.size])])
        peers = [*choose([name for name in options.peers.split(",") if name]), *options.fuse_overlayfs]
    except LookupError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    if options.list:
        return show(chosen, peers)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    base = Path(tempfile.mkdtemp(prefix="unionfs-bench.", dir=options.directory))
    try:
        return measure(options, chosen, peers, base)
    finally:
        for pid in system.mentions(str(base)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        system.unmount_below(base)
        proc.run(["rm", "-rf", "--one-file-system", str(base)], limit_s=REMOVE_LIMIT_S)


def show(chosen: Sequence[Workload], peers: Sequence[Peer]) -> int:
    """Print what there is."""
    for entry in chosen:
        print(f"{entry.group:10} {entry.name:14} {' '.join(row.name for row in entry.rows)}")
    for peer in peers:
        print(f"{'peer':10} {peer.name:24} {peer.missing() or peer.version()}")
    return 0


def measure(options: argparse.Namespace, chosen: Sequence[Workload], peers: Sequence[Peer], base: Path) -> int:
    """Run the rounds and report, also what there is when they are interrupted."""
    scale, progress = SCALES[options.size], Progress()
    absent = {peer.name: reason for peer in peers if (reason := peer.missing())}
    present = [peer for peer in peers if peer.name not in absent]
    setting = Setting(base, scale, Stacks(base / "stacks", scale), Assets(base / "assets", scale))
    runner = Runner(present, chosen, setting, progress.tell)
    status = 0
    try:
        runner.run(options.rounds or scale.rounds, time.monotonic() + scale.budget_s if scale.budget_s else None)
        with closing(counter_of_this_machine()) as counter:  # its buffer takes memory that timed rounds may want
            runner.count(counter, present if options.counts else [peer for peer in present if peer.name == OURS])
    except KeyboardInterrupt:
        status = 130
    finally:
        progress.end()
    rows = [row for entry in chosen for row in entry.rows]
    names = [peer.name for peer in present]
    result = Result(rows, names, runner.outcome, machine(scale, present, runner), absent)
    publish(result, "-".join([scale.name, *options.only]).replace("*", ""))
    return status or bool(runner.outcome.failed)


def machine(scale: Scale, peers: Sequence[Peer], runner: Runner) -> dict[str, str]:
    """On what and with what the run was made."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": f"Linux {platform.release()} {platform.machine()}, Python {platform.python_version()}",
        "processors": f"{os.cpu_count()}{' x' + model[0].partition(':')[2] if model else ''}",
        "size": f"{scale.name}, {scale.files:,} files in three layers, complete rounds: {runner.rounds_done}",
        "caches": "dropped for cold rows"
        if system.may_drop_caches()
        else "not dropped, which needs root: no cold rows",
        **{peer.name: peer.version() for peer in peers},
    }


def publish(result: Result, name: str) -> None:
    """Write table, JSON and plot, and say where they are."""
    RESULTS.mkdir(exist_ok=True)
    markdown = report.as_markdown(result)
    (RESULTS / f"{name}.md").write_text(markdown)
    (RESULTS / f"{name}.json").write_text(report.as_json(result))
    print(markdown)
    if reason := plot.missing():
        print(reason)
    else:
        plot.draw(result, RESULTS / f"{name}.png")
    print(f"written to {RESULTS / name}.*")


if __name__ == "__main__":
    sys.exit(main())
