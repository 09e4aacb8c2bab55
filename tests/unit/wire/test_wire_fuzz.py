"""Decoding whatever bytes there are: what was encoded comes back, and noise raises `WireError` and nothing else."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from unionfs.fuse.wire import abi
from unionfs.fuse.wire.requests import OPCODES, Decoder, Request, WireError, decode

if TYPE_CHECKING:
    from collections.abc import Callable

decode_ext = Decoder(setxattr_ext=True).decode


def values_of(layout: struct.Struct) -> st.SearchStrategy[tuple[int, ...]]:
    """Any values that fit, as what random bytes unpack to."""
    return st.binary(min_size=layout.size, max_size=layout.size).map(layout.unpack)


names = st.binary(max_size=300).map(lambda name: name.replace(b"\0", b""))


@given(st.data())
def test_what_was_encoded_is_decoded(data: st.DataObject) -> None:
    opcode = data.draw(st.sampled_from(sorted(OPCODES)))
    entry = OPCODES[opcode]
    header = data.draw(values_of(struct.Struct("=QQIII")))
    args = data.draw(values_of(entry.layout)) if entry.layout else ()
    given_names = tuple(data.draw(names) for _ in range(entry.names))
    payload = data.draw(st.binary(max_size=300)) if entry.data else None
    if payload is not None:
        args, payload = announcing(opcode, args, payload)
    body = entry.layout.pack(*args) if entry.layout else b""
    body += b"".join(name + b"\0" for name in given_names) + (payload or b"")
    message = bytearray(abi.IN_HEADER.pack(40 + len(body), opcode, *header, 0) + body)
    assert decode_ext(message, len(message)) == (opcode, *header, args, given_names, payload)


def announcing(opcode: int, args: tuple[int, ...], payload: bytes) -> tuple[tuple[int, ...], bytes]:
    """Return the arguments and the payload changed so that the one counts the other."""
    counts = {"size": 1, "in_size": 1, "count": 16}
    layout = OPCODES[opcode].layout
    assert layout is not None
    index, unit = next((i, counts[field]) for i, field in enumerate(abi.FIELDS[layout]) if field in counts)
    count = len(payload) // unit
    return (*args[:index], count, *args[index + 1 :]), payload[: count * unit]


@given(st.binary(max_size=200))
def test_noise_raises_nothing_but_wire_errors(noise: bytes) -> None:
    message = bytearray(noise)
    try:
        decode(message, len(message))
    except WireError:
        return
    assert struct.unpack_from("=I", message) == (len(message),)


@given(st.integers(0, 60), st.binary(min_size=32, max_size=200), st.sampled_from([decode, decode_ext]))
def test_noise_after_a_good_beginning(opcode: int, noise: bytes, decoder: Callable[[bytearray, int], Request]) -> None:
    message = bytearray(struct.pack("=II", 8 + len(noise), opcode) + noise)
    try:
        request = decoder(message, len(message))
    except WireError:
        return
    assert request.opcode == opcode
    assert sum(map(len, request.names)) + len(request.data or b"") <= len(noise) - 32
