"""The rules of every test run: what the machine can do is listed, skips carry reasons, nothing is left behind."""

from __future__ import annotations

import os
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers, probes

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

#: The skips that ``--forbid-skips`` accepts: how their reasons begin, and why the machine of CI cannot cure that.
ALLOWED_SKIPS = {"this kernel ": "no package changes the kernel that runs"}

#: Seconds after which the FUSE mounts of a test are cut off. A call that waits for a server is not interrupted by the
#: signal of pytest-timeout (``timeout`` in pyproject.toml), so this comes a little later and lets that signal through.
HUNG_AFTER_S = 130

BASE = pytest.StashKey[Path]()
PASSED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--forbid-skips``, which the environment variable UNIONFS_FORBID_SKIPS=1 switches on as well."""
    by_default = os.environ.get("UNIONFS_FORBID_SKIPS") == "1"
    what = "a test that is skipped for a reason that is not expected fails"
    parser.addoption("--forbid-skips", action="store_true", default=by_default, help=what)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Put everything temporary, of pytest and of the programs that tests start, below one directory of the session."""
    if config.option.collectonly or config.option.help:
        return
    leftovers.sweep_stale()
    base = config.stash[BASE] = leftovers.new_base()
    os.environ[leftovers.MARK] = str(base)
    if config.option.basetemp is None:
        config.option.basetemp = base / "pytest"
    scratch = base / "tmp"
    scratch.mkdir()
    scratch.chmod(0o1777)
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)


def pytest_report_header() -> list[str]:
    """List what the machine can do."""
    return probes.report()


@pytest.fixture(autouse=True, scope="session")
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail the session that leaves a process, a mount or a temporary file."""
    yield
    base = request.config.stash[BASE]
    left = [f"process {process.pid}: {process.command}" for process in leftovers.settle(base)]
    left += [f"{mount.kind} mount: {os.fsdecode(mount.point)}" for mount in leftovers.mounts_below(base)]
    left += [f"temporary file: {path}" for path in (base / "tmp").iterdir()]
    assert not left, "left behind:\n" + "\n".join(left)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Remember the outcome for what comes after it."""
    session.config.stash[PASSED] = exitstatus == pytest.ExitCode.OK


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the session's directory; after a failure it is left to the next session, so that it can be looked at."""
    if BASE not in config.stash:
        return
    tempfile.tempdir = None
    leftovers.release(config.stash[BASE])
    if config.stash.get(PASSED, False):
        leftovers.remove(config.stash[BASE])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what is marked with ``requires`` where a probe of it says no."""
    for mark in item.iter_markers("requires"):
        probes.need(*mark.args)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, bool | None, bool | None]:
    """Cut off the mounts of a test that hangs in one of them."""
    timer = threading.Timer(HUNG_AFTER_S, leftovers.abort_below, [item.config.stash[BASE]])
    timer.daemon = True
    timer.start()
    try:
        return (yield)
    finally:
        timer.cancel()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a forbidden skip of a test into a failure."""
    report = yield
    _forbid_skip(item.config, report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turn a forbidden skip of a whole module into an error."""
    report = yield
    _forbid_skip(collector.config, report)
    return report


def _forbid_skip(config: pytest.Config, report: pytest.TestReport | pytest.CollectReport) -> None:
    if not report.skipped or hasattr(report, "wasxfail") or not config.getoption("--forbid-skips"):
        return
    where = report.longrepr
    reason = (where[2] if isinstance(where, tuple) else str(where)).removeprefix("Skipped: ")
    if not reason.startswith(tuple(ALLOWED_SKIPS)):
        report.outcome = "failed"
        report.longrepr = f"this skip is forbidden here: {reason}"
