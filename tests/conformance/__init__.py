"""Conformance: one table of cases, run on plain directories and on mounts."""

import pytest

pytest.register_assert_rewrite(f"{__name__}.cases", f"{__name__}.calls")
