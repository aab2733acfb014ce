"""Calibrations as people write them."""

from __future__ import annotations

import pytest

from compress import Calibration
from compress.parse import parse_calibration


def test_calibrations() -> None:
    assert parse_calibration("own") is None
    assert parse_calibration("none") == Calibration(False, False, False)
    assert parse_calibration("distance+size") == Calibration(True, False, True)
    for wrong in ("", "on", "size+", "size+size", "Size"):
        with pytest.raises(ValueError, match=r"calibrate is .*size, first_layer, distance"):
            parse_calibration(wrong)
