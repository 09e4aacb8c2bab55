"""How a child process tells its caller why it could not go on: one line of plain data through a pipe.

Plain, because the writer may stand where others could write as well: nothing that is read here is ever executed.
"""

from __future__ import annotations

import os

from unionfs import errors

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LIMIT_BYTES = 32768  # less than a pipe holds (pipe(7)), so that writing never waits for a reader


class Pipe:
    """A pipe for reports. The reader asks when the writers have ended, and never waits."""

    __slots__ = ("_reader", "_writer")

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fork(self, body: Callable[[], int]) -> int:
        """Start a child that runs ``body`` and exits with its result or sends what it raises; return its process id."""
        child = os.fork()
        if child:
            return child
        status = 1
        try:
            status = body()
        except Exception as error:  # whatever it is, the caller has to hear of it, and a second caller must not run on
            self._send(error)
        finally:
            os._exit(status)

    def _send(self, error: Exception) -> None:
        line = repr(_flatten(error)).encode()[: _LIMIT_BYTES - 1]
        try:
            os.write(self._writer, line + b"\n")
        except OSError:  # nobody is left to read it
            return

    def receive(self) -> Exception | None:
        """Return the first error that was sent, if any."""
        try:
            text = os.read(self._reader, _LIMIT_BYTES)
        except BlockingIOError:
            return None
        return _restore(text.partition(b"\n")[0].decode()) if text else None

    def stop_sending(self) -> None:
        """Give up the end that is written to, in a process that has no more to say."""
        os.close(self._writer)

    def keeps(self, descriptor: int) -> bool:
        """Tell whether ``descriptor`` is the end that is written to."""
        return descriptor == self._writer

    def close(self) -> None:
        """Close both ends."""
        os.close(self._reader)
        os.close(self._writer)


def _flatten(error: Exception) -> tuple[str, object]:
    if isinstance(error, errors.UnionfsError):
        return type(error).__name__, {key: _plain(value) for key, value in error.values.items()}
    if isinstance(error, OSError) and error.errno is not None:
        path = None if error.filename is None else errors.readable(error.filename)
        return "OSError", (error.errno, error.strerror, path)
    import traceback

    return "", "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _plain(value: object) -> object:
    return value if isinstance(value, int) else errors.readable(value)


def _restore(text: str) -> Exception:
    import ast

    try:
        name, values = ast.literal_eval(text)
    except (ValueError, SyntaxError):  # cut off
        return RuntimeError(text)
    if name == "OSError":
        return OSError(*values)
    kind = getattr(errors, name, None) if name else None
    if isinstance(kind, type) and issubclass(kind, errors.UnionfsError):
        return kind(**values)
    return RuntimeError(values)
