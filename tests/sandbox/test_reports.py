"""Errors through the pipe between the processes of a run."""

from __future__ import annotations

import os

import pytest

from unionfs import errors
from unionfs.sandbox.reports import Pipe


def through_the_pipe(error: Exception | None, status: int = 0) -> tuple[int, Exception | None]:
    def body() -> int:
        if error is not None:
            raise error
        return status

    pipe = Pipe()
    try:
        _, ended = os.waitpid(pipe.fork(body), 0)
        return os.waitstatus_to_exitcode(ended), pipe.receive()
    finally:
        pipe.close()


def test_a_result_is_an_exit_status() -> None:
    assert through_the_pipe(None, 42) == (42, None)


@pytest.mark.parametrize(
    "error",
    [
        errors.CommandNotFound(command="true"),
        errors.LayerMissing(path=b"/a\xffb\n"),
        errors.Retold(text="as another process told it", status=3),
        errors.UsageError(problem="{braces}"),
    ],
)
def test_our_own_errors_arrive_as_what_they_are(error: errors.UnionfsError) -> None:
    status, received = through_the_pipe(error)
    assert (status, type(received), str(received)) == (1, type(error), str(error))
    assert isinstance(received, errors.UnionfsError)
    assert received.exit_status == error.exit_status


def test_a_system_error_arrives_with_its_number_and_path() -> None:
    _, received = through_the_pipe(PermissionError(13, "Permission denied", b"/x\xff"))
    assert isinstance(received, PermissionError)
    assert (received.errno, received.strerror) == (13, "Permission denied")
    assert str(received.filename).startswith("/x")


def test_anything_else_arrives_with_its_traceback() -> None:
    _, received = through_the_pipe(ValueError("text\nof two lines"))
    assert isinstance(received, RuntimeError)
    assert "ValueError: text\nof two lines" in str(received)
    assert "in body" in str(received)


def test_what_is_too_long_is_cut() -> None:
    _, received = through_the_pipe(ValueError("x" * 100_000))
    assert isinstance(received, RuntimeError)


def test_the_first_of_several_counts() -> None:
    pipe = Pipe()

    def fail(name: str) -> int:
        raise errors.CommandNotFound(command=name)

    for name in ("first", "second"):
        os.waitpid(pipe.fork(lambda name=name: fail(name)), 0)  # type: ignore[misc]
    received = pipe.receive()
    pipe.close()
    assert str(received) == str(errors.CommandNotFound(command="first"))
