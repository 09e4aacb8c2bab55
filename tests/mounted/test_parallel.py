"""One request that takes long does not stop the others: shown with a layer that keeps its data back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers
from tests.support.mounts import LIMIT_S, is_mounted, prepare, union_mount
from tests.support.probes import requires

from . import slow_layer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = requires("root", "fuse", "libfuse2")
ANSWER_S = 10


class Slow:
    """The layer, and the gate that its data waits behind."""

    def __init__(self, base: Path) -> None:
        self.layer = base / "slow"
        self.layer.mkdir()
        self._gate = base / "gate"
        os.mkfifo(self._gate)
        command = [sys.executable, slow_layer.__file__, str(self.layer), str(self._gate)]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while not is_mounted(self.layer):
            assert self.process.poll() is None, self.process.communicate()
            os.sched_yield()

    def wait_until_wanted(self) -> int:
        """Return, once somebody waits for data, the descriptor whose closing lets it through."""
        return os.open(self._gate, os.O_WRONLY)


@contextmanager
def slow(base: Path) -> Iterator[Slow]:
    """Mount the layer."""
    made = Slow(base)
    try:
        yield made
    finally:
        for mount in leftovers.mounts_below(made.layer):
            leftovers.abort(mount)
            leftovers.detach(mount.point)
        made.process.kill()
        made.process.communicate(timeout=LIMIT_S)


def _write(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"#")


#: What needs the data that is kept back.
NEEDS: dict[str, Callable[[Path], object]] = {
    "read": Path.read_bytes,
    "copy-up by writing": _write,
    "copy-up by chmod": lambda path: path.chmod(0o600),
    "copy-up by linking": lambda path: path.with_name("link").hardlink_to(path),
    "copy-up by renaming": lambda path: path.rename(path.with_name("renamed")),
}


@pytest.mark.parametrize("need", NEEDS.values(), ids=NEEDS)
def test_others_go_on(tmp_path: Path, need: Callable[[Path], object]) -> None:
    """While one request waits, lookups, reads, listings and changes of other files are answered.

    They are in another directory, which is known already: link(2) and rename(2) lock theirs in the kernel.
    """
    (plain,), upper, work = prepare(tmp_path)
    (plain / "here").mkdir()
    for name in ("a", "b"):
        (plain / "here" / name).write_text(name)
    with slow(tmp_path) as held, union_mount(tmp_path, [plain, held.layer], upper, work) as point:
        assert sorted(os.listdir(point / "here")) == ["a", "b"]
        waiting = threading.Thread(target=need, args=(point / "big",), daemon=True)
        waiting.start()
        gate = held.wait_until_wanted()
        script = "cat a && echo new > b && mkdir d && mv b d/b && rm a && ls d && stat ../big"
        done = subprocess.run(
            ["sh", "-c", script], cwd=point / "here", capture_output=True, timeout=ANSWER_S, check=True
        )
        assert done.stdout.startswith(b"ab\n")
        assert waiting.is_alive(), "what should wait did not"
        os.close(gate)
        waiting.join(LIMIT_S)
        assert not waiting.is_alive()
    assert (upper / "here/d/b").read_text() == "new\n"
    for name in ("big", "link", "renamed"):
        if (upper / name).is_file():
            assert (upper / name).read_bytes()[1:] == b"x" * (slow_layer.SIZE - 1)
