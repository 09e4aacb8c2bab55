"""One line of progress, rewritten in place on a terminal; without a terminal one line per ten percent."""

from __future__ import annotations

import sys
import time

WIDTH = 24


class Progress:
    """A bar with the time that has passed."""

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.tenth = -1

    def tell(self, what: str, share: float) -> None:
        """Show what goes on, and which share (0 to 1) of the run is behind it."""
        bar = "#" * round(share * WIDTH)
        line = f"[{bar:<{WIDTH}}] {share:4.0%} {time.monotonic() - self.started:5.0f} s  {what}"
        if self.terminal:
            print(f"\r\x1b[K{line[:110]}", end="", file=sys.stderr, flush=True)
        elif int(share * 10) != self.tenth:
            self.tenth = int(share * 10)
            print(line, file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line."""
        if self.terminal:
            print(file=sys.stderr)
