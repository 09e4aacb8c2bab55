"""A process in a new user namespace asks the one that stayed outside to map more ids than its own; newuidmap(1)."""

from __future__ import annotations

import os

from unionfs.sandbox import idmaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from unionfs.sandbox.signals import Mask

_DONE = b"1"


class Mapping:
    """The question and its answer: a pipe each way. Made before the fork; each side then calls its own method, once."""

    __slots__ = ("_answer", "_maps", "_question")

    def __init__(self, maps: idmaps.IdMaps) -> None:
        self._maps = maps
        self._question = os.pipe()
        self._answer = os.pipe()

    def request(self) -> bool:
        """Inside: wait until the maps are written; tell whether they are. A caller that has died writes none."""
        os.close(self._question[0])
        os.close(self._answer[1])
        os.write(self._question[1], _DONE)
        answer = os.read(self._answer[0], 1)
        os.close(self._question[1])
        os.close(self._answer[0])
        return answer == _DONE

    def serve(self, child: int, mask: Mask) -> None:
        """Outside: wait until ``child`` asks, or ends without; write its maps and answer."""
        os.close(self._question[1])
        os.close(self._answer[0])
        if os.read(self._question[0], 1) and idmaps.write_for(child, self._maps, mask):
            os.write(self._answer[1], _DONE)
        os.close(self._question[0])
        os.close(self._answer[1])
