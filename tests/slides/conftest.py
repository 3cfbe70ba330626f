"""Real slides for tests, where a machine has them."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def real_data() -> Path:
    """Folder of real data."""
    place = os.environ.get("CLIPIT_TEST_DATA")
    if not place:
        pytest.skip("CLIPIT_TEST_DATA is not set: no real slides to test with")
    return Path(place)
