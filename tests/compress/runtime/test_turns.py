"""After a reduced prompt: second turns, caches of other kinds, assisted decoding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import QuantizedLayer

from compress import CompressionError, compress
from compress.methods import PyramidDrop
from positions import MRoPE
from tests.compress.common import CLOSE, NEW, answer, duet, logits_of
from tests.marks import (
    CANDIDATES_RANK,
    each_case,
    some_continuing_cases,
    some_croppable_cases,
    some_static_cases,
)
from tests.tiny import CASES, FIRST_WORD, IMAGE_TOKEN, WORDS, Case

LLAVA = CASES[0]
PRE_LLM = duet(layers=(), ratios=())
BOTH = duet(layers=(1, 3), ratios=(0.6, 0.3))


def text_of(case: Case, length: int, seed: int) -> torch.Tensor:
    return case.sample([length], seed=seed).ids


def masked(*parts: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([part["attention_mask"] for part in parts], dim=1)


# ------------------------------------------------------------------ a second turn


@some_continuing_cases
def test_a_second_turn_of_text(case: Case) -> None:
    """On the cache of a padded batch: the new ids with the whole mask give what one prompt gives.

    Pre-LLM only: in the LLM, the second turn would rank the tokens of the image.
    """
    model, samples = case.model(), case.samples()
    turns = [text_of(case, 4, seed) for seed in range(10, 10 + len(samples))]
    no_words = [*range(FIRST_WORD), *range(case.first_mark, WORDS)]
    with compress(model, PRE_LLM, budget=case.budget), torch.no_grad():
        first = answer(model, case.inputs(samples), suppress_tokens=no_words)
        said = first.sequences[:, -NEW:]
        for row, (sample, turn) in enumerate(zip(samples, turns, strict=True)):
            whole = torch.cat([sample.ids, said[row], turn])
            wanted = logits_of(model, case.inputs([type(sample)(whole, sample.shown)]))
            if row == 0:
                ids = torch.cat([said[:, -1:], torch.stack(turns)], dim=1)
                mask = torch.ones(len(samples), NEW + 4, dtype=torch.int64)
                mask = torch.cat([case.inputs(samples)["attention_mask"], mask], dim=1)
                second = logits_of(
                    model,
                    {
                        "input_ids": ids,
                        "attention_mask": mask,
                        "past_key_values": first.past_key_values,
                    },
                )
            torch.testing.assert_close(second[row], wanted[0], **CLOSE)


@pytest.mark.parametrize("method", [PRE_LLM, BOTH, PyramidDrop(layers=(1, 2), ratio=0.5)])
def test_new_images_in_a_second_turn(method: Any) -> None:
    """Two turns with an image each. Ranked in the LLM, each image keeps what its own turn
    asks for: the cache of every layer has its own length, and later turns see all of it."""
    model = LLAVA.model()
    one, two = LLAVA.sample((3, ("image", "a"), 5)), LLAVA.sample((4, ("image", "b"), 6), seed=1)
    with compress(model, method, budget=16) as c, torch.no_grad():
        cache = DynamicCache()
        model(**LLAVA.inputs([one]), past_key_values=cache)
        lengths = [layer.keys.shape[2] for layer in cache.layers]
        counts = method.allocate(64, 4, 16).counts
        assert lengths == [8 + count for count in counts]
        given = LLAVA.inputs([two])
        whole = torch.ones(1, len(one.ids) + len(two.ids), dtype=torch.int64)
        second = answer(model, given | {"attention_mask": whole, "past_key_values": cache})
        assert c.report().reduced.layers == counts
        again = [layer.keys.shape[2] for layer in cache.layers]
        assert again == [8 + 10 + 2 * count + NEW - 1 for count in counts]
        if method is PRE_LLM:
            ids = torch.cat([one.ids, two.ids])
            both = LLAVA.inputs([type(one)(ids, one.shown + two.shown)])
            torch.testing.assert_close(
                torch.stack(second.logits, 1), logits_of(model, both), **CLOSE
            )


def test_a_second_turns_image_is_ranked_by_all_that_is_cached() -> None:
    """The same two turns in one forward and in two: the question of the second ranks its image."""
    model = LLAVA.model()
    one, two = LLAVA.sample((3, ("image", "a"), 5)), LLAVA.sample((4, ("image", "b"), 6), seed=1)
    method = PyramidDrop(layers=(2,), ratio=0.5)
    kept = {}
    with compress(model, method, budget=0.75) as c, torch.no_grad():
        cache = DynamicCache()
        model(**LLAVA.inputs([one]), past_key_values=cache)
        whole = torch.ones(1, len(one.ids) + len(two.ids), dtype=torch.int64)
        model(**(LLAVA.inputs([two]) | {"attention_mask": whole}), past_key_values=cache)
        kept["turns"] = c.export()[0]["layers.2.anchor"]
        model(**LLAVA.inputs([two]))
        kept["alone"] = c.export()[0]["layers.2.anchor"]
        ids = torch.cat([one.ids, two.ids])
        model(**LLAVA.inputs([type(one)(ids, one.shown + two.shown)]))
        kept["at once"] = c.export()[1]["layers.2.anchor"]
    assert torch.equal(kept["turns"], kept["at once"])
    assert not torch.equal(kept["alone"], kept["at once"])


def test_a_later_image_under_m_rope_gets_its_grid_from_a_scheme() -> None:
    """The stock model has one axis for the images of later turns; a scheme has three."""
    case = next(case for case in CASES if case.name == "qwen2_5_vl")
    model = case.model()
    one, two = case.sample((3, ("image", "a"), 5)), case.sample((4, ("image", "b"), 6), seed=1)
    ids = torch.cat([one.ids, two.ids])
    both = type(one)(ids, one.shown + two.shown)
    with compress(model, PRE_LLM, budget=case.budget, positions=MRoPE()), torch.no_grad():
        at_once = model(**case.inputs([both])).logits[:, -1]
        cache = DynamicCache()
        model(**case.inputs([one]), past_key_values=cache)
        whole = torch.ones(1, len(ids), dtype=torch.int64)
        turns = model(**(case.inputs([two]) | {"attention_mask": whole}), past_key_values=cache)
        torch.testing.assert_close(turns.logits[:, -1], at_once, **CLOSE)
    with compress(model, PRE_LLM, budget=case.budget), torch.no_grad():
        expected = model(**case.inputs([both])).logits[:, -1]
    torch.testing.assert_close(at_once, expected, **CLOSE)


@pytest.mark.parametrize("padded", [False, True])
def test_full_ids_on_a_reduced_cache_are_refused(padded: bool) -> None:
    """Also where generate drops a mask of ones, and says nothing of the length that it had."""
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples()[:1])
    with compress(model, BOTH, budget=16):
        first = answer(model, given)
        more = torch.cat([first.sequences, torch.tensor([[9, 10, 11]])], dim=1)
        mask = torch.ones_like(more)
        if padded:
            mask[0, 0] = 0
        with pytest.raises(ValueError, match="pass the new ids"):
            model.generate(
                input_ids=more,
                attention_mask=mask,
                past_key_values=first.past_key_values,
                max_new_tokens=2,
            )


def test_full_ids_are_right_where_the_first_layer_is_whole() -> None:
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples()[:1])
    with compress(model, PyramidDrop(layers=(1, 2), ratio=0.5), budget=0.5):
        first = answer(model, given)
        more = torch.cat([first.sequences, torch.tensor([[9, 10, 11]])], dim=1)
        cache = copy.deepcopy(first.past_key_values)
        full = logits_of(model, {"input_ids": more, "past_key_values": first.past_key_values})
        mask = torch.ones_like(more)
        new = {"input_ids": more[:, -4:], "attention_mask": mask, "past_key_values": cache}
        torch.testing.assert_close(full, logits_of(model, new), **CLOSE)


# ------------------------------------------------------------------ caches


def test_a_copied_cache_goes_on_as_the_first() -> None:
    """Prompts are cached once and copied for each question."""
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples()[:1])
    with compress(model, BOTH, budget=16), torch.no_grad():
        cache = DynamicCache()
        model(**given, past_key_values=cache)
        step = {"input_ids": torch.tensor([[9]])}
        a = [model(**step, past_key_values=copy.deepcopy(cache)).logits for _ in range(2)]
        b = model(**step, past_key_values=cache).logits
    assert torch.equal(a[0], b) and torch.equal(a[1], b)


def test_a_cache_with_other_rows_is_refused() -> None:
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples()[:1])
    with compress(model, BOTH, budget=16), torch.no_grad():
        cache = DynamicCache()
        model(**given, past_key_values=cache)
        cache.batch_repeat_interleave(2)
        with pytest.raises(CompressionError, match=r"2 rows.*filled with 1"):
            model(input_ids=torch.tensor([[9], [9]]), past_key_values=cache)


def test_a_cache_that_was_reset_is_new() -> None:
    model, samples = LLAVA.model(), LLAVA.samples()
    text = {"input_ids": text_of(LLAVA, 6, 3)[None]}
    stock = model(**text).logits
    with compress(model, BOTH, budget=16), torch.no_grad():
        cache = DynamicCache()
        model(**LLAVA.inputs(samples[:1]), past_key_values=cache)
        cache.reset()
        assert torch.equal(model(**text, past_key_values=cache).logits, stock)
        more = model(input_ids=torch.tensor([[9]]), past_key_values=cache).logits[:, -1]
    with torch.no_grad():
        ids = torch.cat([text["input_ids"], torch.tensor([[9]])], dim=1)
        torch.testing.assert_close(more, model(input_ids=ids).logits[:, -1], **CLOSE)


@some_static_cases
def test_a_static_cache_equals_a_dynamic_one(case: Case) -> None:
    model, given = case.model(), case.inputs(case.samples())
    for method in (PRE_LLM, BOTH):
        with compress(model, method, budget=case.budget):
            dynamic = logits_of(model, given)
            static = logits_of(model, given, cache_implementation="static", disable_compile=True)
        torch.testing.assert_close(static, dynamic, **CLOSE)


def test_a_second_turn_on_a_static_cache() -> None:
    model, samples = LLAVA.model(), LLAVA.samples()
    with compress(model, BOTH, budget=16), torch.no_grad():
        results = []
        for cache in (DynamicCache(), StaticCache(model.config.text_config, max_cache_len=256)):
            options = {"past_key_values": cache, "disable_compile": True}
            first = answer(model, LLAVA.inputs(samples[:1]), **options)
            ids = torch.cat([first.sequences[:, -1:], torch.tensor([[9, 10]])], dim=1)
            mask = torch.ones(1, len(samples[0].ids) + NEW + 2, dtype=torch.int64)
            given = {"input_ids": ids, "attention_mask": mask}
            results.append(logits_of(model, given, **options))
    torch.testing.assert_close(*results, **CLOSE)


class Rounded(QuantizedLayer):
    """A quantised layer without a library: keys and values in steps of 2^-16."""

    def _quantize(self, tensor: torch.Tensor, axis: int) -> torch.Tensor:
        return (tensor * 2**16).round()

    def _dequantize(self, quantized: torch.Tensor) -> torch.Tensor:
        return quantized / 2**16


def rounded(model: Any) -> DynamicCache:
    cache = DynamicCache(config=model.config.get_text_config())
    for number, layer in enumerate(cache.layers):
        if hasattr(layer, "keys"):  # a state is not quantised
            cache.layers[number] = Rounded(residual_length=4)
    return cache


@each_case
def test_a_quantised_cache(case: Case) -> None:
    """Each layer quantises what it has."""
    model, given = case.model(), case.inputs(case.samples())
    with compress(model, BOTH, budget=case.budget), torch.no_grad():
        plain = logits_of(model, given)
        actual = logits_of(model, given, past_key_values=rounded(model))
    torch.testing.assert_close(actual, plain, rtol=1e-2, atol=1e-2)


def test_visual_inputs_on_a_quantised_cache_are_refused() -> None:
    """Those of a later turn cannot be ranked by keys that it does not show."""
    model, sample = LLAVA.model(), LLAVA.samples()[0]
    with compress(model, BOTH, budget=16), torch.no_grad():
        cache = rounded(model)
        model(**LLAVA.inputs([sample]), past_key_values=cache)
        whole = torch.ones(1, 2 * len(sample.ids), dtype=torch.int64)
        with pytest.raises(ValueError, match="DynamicCache"):
            model(**(LLAVA.inputs([sample]) | {"attention_mask": whole}), past_key_values=cache)


# ------------------------------------------------------------------ ways to generate


@some_croppable_cases
def test_prompt_lookup_equals_greedy(case: Case) -> None:
    """Candidates come with the prompt, and those that fail are cropped off again; they ask
    nothing. (Beam search over several inputs is in the matrix.)"""
    model = case.model()
    for sample in case.samples():
        ids = torch.cat([sample.ids, sample.ids[-1:], torch.tensor([9, 8, 9, 8, 9])])
        given = case.inputs([type(sample)(ids, sample.shown)])
        for method in (PRE_LLM,) if case.name in CANDIDATES_RANK else (PRE_LLM, BOTH):
            with compress(model, method, budget=case.budget):
                greedy = answer(model, given, max_new_tokens=8)
                looked = answer(model, given, max_new_tokens=8, prompt_lookup_num_tokens=3)
            assert torch.equal(greedy.sequences, looked.sequences)
            torch.testing.assert_close(
                torch.stack(looked.logits), torch.stack(greedy.logits), **CLOSE
            )


def test_an_assistant_model_equals_greedy() -> None:
    case = LLAVA
    model, assistant = case.model(), case.fresh(depth=2)
    given = case.inputs(case.samples()[:1])
    with compress(model, BOTH, budget=16):
        greedy = answer(model, given, max_new_tokens=8)
        helped = answer(model, given, max_new_tokens=8, assistant_model=assistant)
    assert torch.equal(greedy.sequences, helped.sequences)


def test_a_crop_into_the_prompt_is_refused() -> None:
    model, sample = LLAVA.model(), LLAVA.samples()[0]
    with compress(model, BOTH, budget=16), torch.no_grad():
        cache = DynamicCache()
        model(**LLAVA.inputs([sample]), past_key_values=cache)
        cache.crop(-9)  # seven words follow the image
        with pytest.raises(ValueError, match="cropped back to the last visual input"):
            model(input_ids=torch.tensor([[9]]), past_key_values=cache)


def test_chunked_prefill_that_splits_an_image_is_refused() -> None:
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples()[:1])
    with compress(model, PRE_LLM, budget=16):
        with pytest.raises(ValueError, match="placeholder"):
            answer(model, given, prefill_chunk_size=16)
        whole = logits_of(model, given)
        late = logits_of(model, given, prefill_chunk_size=70)  # the image is in the first chunk
    torch.testing.assert_close(late, whole, **CLOSE)


def test_a_placeholder_that_the_model_says_is_a_word() -> None:
    """Without visual inputs a placeholder id is an id like any other."""
    model, sample = LLAVA.model(), LLAVA.samples()[0]
    with compress(model, BOTH, budget=16), torch.no_grad():
        cache = DynamicCache()
        model(**LLAVA.inputs([sample]), past_key_values=cache)
        out = model(input_ids=torch.tensor([[IMAGE_TOKEN]]), past_key_values=cache)
    assert out.logits.shape == (1, 1, 64)


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen3_vl"])
def test_a_later_turn_does_not_mind_another_conversation(name: str) -> None:
    """Under M-RoPE the stock model places later turns by the last prompt that it saw."""
    case = next(case for case in CASES if case.name == name)
    model, samples = case.model(), case.samples()
    turn = torch.tensor([[9, 10, 11]])
    with compress(model, PRE_LLM, budget=case.budget):
        results = []
        for others in ([], samples[1:]):
            first = answer(model, case.inputs(samples[:1]))
            if others:
                answer(model, case.inputs(others))
            ids = torch.cat([first.sequences[:, -1:], turn], dim=1)
            mask = torch.ones(1, len(samples[0].ids) + NEW + 3, dtype=torch.int64)
            cache = first.past_key_values
            given = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache}
            results.append(logits_of(model, given))
    assert torch.equal(*results)
