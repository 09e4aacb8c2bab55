"""The command line with real mounts: what it refuses and how, and what it must do for those who call it."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.command")
