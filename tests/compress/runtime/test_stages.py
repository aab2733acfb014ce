"""Decoders whose layers differ: where tokens leave, how far a window reaches, what is refused."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText, DynamicCache, MistralConfig

from compress import CompressionError, compress
from compress.methods import DivPrune, Duet, FastV, PyramidDrop, Random
from compress.runtime.cache_state import Span
from compress.runtime.masks import NewTokens, layer_arguments
from compress.runtime.stages import allocate, stage_layers
from tests import reference
from tests.compress.common import CLOSE, NEW, answer
from tests.marks import later
from tests.tiny import CASES, Case
from tests.tiny.base import text
from tests.tiny.llava import Llava
from vlm.families import UnknownFamily, adapter_of

BY_NAME = {case.name: case for case in CASES}
GEMMA, QWEN = BY_NAME["gemma3"], BY_NAME["qwen3_5"]
MIXED = pytest.mark.parametrize("case", [GEMMA, QWEN], ids=lambda case: case.name)
BEFORE = Duet(layers=(), ratios=())


def with_kinds(case: Case, kinds: list[str]) -> Any:
    """A model whose configuration names other kinds of decoder layers."""
    model = case.fresh()
    model.model.language_model.config.layer_types = kinds
    return model


@MIXED
def test_layers_of_full_attention_are_stages(case: Case) -> None:
    adapter = adapter_of(case.model())
    assert stage_layers(adapter, PyramidDrop(), True) == (1, 3)
    assert stage_layers(adapter, FastV(), True) == (2,)  # scored by the layer before
    assert stage_layers(adapter, PyramidDrop(), False) is None
    assert stage_layers(adapter_of(BY_NAME["llava"].model()), FastV(), True) is None


def test_schedules_move_to_the_nearest_stage_and_meet_the_budget() -> None:
    """32 layers, every fourth of full attention, as Qwen3.5 has them."""
    stages = range(3, 32, 4)
    moved = {
        name: allocate(method, (576, 32), 192, stages)
        for name, method in {"fastv": FastV(), "pyramiddrop": PyramidDrop()}.items()
    }
    assert [layer for layer, _ in moved["fastv"].schedule] == [3]
    assert {layer for layer, _ in moved["pyramiddrop"].schedule} <= set(stages)
    assert moved["fastv"].average == pytest.approx(192, abs=1)
    assert moved["pyramiddrop"].average == pytest.approx(192, abs=3)
    assert allocate(FastV(), (576, 32), 1.0, stages).schedule == ()


@pytest.mark.parametrize(
    ("method", "said"),
    [
        (PyramidDrop(layers=(1, 2)), r"decoder layer 2, of kind '\w+'.*among 1, 3"),
        (FastV(layer=1), r"decoder layer 0, of kind '\w+'.*among 2"),
    ],
)
@MIXED
def test_a_layer_without_scores_is_refused(case: Case, method: Any, said: str) -> None:
    with pytest.raises(CompressionError, match=said):
        compress(case.model(), method, budget=9)


def test_a_decoder_without_full_attention_reduces_before_it_only() -> None:
    model = with_kinds(GEMMA, ["sliding_attention"] * 4)
    for method in (PyramidDrop(), Duet()):
        with pytest.raises(CompressionError, match=r"full attention in none.*'divprune'"):
            compress(model, method, budget=9)
    with compress(model, "divprune", budget=9) as c:
        answer(model, GEMMA.inputs(GEMMA.samples()[:1]))
    assert c.report().reduced.layers == (9,) * 4


def test_unknown_kinds_of_layers_are_refused() -> None:
    model = with_kinds(GEMMA, ["full_attention", "indexed_attention"] * 2)
    with pytest.raises(CompressionError, match="'indexed_attention', whose masks are not known"):
        compress(model, "divprune", budget=9)


def test_a_known_model_type_of_another_structure_is_refused() -> None:
    for name, kind in (("paligemma", "llama"), ("cohere2_vision", "llama")):
        model = BY_NAME[name].fresh()
        model.config.text_config.model_type = kind
        with pytest.raises(UnknownFamily, match=f"'{kind}'.* is not known: expected"):
            compress(model, "divprune", budget=9)


def test_videos_that_share_the_placeholder_of_images_are_refused() -> None:
    case = BY_NAME["glm4v"]
    model, given = case.model(), case.inputs(case.samples()[:1])
    video = {
        "pixel_values_videos": given["pixel_values"],
        "video_grid_thw": given["image_grid_thw"],
    }
    with compress(model, "divprune", budget=9):
        for run in (model, model.generate):
            with pytest.raises(CompressionError, match="videos of family 'glm4v' are not reduced"):
                run(**given, **video)


# ------------------------------------------------------------------ windows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_compact_positions_shorten_what_a_window_spans(attention: str) -> None:
    """A window is measured in positions: tokens that are numbered anew lie closer together."""
    model, sample = GEMMA.model(attention), GEMMA.samples()[1]
    with torch.no_grad():
        prefix = reference.reduce_prompt(model, GEMMA, BEFORE, 9, sample)
        near = torch.arange(len(prefix.tokens.h))
        tokens = replace(prefix.tokens, positions=near[:, None], place=near)
        compact = replace(prefix, tokens=tokens, following=len(near), dense=len(near))
        ids, logits = reference.greedy(model, compact, NEW)
        _, dense = reference.greedy(model, prefix, NEW)
    assert not torch.allclose(dense, logits, atol=1e-3)
    with compress(model, BEFORE, budget=9, positions="compact"):
        out = answer(model, GEMMA.inputs([sample]))
    torch.testing.assert_close(torch.cat(out.logits), logits, **CLOSE)
    assert torch.equal(out.sequences[0, -NEW:], ids)


class SlidingMistral(Llava):
    """LLaVA on a Mistral decoder, whose configuration has a window and names no kinds of layers."""

    name = "sliding_mistral"

    def config(self, depth: int) -> Any:
        config = super().config(depth)
        config.text_config = MistralConfig(**text(depth=depth, sliding_window=32))
        return config


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_decoder_of_sliding_layers_alone(attention: str) -> None:
    case = SlidingMistral()
    model = case.model(attention)
    for sample in case.samples():
        with torch.no_grad():
            prefix = reference.reduce_prompt(model, case, BEFORE, 16, sample)
            _, logits = reference.greedy(model, prefix, NEW)
        with compress(model, BEFORE, budget=16):
            out = answer(model, case.inputs([sample]))
        torch.testing.assert_close(torch.cat(out.logits), logits, **CLOSE)
    given = case.inputs(case.samples())
    with torch.no_grad(), compress(model, "divprune", budget=1.0):
        kept = model(**given).logits
    with torch.no_grad():
        assert torch.equal(model(**given).logits, kept)


def test_an_attention_kernel_that_counts_tokens_is_refused_past_the_window() -> None:
    adapter = adapter_of(with_kinds(GEMMA, ["sliding_attention"] * 4))
    adapter.language_model.config._attn_implementation = "flash_attention_2"
    span = Span(0, 20, places=torch.arange(20.0)[None])
    like = torch.zeros(1, 20, 4)
    with pytest.raises(CompressionError, match=r"sees 24 positions of a sequence of 40"):
        layer_arguments(adapter, span, 4, NewTokens(like, None, 40))
    given = layer_arguments(adapter, span, 4, NewTokens(like, None, 20))  # the window holds all
    assert [one["attention_mask"] for one in given] == [None] * 4


def test_a_chunk_is_a_chunk_of_positions() -> None:
    adapter = adapter_of(with_kinds(GEMMA, ["chunked_attention"] * 4))
    adapter.language_model.config.attention_chunk_size = 8
    span = Span(0, 4, places=torch.tensor([[0.0, 7.0, 8.0, 17.0]]))
    given = layer_arguments(adapter, span, 4, NewTokens(torch.zeros(1, 4, 4), None, 18))
    mask = given[0]["attention_mask"]
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


# ------------------------------------------------------------------ states


def test_rows_of_a_later_turn_with_a_state_have_one_length() -> None:
    """The state would decay over the padding between them."""
    model, samples = QWEN.model(), QWEN.samples()[:2]
    with compress(model, Random(), budget=9), torch.no_grad():
        cache = DynamicCache(config=model.config.get_text_config())
        first = QWEN.inputs([QWEN.sample((3, ("image", "a"), 5), seed=n) for n in range(2)])
        model(**first, past_key_values=cache)
        given = QWEN.inputs(samples)
        before = torch.ones_like(first["input_ids"])
        given["attention_mask"] = torch.cat([before, given["attention_mask"]], dim=1)
        assert not bool(given["attention_mask"].all())
        with pytest.raises(CompressionError, match="carry a state"):
            model(**given, past_key_values=cache)


def test_rows_that_are_left_at_two_lengths() -> None:
    """Prompts of one length, images of two sizes: the shorter row is padded where no state is."""
    model = QWEN.model()
    samples = [QWEN.sample((3, ("image", "a"), 5)), QWEN.sample((3, ("image", "b"), 17), seed=1)]
    assert len(samples[0].ids) == len(samples[1].ids)
    with compress(model, DivPrune(), budget=0.5):
        together = torch.stack(answer(model, QWEN.inputs(samples)).logits, 1)
        for row, sample in enumerate(samples):
            alone = torch.cat(answer(model, QWEN.inputs([sample])).logits)
            torch.testing.assert_close(together[row], alone, **CLOSE)


def test_packed_samples_with_a_state_are_refused() -> None:
    model, sample = QWEN.model(), QWEN.samples()[0]
    twice = type(sample)(torch.cat([sample.ids] * 2), sample.shown * 2)
    given: dict[str, Any] = QWEN.inputs([twice])
    del given["attention_mask"]
    given["position_ids"] = torch.arange(len(sample.ids)).repeat(2).expand(4, 1, -1)
    with compress(model, Random(), budget=9), pytest.raises(CompressionError, match="are packed"):
        model(**given, use_cache=False)


def test_tokens_of_a_released_order_stay_in_raster_order() -> None:
    """DUET hands tokens on by rank, which attention does not mind, and a state does."""
    assert not Duet().ordered
    model = QWEN.model()
    with compress(model, "duet", budget=9) as c, torch.no_grad():
        model(**QWEN.inputs(QWEN.samples()[:1]))
    anchors = c.export()[0]["anchor"]
    assert torch.equal(anchors, anchors.sort().values)


# ------------------------------------------------------------------ a user's walk


@pytest.mark.slow
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["qwen3_5", "lfm2_vl"])
def test_a_state_is_not_cropped_unseen(name: str, compressed: bool) -> None:
    """The stock cache refuses, under a compression as without one."""
    case = BY_NAME[name]
    model, given = case.model(), case.inputs(case.samples()[:1])
    with compress(model, BEFORE, budget=9) if compressed else nullcontext():
        cache = answer(model, given).past_key_values
        with pytest.raises(RuntimeError, match="does not track past states"):
            cache.crop(-1)
        if name == "qwen3_5":
            with pytest.raises(ValueError, match="not supported with stateful models"):
                answer(model, given, prompt_lookup_num_tokens=3)


LATER = ("gemma4", "gemma4_small", "lfm2_vl", "llama4", "molmo2", "granite4_vision")
WALKED = [GEMMA, QWEN, *later(*(BY_NAME[name] for name in LATER))]


@pytest.mark.parametrize("case", WALKED, ids=lambda case: case.name)
def test_saved_loaded_compressed_asked_and_trained(case: Case, tmp_path: Any) -> None:
    case.model().save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    given = case.inputs(case.samples()[:2])
    with compress(case.model(), DivPrune(), budget=9):
        wanted = case.model().generate(**given, max_new_tokens=4, do_sample=False)
    c = compress(model, DivPrune(), budget=9)
    assert torch.equal(model.generate(**given, max_new_tokens=4, do_sample=False), wanted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(3):
        loss = model.train()(**given, labels=given["input_ids"]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    c.remove()
    assert losses[2] < losses[1] < losses[0]
