"""`compress()` on a stock LLaVA: the contracts of docs/architecture.md, one test each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from compress import CompressionError, compress
from compress.methods import Duet, Random
from positions import V2PE
from tests import reference, tiny
from vlm.families import UnknownFamily

PROMPTS = [tiny.prompt([3, 7]), tiny.prompt([5, 2], seed=1), tiny.prompt([1, 4, 6], seed=2)]
IMAGES = [1, 1, 2]
NEW = 5
close = {"rtol": 1e-4, "atol": 2e-5}


@pytest.fixture(scope="module")
def model() -> Any:
    built = tiny.llava()
    built(**inputs())  # transformers installs hooks of its own at the first forward
    return built


def inputs(side: str = "left", only: int | None = None) -> dict[str, torch.Tensor]:
    images = tiny.pixels(sum(IMAGES))
    if only is None:
        return tiny.batch(PROMPTS, images, side)
    first = sum(IMAGES[:only])
    return tiny.batch(PROMPTS[only : only + 1], images[first : first + IMAGES[only]], side)


def answer(model: Any, given: dict[str, torch.Tensor], **options: Any) -> Any:
    defaults = {"max_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
    return model.generate(**given, **(defaults | {"output_logits": True} | options))


def fingerprint(model: Any) -> list[Any]:
    """Everything that an attachment could leave behind."""
    hooks = ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks")
    found: list[Any] = [model.config.to_dict(), copy.deepcopy(model.generation_config.to_dict())]
    for name, module in model.named_modules():
        found.append(
            (name, id(module), sorted(vars(module)), [len(vars(module)[h]) for h in hooks])
        )
        found.append(module.forward.__func__ is type(module).forward)
    return found


# ------------------------------------------------------------------ 1 keep-all, 2 no trace


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("method", ["duet", "random", Duet(variant="released")])
def test_keep_all_is_bit_equal(model: Any, method: Any, side: str) -> None:
    given = inputs(side)
    with torch.no_grad():
        stock = model(**given).logits
        with compress(model, method, budget=64):
            assert torch.equal(model(**given).logits, stock)


def test_keep_all_generates_bit_equal(model: Any) -> None:
    stock = answer(model, inputs())
    with compress(model, "duet", budget=1.0):
        kept = answer(model, inputs())
    assert torch.equal(kept.sequences, stock.sequences)
    assert all(torch.equal(a, b) for a, b in zip(kept.logits, stock.logits, strict=True))


def test_leaves_the_model_as_it_was(model: Any) -> None:
    before, stock = fingerprint(model), answer(model, inputs())
    with compress(model, "duet", budget=16):
        answer(model, inputs())
        assert fingerprint(model) != before
    assert fingerprint(model) == before
    with pytest.raises(KeyError), compress(model, "duet", budget=16):
        model(**inputs())
        raise KeyError("the user's own")
    assert fingerprint(model) == before
    again = answer(model, inputs())
    assert all(torch.equal(a, b) for a, b in zip(again.logits, stock.logits, strict=True))


def test_an_error_inside_a_forward_does_not_poison_the_next(model: Any) -> None:
    with compress(model, "duet", budget=16):
        right = answer(model, inputs()).sequences
        broken = inputs() | {"pixel_values": tiny.pixels(3)}
        with pytest.raises(ValueError):
            model.generate(**broken, max_new_tokens=2)
        assert torch.equal(answer(model, inputs()).sequences, right)


def test_attaching_twice_is_refused(model: Any) -> None:
    with compress(model, "duet", budget=16), pytest.raises(CompressionError, match="already"):
        compress(model, "random", budget=8)
    c = compress(model, "random", budget=8)
    c.remove()
    c.remove()


# ------------------------------------------------------------------ 3, 4 the right tokens, cached


@pytest.mark.parametrize(
    "method", [Duet(), Duet(layers=(), ratios=()), Duet(layers=(1, 2, 3), ratios=(0.7, 0.3, 0.1))]
)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("only", [0, 1, 2])
def test_prefill_and_decode_equal_a_full_forward(method: Duet, attention: str, only: int) -> None:
    model, given = tiny.llava(attention), inputs(only=only)
    allocation = method.allocate(64, 4, 16)
    with torch.no_grad():
        prefix = reference.reduce_prompt(
            model, method, allocation.keep, PROMPTS[only], given["pixel_values"]
        )
        stages = dict(allocation.schedule.stages)
        ids, logits = reference.greedy(model, prefix, stages, NEW)
        _, lengths = reference.forward(model, prefix, stages)
    with compress(model, method, budget=16) as c:
        out = answer(model, given)
    assert torch.equal(out.sequences[0, -NEW:], ids)
    assert torch.equal(out.sequences[0, :-NEW], PROMPTS[only])
    torch.testing.assert_close(torch.cat(out.logits), logits, **close)
    cached = [layer.keys.shape[2] for layer in out.past_key_values.layers]
    assert cached == [length + NEW - 1 for length in lengths]
    text = int((PROMPTS[only] != tiny.IMAGE_TOKEN).sum())
    counts = [IMAGES[only] * n for n in allocation.counts]
    assert lengths == [text + count for count in counts]
    assert c.report().reduced.layers == tuple(counts)
    assert c.report().budget == pytest.approx(allocation.average)


def test_the_schedule_is_what_was_planned() -> None:
    allocation = Duet().allocate(64, 4, 16)
    assert allocation.counts == (26, 26, 13, 0)
    assert allocation.average == 16.25


# ------------------------------------------------------------------ 5, 6 batches, backends


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("method", ["duet", "random", Duet(query="all", merge="add")])
def test_a_batch_gives_each_sample_what_it_gets_alone(method: Any, attention: str) -> None:
    model = tiny.llava(attention)
    with compress(model, method, budget=16):
        together = answer(model, inputs())
        for row in range(3):
            alone = answer(model, inputs(only=row))
            assert torch.equal(together.sequences[row, -NEW:], alone.sequences[0, -NEW:])
            for a, b in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(a[row], b[0], **close)


def test_padding_side_changes_nothing(model: Any) -> None:
    with torch.no_grad(), compress(model, "duet", budget=16):
        logits = {side: model(**inputs(side)).logits for side in ("left", "right")}
    for row, ids in enumerate(PROMPTS):
        left, right = logits["left"][row, -len(ids) :], logits["right"][row, : len(ids)]
        torch.testing.assert_close(left, right, **close)


def test_beams_and_samples(model: Any) -> None:
    with compress(model, "duet", budget=16):
        options = {"num_beams": 3, "return_dict_in_generate": False, "output_logits": False}
        together = answer(model, inputs(), **options)
        for row in range(3):
            alone = answer(model, inputs(only=row), **options)
            assert torch.equal(together[row, -NEW:], alone[0, -NEW:])
        drawn = []
        for _ in range(2):
            torch.manual_seed(3)
            drawn.append(answer(model, inputs(), do_sample=True, num_return_sequences=2).sequences)
        assert torch.equal(*drawn) and len(drawn[0]) == 6


def test_text_only_rows_and_batches(model: Any) -> None:
    text = tiny.prompt([9], seed=5)
    mixed = tiny.batch([PROMPTS[0], text], tiny.pixels(1))
    stock = answer(model, tiny.batch([text], None))
    with compress(model, "duet", budget=16):
        alone = answer(model, tiny.batch([text], None))
        both = answer(model, mixed)
    assert all(torch.equal(a, b) for a, b in zip(alone.logits, stock.logits, strict=True))
    for a, b in zip(both.logits, stock.logits, strict=True):
        torch.testing.assert_close(a[1], b[0], **close)


# ------------------------------------------------------------------ 8 positions


def test_text_after_the_image_stands_where_it_stood(model: Any) -> None:
    seen: dict[str, torch.Tensor] = {}
    rotary = model.model.language_model.rotary_emb

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.setdefault("positions", kwargs["position_ids"])

    for positions, expected in (("home", 74.0), ("compact", 36.0)):
        seen.clear()
        with torch.no_grad(), compress(model, "duet", budget=16, positions=positions) as c:
            handle = rotary.register_forward_pre_hook(look, with_kwargs=True)
            model(**inputs(only=0))
            handle.remove()
        got = seen["positions"][0]
        assert got[-1] + 1 == expected and torch.equal(got[:3], torch.arange(3.0))
        if positions == "home":
            first = c.record.stages(0)[0][2].anchor[0]
            assert torch.equal(got[3:29], 3.0 + first) and torch.equal(
                got[29:], torch.arange(67.0, 74.0)
            )
        else:
            assert torch.equal(got, torch.arange(36.0))


def test_a_scheme_in_the_place_of_home(model: Any) -> None:
    with compress(model, "duet", budget=16, positions=V2PE(1 / 16)):
        a = answer(model, inputs())
    with compress(model, "duet", budget=16):
        b = answer(model, inputs())
    assert not torch.allclose(a.logits[0], b.logits[0], atol=1e-3)


# ------------------------------------------------------------------ 10 labels


def test_labels_stay_aligned(model: Any) -> None:
    """Loss on text right after the image, where a wrong length would show."""
    given = inputs("right")
    labels = given["input_ids"].masked_fill(
        (given["attention_mask"] == 0) | (given["input_ids"] == tiny.IMAGE_TOKEN), -100
    )
    method = Duet(layers=(), ratios=())
    with compress(model, method, budget=16):
        out = model(**given, labels=labels)
    assert out.logits.shape[:2] == labels.shape
    total, count = 0.0, 0
    keep = method.allocate(64, 4, 16).keep
    with torch.no_grad():
        for row in range(3):
            one = inputs(only=row)
            prefix = reference.reduce_prompt(model, method, keep, PROMPTS[row], one["pixel_values"])
            logits, _ = reference.forward(model, prefix, {})
            wanted = torch.full((len(logits),), -100)
            text = PROMPTS[row][PROMPTS[row] != tiny.IMAGE_TOKEN]
            wanted[prefix.image < 0] = text
            loss = torch.nn.functional.cross_entropy(logits[:-1], wanted[1:], reduction="sum")
            total, count = total + float(loss), count + int((wanted[1:] != -100).sum())
    assert float(out.loss.detach()) == pytest.approx(total / count, rel=1e-5)


def test_gradients_reach_the_merged_cells(model: Any) -> None:
    given = inputs(only=0)
    image = given["pixel_values"].requires_grad_()
    with compress(model, "duet", budget=16) as c:
        model(**given, labels=given["input_ids"]).loss.backward()
        assign = c.record.stages(0)[0][2].assign[0]
    assert image.grad is not None and bool(image.grad.isfinite().all())
    projector = model.model.multi_modal_projector.linear_1.weight
    assert float(projector.grad.abs().sum()) > 0 and bool((assign < 0).any())
    model.zero_grad()


# ------------------------------------------------------------------ 12, 13 seeds, refusals


def test_same_seed_same_result(model: Any) -> None:
    runs = []
    for seed in (1, 1, 2):
        with compress(model, Random(), budget=9, generator=torch.Generator().manual_seed(seed)):
            runs.append(answer(model, inputs()).logits[0])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("budget", "kind"),
    [(0, ValueError), (-3, ValueError), (65, ValueError), (0.0, ValueError), (1.5, ValueError),
     (float("nan"), ValueError), ("64", TypeError), (True, TypeError), (None, TypeError)],
)  # fmt: skip
def test_bad_budgets(model: Any, budget: Any, kind: type[Exception]) -> None:
    before = fingerprint(model)
    with pytest.raises(kind, match="budget"):
        compress(model, "duet", budget=budget)
    assert fingerprint(model) == before


def test_bad_names(model: Any) -> None:
    with pytest.raises(ValueError, match=r"'duett'.*known methods: .*duet"):
        compress(model, "duett", budget=8)
    with pytest.raises(ValueError, match="positions"):
        compress(model, "duet", budget=8, positions="moved")
    with pytest.raises(UnknownFamily, match=r"Linear.*known.*llava.*add-a-family"):
        compress(torch.nn.Linear(2, 2), "duet", budget=8)


def test_what_is_not_supported_is_refused(model: Any) -> None:
    given = inputs(only=0)
    with compress(model, "duet", budget=16) as c:
        with pytest.raises(RuntimeError, match="nothing to report"):
            c.report()
        embeds = model.get_input_embeddings()(given["input_ids"])
        with pytest.raises(CompressionError, match="input_ids"):
            model.model(
                inputs_embeds=embeds,
                attention_mask=given["attention_mask"],
                pixel_values=given["pixel_values"],
            )
        with pytest.raises(ValueError, match="prompts hold"):
            answer(model, given, prefill_chunk_size=16)


def test_full_ids_on_a_reduced_cache_are_refused(model: Any) -> None:
    given = inputs(only=0)
    with compress(model, "duet", budget=16):
        first = answer(model, given)
        more = torch.cat([first.sequences, torch.tensor([[9, 10, 11]])], dim=1)
        mask = torch.ones_like(more)
        mask[0, 0] = 0
        with pytest.raises(ValueError, match="pass the new ids"):
            model(
                input_ids=more[:, -3:],
                attention_mask=mask[:, :20],
                past_key_values=first.past_key_values,
            )
