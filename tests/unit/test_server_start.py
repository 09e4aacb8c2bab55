"""What a server in the background says to who started it, and to whom it speaks afterwards."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from unionfs import errors
from unionfs.fuse import server
from unionfs.fuse.mounting import MountOptions
from unionfs.union.stack import Config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_SERVICE = server.Service(Config([b"/"]), b"/nowhere", MountOptions())
_ABORTED = OSError(errno.ECONNABORTED, os.strerror(errno.ECONNABORTED))


def _start(serve: Callable[[Callable[[], None]], None], log: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Run a server in the background whose work is ``serve``; return what it told its caller."""
    monkeypatch.setattr(server, "_serve", lambda _service, ready, _report: serve(ready))
    monkeypatch.setattr(server, "_log", log.write_text)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        server._run_background(_SERVICE, writing)
    os.close(writing)
    with open(reading, "rb") as stream:
        told = stream.read()
    os.waitpid(child, 0)
    return told


@pytest.mark.parametrize(
    ("problem", "said"), [(_ABORTED, os.strerror(errno.ECONNABORTED)), (errors.NoLayers(), str(errors.NoLayers()))]
)
def test_what_ends_a_server_that_has_mounted_reaches_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception, said: str
) -> None:
    """The number of the descriptor through which it said that it had mounted is a file's of the mount by then."""

    files = [tmp_path / f"file{index}" for index in range(64)]

    def serve(ready: Callable[[], None]) -> None:
        ready()
        for file in files:  # one of them has that number
            os.write(os.open(file, os.O_RDWR | os.O_CREAT), b"content")
        raise problem

    assert _start(serve, tmp_path / "log", monkeypatch) == b"+"
    assert {file.read_bytes() for file in files} == {b"content"}
    assert (tmp_path / "log").read_text() == said


def test_what_keeps_a_server_from_mounting_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the exit status that belongs to it, and not to the log."""

    def serve(_ready: Callable[[], None]) -> None:
        raise errors.UsageError(problem="no such word")

    assert _start(serve, tmp_path / "log", monkeypatch) == b"2 no such word; see 'unionmount --help'"
    assert not (tmp_path / "log").exists()
