"""When the loop leaves its processor to others instead of spinning: what it makes of proc_loadavg(5)."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from unionfs.fuse import wakefulness

if TYPE_CHECKING:
    from pathlib import Path

MS = 1_000_000


def _crowd(monkeypatch: pytest.MonkeyPatch, file: Path, processors: int) -> wakefulness.Crowd:
    monkeypatch.setattr(wakefulness, "_LOADAVG", str(file))
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    return wakefulness.Crowd()


def test_more_than_there_are_processors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "loadavg"
    file.write_text("9.99 9.99 9.99 3/500 77\n")
    crowd = _crowd(monkeypatch, file, processors=2)
    assert crowd.is_there(5 * MS)
    file.write_text("9.99 9.99 9.99 2/500 77\n")
    assert crowd.is_there(5 * MS + MS // 2), "it looks once a millisecond"
    assert not crowd.is_there(6 * MS)
    assert not _crowd(monkeypatch, file, processors=4).is_there(5 * MS)


def test_nobody_is_there_where_it_cannot_be_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _crowd(monkeypatch, tmp_path / "none", processors=1).is_there(5 * MS)


def test_the_kernel_says_so() -> None:
    crowd = wakefulness.Crowd()
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range((os.cpu_count() or 1) + 1)]
    try:
        deadline = time.monotonic() + 30
        while not crowd.is_there(time.perf_counter_ns()) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert crowd.is_there(time.perf_counter_ns())
    finally:
        for process in busy:
            process.kill()
            process.wait()
