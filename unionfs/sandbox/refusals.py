"""Which system calls the kernel refuses in a user namespace before any file system hears of them, as a filter in BPF.

That is a change of owner to an id which the namespace does not have (EINVAL, chown_common() in fs/open.c), and a device
(EPERM, vfs_mknod() in fs/namei.c). All others pass unseen, at the cost of a few instructions. Pure.
"""

from __future__ import annotations

import stat
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from unionfs.idmap import Range

KEEP = 0xFFFFFFFF
"""What a program gives for "leave it as it is": (uid_t) -1."""

#: Where uid and gid, or mode and device number, stand among the arguments of a call.
OWNERS = {"chown": (1, 2), "lchown": (1, 2), "fchown": (1, 2), "fchownat": (2, 3)}
NODES = {"mknod": (1, 2), "mknodat": (2, 3)}

_INSTRUCTION = Struct("=HBBI")  # struct sock_filter of <linux/filter.h>
_LOAD, _AND, _RETURN = 0x20, 0x54, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_ALU|BPF_AND|BPF_K, BPF_RET|BPF_K
_EQUAL, _AT_LEAST = 0x15, 0x35  # BPF_JMP|BPF_JEQ|BPF_K, BPF_JMP|BPF_JGE|BPF_K
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; the low half of an argument comes first
_TYPE_BITS = 0o170000  # S_IFMT of inode(7)
_X32 = 0x40000000  # __X32_SYSCALL_BIT

_Step = tuple[int, int, str, str]
"""Code, operand, and the labels to go on at if the test is true or false; "" is the next step."""


class Program:
    """A filter under construction: steps and labels, ``assemble`` makes jumps of them."""

    def __init__(self) -> None:
        self._steps: list[_Step] = []
        self._labels: dict[str, int] = {}

    def label(self, name: str) -> None:
        """Call the next step ``name``."""
        self._labels[name] = len(self._steps)

    def step(self, code: int, operand: int, *, true: str = "", false: str = "") -> None:
        """Append a step."""
        self._steps.append((code, operand, true, false))

    def assemble(self) -> bytes:
        """Return the program as an array of struct sock_filter."""
        return b"".join(
            _INSTRUCTION.pack(code, self._distance(at, true), self._distance(at, false), operand)
            for at, (code, operand, true, false) in enumerate(self._steps)
        )

    def _distance(self, at: int, label: str) -> int:
        return self._labels[label] - at - 1 if label else 0


def program(
    architecture: int,
    numbers: Mapping[str, int],
    uids: Sequence[Range],
    gids: Sequence[Range],
    *,
    allow: int,
    ask: int,
) -> bytes:
    """Return the filter for a namespace with these ids: ``ask`` for what the kernel would refuse, else ``allow``."""
    made = Program()
    made.step(_LOAD, _ARCHITECTURE)
    made.step(_EQUAL, architecture, false="allow")
    made.step(_LOAD, _NUMBER)
    made.step(_AT_LEAST, _X32, true="allow")
    for name in numbers:
        made.step(_EQUAL, numbers[name], true=name)
    made.label("allow")
    made.step(_RETURN, allow)
    for name in numbers:
        made.label(name)
        if name in OWNERS:
            _check_owner(made, name, uids, gids)
        else:
            _check_node(made, name)
        made.label(name + " ask")
        made.step(_RETURN, ask)
        made.label(name + " allow")
        made.step(_RETURN, allow)
    return made.assemble()


def _check_owner(made: Program, name: str, uids: Sequence[Range], gids: Sequence[Range]) -> None:
    uid, gid = OWNERS[name]
    _check_id(made, name, uid, uids, name + " group")
    made.label(name + " group")
    _check_id(made, name, gid, gids, name + " allow")


def _check_id(made: Program, name: str, argument: int, ids: Sequence[Range], then: str) -> None:
    """Go on at ``then`` with an id that exists or that says "leave it", else ask."""
    ask = name + " ask"
    made.step(_LOAD, _ARGUMENTS + 8 * argument)
    made.step(_EQUAL, KEEP, true=then)
    for index, range_ in enumerate(ids):
        following = f"{name} {argument} {index}"
        made.step(_AT_LEAST, range_.view, false=following)
        made.step(_AT_LEAST, range_.view + range_.size, true=following, false=then)
        made.label(following)
    made.step(_EQUAL, KEEP, true=ask, false=ask)


def _check_node(made: Program, name: str) -> None:
    """Ask for devices, but for the character device 0:0, which anybody may make: it marks deletions, overlayfs.rst."""
    mode, device = NODES[name]
    made.step(_LOAD, _ARGUMENTS + 8 * mode)
    made.step(_AND, _TYPE_BITS)
    made.step(_EQUAL, stat.S_IFBLK, true=name + " ask")
    made.step(_EQUAL, stat.S_IFCHR, false=name + " allow")
    made.step(_LOAD, _ARGUMENTS + 8 * device)
    made.step(_EQUAL, 0, true=name + " allow")
