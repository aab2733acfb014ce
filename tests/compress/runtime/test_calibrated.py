"""Terms added to attention logits, with any method and on any attention implementation."""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compress import Calibration, CompressionError, compress
from compress.methods import DivPrune, Foveate, Method, PyramidDrop, ToMe
from compress.runtime.calibrated import distance_terms
from compress.runtime.folded import fold
from tests import reference
from tests.compress.common import CLOSE, NEW, answer, duet, fingerprint, logits_of
from tests.marks import later, over
from tests.tiny import CASES, Case
from vlm.families import adapter_of

BY_NAME = {case.name: case for case in CASES}
LLAVA = BY_NAME["llava"]
NONE = Calibration(size=False, first_layer=False)
BOTH = Calibration(first_layer=True)
ALL = Calibration(first_layer=True, distance=True)
LOCAL = {"sliding_attention", "chunked_attention"}
METHODS: dict[str, Method] = {
    "prune": DivPrune(),
    "merge": ToMe(),
    "in the LLM": PyramidDrop(layers=(1, 2)),
    "both": duet(layers=(1, 3), ratios=(0.6, 0.3)),
}
FLASH = "flash_of_the_tests"


def flash(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any) -> Any:
    """Attention that takes what FlashAttention does: no numbers, padding as (B, keys)."""
    assert mask is None or (mask.ndim == 2 and mask.dtype in (torch.int64, torch.bool))
    assert query.shape[-1] == key.shape[-1] == value.shape[-1]
    assert query.shape[-1] % 8 == 0
    groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
    logits = query @ key.mT * kwargs["scaling"]
    count, held = logits.shape[-2:]
    place = torch.arange(held)
    seen = place <= place[held - count :, None]
    if mask is not None:
        seen = seen & mask.bool()[:, None, None]
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
    return (weights @ value).transpose(1, 2), None


@pytest.fixture
def on_flash(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives a model another attention implementation for the test."""
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, FLASH, flash)
    masks = ALL_MASK_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(masks, FLASH, masks["flash_attention_2"])

    def turn(model: Any) -> Any:
        model = copy.deepcopy(model)
        text = getattr(model.model, "language_model", None) or model.model.text_model
        text.config._attn_implementation = FLASH
        return model

    return turn


def checked(case: Case, method: Method, calibrate: Calibration, positions: str, **how: Any) -> None:
    """Each sample of a batch against the reference."""
    model, samples = case.model(**how), case.samples()
    options = {"calibrate": calibrate, "positions": positions}
    with compress(model, method, case.budget, **options):
        together = answer(model, case.inputs(samples))
    for row, sample in enumerate(samples):
        with torch.no_grad():
            prefix = reference.reduce_prompt(
                model, case, method, case.budget, sample, calibrate, positions == "median"
            )
            ids, logits = reference.greedy(model, prefix, NEW)
        torch.testing.assert_close(torch.stack(together.logits, 1)[row], logits, **CLOSE)
        assert torch.equal(together.sequences[row, -NEW:], ids)


@pytest.mark.parametrize("name", ["both", *later("prune", "merge", "in the LLM")])
@pytest.mark.parametrize("attention", ["sdpa", *later("eager")])
def test_equals_a_full_forward(name: str, attention: str) -> None:
    checked(LLAVA, METHODS[name], ALL, "original", attention=attention)


def test_medians_of_the_members_positions() -> None:
    checked(LLAVA, ToMe(), BOTH, "median")


@over(CASES, ("qwen2_5_vl",))
def test_of_every_family(case: Case) -> None:
    method = duet(layers=(case.stages[0],), ratios=(0.5,))
    local = LOCAL & set(adapter_of(case.model()).layer_kinds)
    checked(case, method, Calibration(distance=not local), "median" if case.quick else "original")


def test_each_term_changes_what_is_said() -> None:
    """Else the comparisons above would not see it."""
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples())
    said = []
    for calibrate in (NONE, Calibration(), BOTH, ALL):
        with compress(model, ToMe(), 16, calibrate=calibrate):
            said.append(logits_of(model, given))
    for a, b in itertools.pairwise(said):
        assert not torch.allclose(a, b, atol=1e-3)


def test_without_terms_the_method_is_as_it_was() -> None:
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples())
    said = []
    for method in (Foveate(proportional_attention=False), Foveate()):
        with compress(model, method, 16, calibrate=None if not said else NONE):
            said.append(logits_of(model, given))
    assert torch.equal(*said)


@pytest.mark.parametrize("calibrate", [NONE, BOTH, ALL])
def test_keep_all_is_the_stock_model(calibrate: Calibration) -> None:
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples())
    stock = logits_of(model, given)
    with compress(model, ToMe(), 1.0, calibrate=calibrate):
        if calibrate.distance:
            assert not torch.allclose(logits_of(model, given), stock, atol=1e-4)
        else:
            assert torch.equal(logits_of(model, given), stock)


def test_merged_equals_are_as_they_were_apart() -> None:
    """k equal keys at one position, merged with log(k), draw the attention that they drew."""
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, 2, 3, 8, generator=draw)
    key, value = torch.randn(2, 1, 2, 4, 8, generator=draw).unbind(0)
    sizes = torch.tensor([[1, 5, 1, 3]])
    apart = [x.repeat_interleave(sizes[0], 2) for x in (key, value)]
    expected = torch.nn.functional.scaled_dot_product_attention(query, *apart)
    folded = fold(query, key, value, sizes.float().log(), 8**-0.5)
    found = torch.nn.functional.scaled_dot_product_attention(*folded, scale=8**-0.5)
    torch.testing.assert_close(found[..., :8], expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_folded_terms_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    """One channel alone would be off by the rounding of log(size)."""
    terms = torch.tensor([[0.0, math.log(3), math.log(250), math.log(7)]])
    zeros = torch.zeros(1, 1, 4, 128, dtype=dtype)
    query, key, value = fold(zeros, zeros, zeros, terms, 128**-0.5)
    logits = query.double() @ key.double().mT * 128**-0.5
    torch.testing.assert_close(logits[0, 0, 0].float(), terms[0], rtol=0, atol=2e-4)
    assert value.shape[-1] == key.shape[-1] == query.shape[-1] == 136


@pytest.mark.parametrize("name", ["merge", *later("prune", "both")])
def test_folded_into_keys_it_is_the_same(name: str, on_flash: Any) -> None:
    """Prefill of a padded batch, decoding, and nothing left behind."""
    given, method = LLAVA.inputs(LLAVA.samples()), METHODS[name]
    model = on_flash(LLAVA.model())
    before, stock = fingerprint(model), ALL_ATTENTION_FUNCTIONS[FLASH]
    with compress(LLAVA.model(), method, 16, calibrate=BOTH):
        expected = logits_of(LLAVA.model(), given)
    other = on_flash(LLAVA.model())
    with compress(model, method, 16, calibrate=BOTH):
        with compress(other, method, 16, calibrate=BOTH):
            pass
        torch.testing.assert_close(logits_of(model, given), expected, **CLOSE)
        logits_of(other, given)  # a model without a compression runs as ever
    assert fingerprint(model) == before
    assert ALL_ATTENTION_FUNCTIONS[FLASH] is stock


def test_a_second_turn_sees_the_terms_of_the_first() -> None:
    """Prefill of two turns gives what one prefill of both texts gives, if all terms are by key."""
    case, model = LLAVA, LLAVA.model()
    sample = case.sample((3, ("image", "a"), 9))
    given = case.inputs([sample])
    first = {"input_ids": given["input_ids"][:, :-4], "pixel_values": given["pixel_values"]}
    with torch.no_grad(), compress(model, ToMe(), 16, calibrate=BOTH):
        whole = model(**given).logits[:, -4:]
        cache = model(**first, use_cache=True).past_key_values
        rest = model(input_ids=given["input_ids"][:, -4:], past_key_values=cache).logits
    torch.testing.assert_close(rest, whole, **CLOSE)


def test_distances_by_the_papers_numbers() -> None:
    """log(2 - mean cos(delta theta)) at base 10,000 and 128 channels."""
    theta = 1e4 ** -(torch.arange(64, dtype=torch.float64) / 64)
    angle = torch.tensor([0, 1, 16, 64, 256, 576, 4096], dtype=torch.float64)[:, None] * theta
    angle = torch.cat([angle, angle], 1)[None]
    scaled = (1.3 * angle.cos(), 1.3 * angle.sin())
    pairs = distance_terms((scaled[0][:, :1], scaled[1][:, :1]), scaled, torch.ones(1, 7).bool())
    expected = torch.tensor([0.0, 0.03, 0.32, 0.42, 0.52, 0.57, 0.72])
    torch.testing.assert_close(pairs[0, 0], expected, rtol=0, atol=0.006)
    none = distance_terms(scaled, scaled, torch.zeros(1, 7).bool())
    assert not none.any()


def test_what_attention_cannot_take_is_refused(on_flash: Any) -> None:
    model = on_flash(LLAVA.model())
    with pytest.raises(CompressionError, match=r"distance.*flash_of_the_tests.*sdpa, eager"):
        compress(model, "divprune", 16, calibrate=ALL)
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(CompressionError, match=r"flex_attention.*log\(size\).*sdpa"):
        compress(model, "divprune", 16, calibrate=BOTH)
    with pytest.raises(TypeError, match="calibrate is 'size'"):
        compress(LLAVA.model(), "divprune", 16, calibrate="size")
    with pytest.raises(TypeError, match="size is 1"):
        Calibration(size=1)
