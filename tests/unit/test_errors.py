"""Messages: one line each, that names the thing and says what to do."""

from __future__ import annotations

import errno
import inspect
import pickle
import string
from pathlib import Path

import pytest

from unionfs import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.UnionfsError)]


def fields(kind: type[errors.UnionfsError]) -> dict[str, object]:
    """Return a value for each field of a message's template."""
    template = kind.__doc__ or ""
    named: dict[str, object] = {name: f"<{name}>" for _, name, _, _ in string.Formatter().parse(template) if name}
    return {**named, "status": 3} if kind is errors.Retold else named


@pytest.mark.parametrize("kind", KINDS)
def test_a_message_is_one_line_with_all_its_values(kind: type[errors.UnionfsError]) -> None:
    """Every class has its own template, and survives being sent to another process."""
    error = kind(**fields(kind))
    assert "\n" not in str(error)
    assert all(f"<{name}>" in str(error) for name in fields(kind) if name != "status")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.exit_status) == (kind, str(error), error.exit_status)


def test_every_reason_says_something_of_its_own() -> None:
    """No subclass inherits the message of another."""
    assert len({kind.__doc__ for kind in KINDS}) == len(KINDS)


def test_exit_statuses_are_those_of_a_shell() -> None:
    """2 for usage, 126 and 127 for commands, 1 for everything else."""
    special = {kind.__name__: kind.exit_status for kind in KINDS if kind.exit_status != 1}
    assert special == {"UsageError": 2, "CommandNotFound": 127, "CommandNotExecutable": 126}


def test_a_value_that_is_missing_is_a_mistake() -> None:
    """A message with a hole in it is never shown."""
    with pytest.raises(KeyError):
        errors.LayerMissing()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"/a/\xff\xc3\xa9", "/a/\\xff\u00e9"),
        (Path("/a\nb"), "/a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        (7, "7"),
    ],
)
def test_a_name_cannot_break_the_line(value: object, text: str) -> None:
    """Line ends, escapes of the terminal and bytes that are no UTF-8 are written so that they can be read."""
    assert errors.readable(value) == text
    assert str(errors.LayerMissing(path=value)).startswith(f"{text}: no such layer")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOENT, "No such file or directory", b"/a\n"), "/a\\n: No such file or directory"),
        (OSError(errno.EXDEV, "Invalid cross-device link", "/a", None, "/b"), "/a -> /b: Invalid cross-device link"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("only words"), "only words"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_an_os_error_is_one_line(error: OSError, text: str) -> None:
    """The paths, if there are any, and the system's own words."""
    assert errors.describe_os_error(error) == text
