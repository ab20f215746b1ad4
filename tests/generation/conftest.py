"""What every test of generation starts from."""

import pytest

from persyn_hf.generation import preflight


@pytest.fixture(autouse=True)
def _no_endpoint_is_known() -> None:
    """A port comes back within minutes: the next server at an address is not the one that passed."""
    preflight._passed.clear()
