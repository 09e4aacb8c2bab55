"""Who looks at the files that he has listed: what he lists next is to come with attributes.

The kernel names the thread that asks (`fuse_get_req` in fs/fuse/dev.c), and a program that walks a tree may do so in
many: Go moves its routines from one to another. So it is the process that counts. This module does not know what is
asked.
"""

from __future__ import annotations

from unionfs.syscalls import process

_MOST_THREADS = 4096


class Lookers:
    """Processes that have looked at files which were listed, by any of their threads; ``in`` asks for a thread.

    Ids come again, for others: a wrong answer costs a request a file, or a stat for nothing.
    """

    __slots__ = ("_groups", "_looking")

    def __init__(self) -> None:
        self._groups: dict[int, int] = {}
        self._looking: set[int] = set()

    def __contains__(self, thread: int) -> bool:
        return bool(self._looking) and self._group(thread) in self._looking

    def add(self, thread: int) -> None:
        """Take note that ``thread`` looks at files."""
        self._looking.add(self._group(thread))

    def _group(self, thread: int) -> int:
        group = self._groups.get(thread)
        if group is None:
            if len(self._groups) >= _MOST_THREADS:
                self._groups.clear()
                self._looking.clear()
            group = self._groups[thread] = process.thread_group(thread)
        return group
