"""The union engine by itself: no mount and no privilege."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.plain")
