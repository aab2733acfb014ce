"""Several positions for a token that was merged before the language model (PPE)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from compress import compress, reduce
from compress.methods import Cascade
from positions import PPE, Image, MRoPE, PositionError, Sequential, Text, plan
from tests.compress.common import CLOSE
from tests.tiny import CASES, Case
from tests.tiny.qwen2_vl import ROPE, Qwen2VL


class Wide(Qwen2VL):
    """Heads of 16 channels: rotary sections of 4, 2 and 2, which two slots divide."""

    def config(self, depth: int) -> Any:
        config = super().config(depth)
        text = config.text_config
        text.num_attention_heads = text.num_key_value_heads = 2
        text.rope_parameters = dict(ROPE) | {"mrope_section": [4, 2, 2]}
        return config


LLAVA, QWEN = CASES[0], Wide()


def logits(case: Case, slots: Any, positions: Any = "original") -> Tensor:
    model = case.model()
    with compress(model, Cascade(), 6, positions=positions, slots=slots), torch.no_grad():
        return model(**case.inputs(case.samples()), use_cache=False).logits


@pytest.mark.parametrize(("case", "scheme"), [(LLAVA, Sequential()), (QWEN, MRoPE())])
@pytest.mark.parametrize("slots", [2, PPE(2, "strided")])
def test_slots_at_original_positions_are_those_of_the_plan(
    case: Case, scheme: Any, slots: Any
) -> None:
    actual = logits(case, slots)
    mask = case.inputs(case.samples())["attention_mask"].bool()
    wanted = logits(case, slots, scheme)
    torch.testing.assert_close(actual[mask], wanted[mask], **CLOSE)
    assert not torch.allclose(actual[mask], logits(case, 1)[mask], **CLOSE)


def test_slots_that_cannot_be() -> None:
    model = LLAVA.model()
    with pytest.raises(ValueError, match="'compact' gives it another"):
        compress(model, "duet", 6, positions="compact", slots=2)
    with pytest.raises(PositionError, match="divisor"):
        compress(model, "duet", 6, slots=3)
    with compress(model, "duet", 6):  # nothing was left behind
        pass


def test_a_plan_takes_what_reduce_returns() -> None:
    """The batch of one as it is; of a larger batch one sample."""
    features = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    dense = plan([Text(3), Image((4, 4)), Text(2)])
    reduction = reduce(features[:1], "divprune", 5, grid=(4, 4))
    made = dense.after({1: reduction}, PPE(2))
    assert torch.equal(made.index_in_segment[made.rows(1)], reduction.anchor[0])
    both = reduce(features, "divprune", 5, grid=(4, 4))
    again = dense.after({1: both.sample(0)}, PPE(2))
    assert torch.equal(again.positions, made.positions)
    with pytest.raises(PositionError, match="a batch of 2"):
        dense.after({1: both})
