"""The cache state, which is kept from one forward to the next."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from compress import compress
from compress.methods import Foveate, Method
from compress.runtime.cache_state import Span
from tests.compress.common import CLOSE, duet
from tests.tiny import CASES

LLAVA = CASES[0]
METHODS: dict[str, Method] = {"merging": duet(layers=(1,), ratios=(0.6,)), "bias": Foveate()}


@pytest.mark.parametrize("name", METHODS)
def test_a_padded_batch_goes_on_after_inference_mode(name: str) -> None:
    """Tensors of an inference mode may not be written to when it is over."""
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples())
    rows, logits = len(given["input_ids"]), []
    for mode in (torch.no_grad, torch.inference_mode):
        with compress(model, METHODS[name], budget=16):
            cache, mask = DynamicCache(), given["attention_mask"]
            with mode():
                model(**given, past_key_values=cache)
            for step in range(4):
                mask = torch.cat([mask, torch.ones(rows, 1, dtype=torch.int64)], dim=1)
                ids = torch.full((rows, 1), 9)
                with mode() if step < 2 else torch.no_grad():
                    out = model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        logits.append(out.logits)
    torch.testing.assert_close(*logits, **CLOSE)


def test_what_is_added_for_a_new_token_follows_padding_and_crops() -> None:
    """Kept from token to token, it is what the bias and the padding make of it anew."""
    span = Span(0, 4, valid=torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]]).bool())
    span.bias = torch.arange(8.0).reshape(2, 4)

    def wanted() -> torch.Tensor:
        bias, valid = span.key_bias(), span.real(2, torch.device("cpu"))
        assert bias is not None
        return bias.masked_fill(~valid, torch.finfo(torch.float32).min)

    assert torch.equal(span.added(torch.float32), wanted())
    for new in (None, torch.tensor([[True], [False]]), None):
        span.extend(1, new)
        assert torch.equal(span.added(torch.float32), wanted())
    span.crop(2)
    assert torch.equal(span.added(torch.float32), wanted())
    assert span.added(torch.bfloat16).dtype == torch.bfloat16
