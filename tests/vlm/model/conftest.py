"""Models that several tests of this folder read."""

from __future__ import annotations

import pytest

from tests.vlm.models import PAIR, WINDOWS, build


@pytest.fixture(scope="module")
def pair():
    """A model of two experts, CLIP and SAM, and its processor."""
    return build(PAIR, WINDOWS)
