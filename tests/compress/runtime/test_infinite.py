"""LM-Infinite in a compressed prompt, against attention that is written from its definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compress import CompressionError, compress
from compress.methods import DivPrune, ToMe
from compress.runtime.context import current_context
from positions import LMInfinite, PositionError
from tests.compress.common import CLOSE, NEW, answer, logits_of
from tests.tiny import CASES

BY_NAME = {case.name: case for case in CASES}
WINDOW, SINKS = 24, 3


def pairs(x: Tensor, at: Tensor, axis: list[int], back: bool = False) -> Tensor:
    """Heads (H, S, d) rotated to positions (S, 3), or back from them."""
    half = x.shape[-1] // 2
    inv_freq = 1e4 ** -(torch.arange(half).double() / half)
    angle = at.double()[:, axis] * inv_freq * (-1 if back else 1)
    turned = torch.complex(x[..., :half].double(), x[..., half:].double())
    turned = turned * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag], -1)


class Spelled:
    """Attention in which each query meets each key at a distance of its own."""

    def __init__(self, at: Tensor, axis: list[int], rule: LMInfinite) -> None:
        self.at, self.axis, self.rule = at, axis, rule

    def __call__(self, module: Any, query: Tensor, key: Tensor, value: Tensor, *args: Any,
                 **kwargs: Any) -> Any:  # fmt: skip
        groups = query.shape[1] // key.shape[1]
        key, value = (x[0].repeat_interleave(groups, 0).double() for x in (key, value))
        raw, there = pairs(query[0], self.at, self.axis, back=True), torch.arange(query.shape[2])
        rows = []
        for i in range(query.shape[2]):
            here, capped = self.at[i : i + 1], self.at[i : i + 1].clamp(max=self.rule.window)
            sink = there < self.rule.sinks
            near, far = (
                (pairs(raw[:, i : i + 1], place, self.axis) * key).sum(2)
                for place in (here, capped)
            )
            sees = (there <= i) & (sink | (here[0, 0] - self.at[:, 0] < self.rule.window))
            logits = torch.where(sink, far, near) * kwargs["scaling"]
            weights = logits.masked_fill(~sees, -torch.inf).softmax(-1)
            rows.append(torch.einsum("hj,hjd->hd", weights, value))
        return torch.stack(rows)[None].to(query.dtype), None


def expected(model: Any, embeds: Tensor, at: Tensor, axis: list[int], rule: LMInfinite) -> Tensor:
    """(W, V): logits of a reduced prompt, of its embeddings (1, W, D) and positions (W, 3)."""
    lm = model.model.language_model
    places = at[:, 0][None] if len(set(axis)) == 1 else at.T[:, None]
    ALL_ATTENTION_FUNCTIONS["spelled"] = Spelled(at, axis, rule)
    stock, lm.config._attn_implementation = lm.config._attn_implementation, "spelled"
    try:
        out = lm(inputs_embeds=embeds, position_ids=places.float(), use_cache=False)
    finally:
        lm.config._attn_implementation = stock
        del ALL_ATTENTION_FUNCTIONS["spelled"]
    logits: Tensor = model.lm_head(out.last_hidden_state)[0]
    return logits


@pytest.mark.parametrize("name, axis", [("llava", [0] * 4), ("qwen2_vl", [0, 0, 1, 2])])
@torch.no_grad()
def test_it_is_attention_at_capped_distances(name: str, axis: list[int]) -> None:
    case, rule, entered = BY_NAME[name], LMInfinite(WINDOW, SINKS), []
    model = case.model()
    given = case.inputs([case.samples()[2]])
    stock = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def note(module: Any, args: Any) -> None:
        entered.append((args[0], current_context().table))  # type: ignore[union-attr]

    with compress(model, DivPrune(), 0.5, positions=rule):
        hook = model.model.language_model.layers[0].register_forward_pre_hook(note)
        found = answer(model, given)
        hook.remove()
    assert ALL_ATTENTION_FUNCTIONS["sdpa"] is stock
    embeds, table = entered[0]
    at, new = table.positions[0, :, 0], found.sequences[0, -NEW:]
    assert float(at[-1, 0]) > WINDOW + SINKS
    more = table.next_position[0] + torch.arange(NEW)
    embeds = torch.cat([embeds, model.get_input_embeddings()(new)[None]], 1)
    at = torch.cat([at, more[:, None].expand(-1, 3)])
    logits = expected(model, embeds, at, axis, rule)[-NEW - 1 : -1]
    torch.testing.assert_close(torch.cat(found.logits), logits, **CLOSE)
    far = expected(model, embeds, at, axis, LMInfinite(10**6, SINKS))[-NEW - 1 : -1]
    assert not torch.allclose(far, logits, atol=1e-2)


def test_within_the_window_nothing_changes() -> None:
    case = BY_NAME["llava"]
    model, given = case.model(), case.inputs(case.samples()[:2])
    with compress(model, ToMe(), 0.5, positions="original"):
        wanted = logits_of(model, given)
    with compress(model, ToMe(), 0.5, positions=LMInfinite()):
        torch.testing.assert_close(logits_of(model, given), wanted, **CLOSE)


def test_each_of_a_batch_gets_what_it_gets_alone() -> None:
    case = BY_NAME["llava"]
    model, rule = case.model(), LMInfinite(WINDOW, SINKS)
    samples = [case.samples()[0], case.samples()[2]]
    with compress(model, ToMe(), 0.5, positions=rule):
        together = logits_of(model, case.inputs(samples))
        for one, sample in zip(together, samples, strict=True):
            torch.testing.assert_close(one, logits_of(model, case.inputs([sample]))[0], **CLOSE)


def test_what_it_refuses() -> None:
    model = BY_NAME["llava"].model()
    with pytest.raises(CompressionError, match="attention that has no cap on distances"):
        compress(model, "fastv", 0.5, positions=LMInfinite())
    with pytest.raises(CompressionError, match="implementation 'eager': expected 'sdpa'"):
        compress(BY_NAME["llava"].model("eager"), "divprune", 0.5, positions=LMInfinite())
    with pytest.raises(PositionError, match="at least one sink and a window of more tokens"):
        LMInfinite(window=4, sinks=4)
