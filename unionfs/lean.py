"""Parts of the standard library without what it imports for them: ``unionmount`` has to start fast.

``typing`` loads ``re``, ``functools`` and a dozen others, ``signal`` loads ``enum``, ``collections`` loads five: they
take longer than all modules of this package. What is written in C is at hand without them, under the names that those
modules have it from. A type checker sees the library's own. What is loaded neither to mount a stack nor to run a
process in one imports as it likes.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from _thread import start_new_thread
    from collections import deque
    from json import dumps
    from queue import SimpleQueue
    from threading import local
    from traceback import format_exc
    from typing import NamedTuple
else:
    import _signal as signal
    import sys
    from _collections import _tuplegetter, deque
    from _queue import SimpleQueue
    from _thread import _local as local
    from _thread import start_new_thread

    class _Kind(type):
        """Makes a class of tuples with named items out of the annotations of a class body."""

        def __new__(cls, name, bases, body):
            fields = tuple(body.get("__annotations__", ()))
            defaults = {field: body.pop(field) for field in fields if field in body}
            getters = {field: _tuplegetter(index, None) for index, field in enumerate(fields)}
            own = {"__slots__": (), "__match_args__": fields, "_fields": fields, "_field_defaults": defaults}
            return super().__new__(cls, name, bases, {**body, **getters, **own})

    class NamedTuple(tuple, metaclass=_Kind):
        """:class:`typing.NamedTuple`, as far as it is of use here; a class is made in a fifth of the time."""

        def __new__(cls, *values, **named):
            if named or len(values) != len(cls._fields):
                given = {**cls._field_defaults, **named, **dict(zip(cls._fields, values, strict=False))}
                if len(values) + len(named) > len(cls._fields) or given.keys() != set(cls._fields):
                    raise TypeError(f"{cls.__name__} takes {', '.join(cls._fields)}")
                values = map(given.get, cls._fields)
            return super().__new__(cls, values)

        def __repr__(self):
            return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

        def _asdict(self):
            return dict(zip(self._fields, self, strict=True))

        def _replace(self, **changes):
            return type(self)(**{**self._asdict(), **changes})

    def format_exc():
        """:func:`traceback.format_exc` without the lines of the source."""
        error = sys.exc_info()[1]
        lines, place = [], error.__traceback__
        while place is not None:
            code = place.tb_frame.f_code
            lines.append(f"{code.co_filename}:{place.tb_lineno} in {code.co_name}")
            place = place.tb_next
        return "\n".join([*lines, f"{type(error).__name__}: {error}"])

    def dumps(value):
        """:func:`json.dumps` of plain data."""
        if isinstance(value, dict):
            return "{" + ", ".join(f"{dumps(name)}: {dumps(item)}" for name, item in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(map(dumps, value)) + "]"
        if isinstance(value, str):
            return '"' + "".join(map(_quoted, value)) + '"'
        return "null" if value is None else str(value)

    def _quoted(char):
        escaped = char < " " or char in '"\\' or "\ud800" <= char <= "\udfff"
        return f"\\u{ord(char):04x}" if escaped else char


__all__ = ["NamedTuple", "SimpleQueue", "deque", "dumps", "format_exc", "local", "signal", "start_new_thread"]
