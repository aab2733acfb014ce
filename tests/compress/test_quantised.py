"""The quantised cache: the codec's keys are what attention reads, also under a compression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from compress import compress
from compress.methods import PyramidDrop
from compress.ops.octopus import Octopus
from compress.quantised import OctopusCache
from tests.tiny import CASES

LLAVA = next(case for case in CASES if case.name == "llava")


def logits(model: Any, given: Any, cache: Any) -> torch.Tensor:
    out = model.generate(
        **given, past_key_values=cache, max_new_tokens=4, do_sample=False,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    return torch.stack(out.logits, 1)


@pytest.mark.parametrize("method", [None, PyramidDrop(layers=(1, 2))])
def test_what_attention_reads_is_what_the_codec_gives(method: Any) -> None:
    """After the prompt, the cache is that of a plain run whose keys and values went through the
    codec once."""
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples()[:1])

    def run(cache: Any) -> Any:
        if method is None:
            return logits(model, given, cache)
        with compress(model, method, 0.5):
            return logits(model, given, cache)

    plain, cache = DynamicCache(config=model.config), OctopusCache(model.config, 4)
    first = run(plain)
    found = run(cache)
    assert torch.equal(found[:, 0], first[:, 0])  # the prompt itself is not rounded
    assert not torch.equal(found[:, 1:], first[:, 1:])
    torch.testing.assert_close(found, first, atol=0.6, rtol=0.2)
    codec = Octopus(4)
    lengths = set()
    for layer, own in zip(plain.layers, cache.layers, strict=True):
        prompt = layer.keys.shape[2] - own.keys.shape[2]
        lengths.add(prompt)
        if layer is plain.layers[0]:  # keys of the first layer do not depend on the cache
            wanted = codec.decode(codec.encode(layer.keys[:, :, :prompt]))
            torch.testing.assert_close(own._dequantize(own._quantized_keys), wanted)
    assert (len(lengths) > 1) == (method is not None)


def test_other_models_are_refused() -> None:
    case = next(case for case in CASES if case.name == "gemma3")
    with pytest.raises(ValueError, match="expected full attention in all"):
        OctopusCache(case.config(4))
