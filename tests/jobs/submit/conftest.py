"""What tests of `shoal submit` and `shoal jobs` share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from dashboard import Dashboard, answering


@pytest.fixture
def dashboard() -> Iterator[Dashboard]:
    with answering() as found:
        yield found
