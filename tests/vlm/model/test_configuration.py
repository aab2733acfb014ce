"""The report of a configuration, and configurations that are refused."""

from __future__ import annotations

import pytest

from tests.vlm import encoders, models
from vlm.experts import ExpertError, expert_config
from vlm.model import (
    FoveateConfig,
    FoveateForConditionalGeneration,
)


def test_the_report_counts_tokens_and_positions(pair):
    rows = pair[0].config.report()
    assert [(r["expert"], r["tokens"], r["positions"]) for r in rows] == [
        ("clip", 16, 16.0),
        ("sam", 16, 16.0),
    ]


def test_configurations_that_make_no_sense():
    twice = [expert_config("e", "clip", encoders.encoder("clip"))] * 2
    with pytest.raises(ExpertError, match="each name once"):
        FoveateConfig(experts=twice)
    with pytest.raises(ValueError, match="experts is empty"):
        FoveateForConditionalGeneration(FoveateConfig(text_config=models.text_config()))
