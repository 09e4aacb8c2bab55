"""Keeping idle processors from falling asleep while requests come, for the time that one takes is mostly their waking.

A client that waits for an answer leaves its processor idle, and to bring an idle one back takes some microseconds on
bare metal and more than ten in a virtual machine: more than the answer takes. The kernel's quality-of-service interface
says how much of that somebody can bear (Documentation/power/pm_qos_interface.rst); it is open to root alone. This
module knows no request; the loop that serves them says when to be awake.
"""

from __future__ import annotations

import os

_DEVICE = "/dev/cpu_dma_latency"
_NONE_US = 0
_ANY_US = 2_000_000_000  # PM_QOS_CPU_LATENCY_DEFAULT_VALUE: no demand


class Wakefulness:
    """A demand for processors that wake at once, made and taken back; without effect where it may not be made."""

    __slots__ = ("_awake", "_demand")

    def __init__(self) -> None:
        self._awake = False
        self._demand: int | None = None  # the open device; opened when it is first needed, -1 if it cannot be

    def be(self, *, awake: bool) -> None:
        """Let no processor fall asleep from now on, or let an idle machine rest again."""
        if awake is self._awake:
            return
        self._awake = awake
        if self._demand is None:
            self._demand = _open()
        if self._demand >= 0:
            os.write(self._demand, (_NONE_US if awake else _ANY_US).to_bytes(4, "little"))


def _open() -> int:
    try:
        return os.open(_DEVICE, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return -1
