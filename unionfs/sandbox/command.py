"""Becoming the command: the search along PATH as execvp(3) does it, with the shell's two ways to fail told apart."""

from __future__ import annotations

import os

from unionfs import errors
from unionfs.lean import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import NoReturn


class Command(NamedTuple):
    """What is to be run, and how. Paths are those of the root it runs in."""

    arguments: tuple[str, ...]
    environment: dict[str, str]
    directory: str
    directory_required: bool
    """Whether a missing ``directory`` is an error; otherwise "/" takes its place."""


def become(command: Command) -> NoReturn:
    """Replace this process by ``command``.

    Raises errors.CommandNotFound, errors.CommandNotExecutable, or errors.RunError for the directory.
    """
    name = command.arguments[0]
    environment = dict(command.environment, PWD=_change_directory(command))
    denied = None
    for path in _candidates(name, environment.get("PATH", os.defpath)):
        try:
            os.execve(path, command.arguments, environment)
        except PermissionError as error:
            if "/" in name or os.path.exists(path):  # a directory of PATH that is closed to us has no such command
                denied = error
        except OSError as error:
            if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
                raise errors.CommandNotExecutable(command=name, reason=error.strerror) from error
            if os.path.exists(path):
                raise errors.CommandNotExecutable(command=name, reason="its interpreter is missing") from error
    if denied is not None:
        raise errors.CommandNotExecutable(command=name, reason=denied.strerror)
    raise errors.CommandNotFound(command=name)


def _candidates(name: str, search_path: str) -> Iterator[str]:
    if "/" in name:
        yield name
    elif name:
        for directory in search_path.split(":"):
            yield os.path.join(directory or ".", name)


def _change_directory(command: Command) -> str:
    """Change to the command's directory, and return what PWD is to say."""
    try:
        os.chdir(command.directory)
    except OSError as error:
        if command.directory_required:
            reason = f"{command.directory}: {error.strerror}"
            raise errors.RunError(command=command.arguments[0], reason=reason) from error
        os.chdir("/")
        return "/"
    return command.directory
