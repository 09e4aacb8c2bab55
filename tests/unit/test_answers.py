"""What happens when an answer is not taken, or an open fails after the file was opened: nobody else may notice."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from unionfs.fuse.device import Server
from unionfs.fuse.dispatch import Dispatcher
from unionfs.fuse.wire import abi
from unionfs.fuse.wire.requests import Request
from unionfs.union.nodes import Node
from unionfs.union.stack import Config, open_stack
from unionfs.union.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from unionfs.union.stack import Stack

LOOKUP_NAME = b"file"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    for name in ("lower", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "upper/file").touch(mode=0o4755)
    (tmp_path / "upper/file").chmod(0o4755)
    paths = [os.fsencode(tmp_path / name) for name in ("lower", "upper", "work")]
    opened = open_stack(Config(paths[:1], paths[1], paths[2]), own_process=False)
    yield opened
    opened.close()


def test_an_answer_that_is_not_taken_is_reported_and_ends_nothing(stack: Stack) -> None:
    told: list[str] = []
    reading, writing = os.pipe()
    try:
        server = Server(reading, Dispatcher(stack), told.append)
        server.send(b"an end to read from takes nothing")
    finally:
        os.close(reading)
        os.close(writing)
    assert server.errors == len(told) == 1
    assert "Bad file descriptor" in told[0]


def test_who_may_read_a_directory_and_not_search_it_sees_its_names(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    dispatcher = Dispatcher(stack)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(View, "lookup", refuse)
    dispatcher.lookers.add(1)
    request = Request(abi.READDIRPLUS, 1, 1, 0, 0, 1, args=(0, 0, 4096, 0, 0, 0), names=(), data=None)
    reply = dispatcher.handle(request)
    assert isinstance(reply, bytes)
    assert abi.OUT_HEADER.unpack_from(reply)[1] == 0
    assert LOOKUP_NAME in reply


def test_an_open_that_fails_late_leaves_nothing_open(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatcher = Dispatcher(stack)
    root, stranger = stack.view.nodes.root, os.geteuid() + 1
    found = stack.view.lookup(root, LOOKUP_NAME)
    assert found is not None
    node = found[0]
    before = os.listdir("/proc/self/fd")

    def refuse(*_: object) -> None:
        raise PermissionError(1, "no")

    monkeypatch.setattr(dispatcher, "_clear_set_ids", refuse)
    flags = os.O_WRONLY | os.O_TRUNC
    request = Request(
        abi.OPEN, 1, node.id, stranger, stranger, 1, args=(flags, abi.OPEN_KILL_SUIDGID), names=(), data=None
    )
    reply = dispatcher.handle(request)
    assert isinstance(reply, bytes)
    assert abi.OUT_HEADER.unpack(reply)[1] == -1
    assert getattr(node, "opened", None) is None
    assert os.listdir("/proc/self/fd") == before


def test_what_is_forgotten_goes_when_nobody_waits(stack: Stack) -> None:
    """To close the last descriptor of an unlinked file frees its data, and the next request may be there already."""
    dispatcher = Dispatcher(stack)
    before = os.listdir("/proc/self/fd")
    reply = dispatcher.handle(Request(abi.LOOKUP, 1, 1, 0, 0, 1, args=(), names=(LOOKUP_NAME,), data=None))
    assert isinstance(reply, bytes)
    node_id = stack.view.nodes.root.children[LOOKUP_NAME].id
    dispatcher.handle(Request(abi.UNLINK, 2, 1, 0, 0, 1, args=(), names=(LOOKUP_NAME,), data=None))
    dispatcher.handle(Request(abi.FORGET, 3, node_id, 0, 0, 0, args=(1,), names=(), data=None))
    assert node_id in stack.view.nodes.by_id
    dispatcher.tidy()
    assert node_id not in stack.view.nodes.by_id
    assert os.listdir("/proc/self/fd") == before


def test_a_file_is_closed_when_nobody_waits_or_before_it_is_asked_for_again(stack: Stack) -> None:
    dispatcher = Dispatcher(stack)
    found = stack.view.lookup(stack.view.nodes.root, LOOKUP_NAME)
    assert found is not None
    node = found[0]
    node.lookups = 1  # the kernel knows it
    assert isinstance(node, Node)

    def ask(opcode: int, unique: int, *args: int) -> object:
        return dispatcher.handle(Request(opcode, unique, node.id, 0, 0, 1, args=args, names=(), data=None))

    ask(abi.OPEN, 1, os.O_RDONLY, 0)
    assert ask(abi.RELEASE, 2, 0, os.O_RDONLY, 0, 0) is None
    assert dispatcher.files.handles(node) == 1
    ask(abi.OPEN, 3, os.O_RDONLY, 0)
    assert dispatcher.files.handles(node) == 1
    ask(abi.RELEASE, 4, 0, os.O_RDONLY, 0, 0)
    replies = [abi.OUT_HEADER.unpack(reply) for reply in dispatcher.tidy()]
    assert replies == [(abi.OUT_HEADER.size, 0, 2), (abi.OUT_HEADER.size, 0, 4)]
    assert dispatcher.files.handles(node) == 0
