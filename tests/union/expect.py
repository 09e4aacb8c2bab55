"""What a test expects of a call that fails."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def fails(number: int) -> Iterator[pytest.ExceptionInfo[OSError]]:
    """Expect an OSError with this errno."""
    with pytest.raises(OSError) as caught:  # noqa: PT011 - the number tells more than the text
        yield caught
    assert caught.value.errno == number
