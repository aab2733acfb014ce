"""Instant cache, fall-back, and what positions do to a question."""

from __future__ import annotations

import math

import pytest
import torch

from compress import StreamError, watch
from compress.stream.asking import entropy
from compress.stream.memories import Recent
from tests.compress.stream.hosts import direct, frames, host

SAID = "What is it?"


@pytest.mark.parametrize("positions", ["eager", "unrotated"])
@pytest.mark.parametrize("name", ["qwen2_vl", pytest.param("mini", marks=pytest.mark.slow)])
def test_recent_and_instant_is_a_prompt_of_the_last_frames(name: str, positions: str) -> None:
    """SimpleStream: a prompt that holds nothing but the last frames."""
    model, processor = host(name)
    step = {"mini": 144, "qwen2_vl": 16}[name]
    shown = frames(9 if name == "mini" else 10, name)
    stream = watch(
        model, processor, "recent", 10 + 2 * step, recent=2, positions=positions, instant=True
    )
    stream.push(shown)
    last = shown[-2:] if name == "mini" else shown[-4:]
    expected = direct(name, last, SAID)
    torch.testing.assert_close(stream.logits(SAID), expected, atol=5e-5, rtol=0)
    seen = watch(model, processor, Recent(), 10 + 2 * step, recent=2, positions=positions)
    seen.push(shown)
    assert (seen.logits(SAID) - expected).abs().max() > 1e-3  # has seen what was before


def test_instant_keeps_the_past_and_the_stream() -> None:
    model, processor = host("qwen3_vl")
    stream = watch(model, processor, "uniform", 4000, recent=2, instant=True)
    plain = watch(model, processor, "uniform", 4000, recent=2)
    for one in (stream, plain):
        one.push(frames(8, "qwen3_vl"))
    instant, usual = stream.logits(SAID), plain.logits(SAID)
    assert (instant - usual).abs().max() > 1e-3
    stream.track.options = plain.track.options
    assert torch.equal(stream.logits(SAID), usual)


def test_falls_back_on_the_memory_where_the_first_token_is_uncertain() -> None:
    model, processor = host("qwen2_vl")

    def stream(fallback: float | None) -> object:
        made = watch(model, processor, "uniform", 4000, recent=2, fallback=fallback)
        made.push(frames(10, "qwen2_vl"))
        return made

    whole, never, always = stream(None), stream(math.inf), stream(0.0)
    never.ask(SAID, 1), always.ask(SAID, 1)
    assert (never.consulted, always.consulted) == (False, True)
    assert torch.equal(always.logits(SAID), whole.logits(SAID))
    recent = never.logits(SAID)
    assert (recent - whole.logits(SAID)).abs().max() > 1e-3
    doubt = entropy(recent)
    for fallback, consulted in ((doubt + 0.01, False), (doubt - 0.01, True)):
        made = stream(fallback)
        made.ask(SAID, 1)
        assert made.consulted is consulted
    assert entropy(torch.zeros(8)) == pytest.approx(math.log(8))


def test_grouped_questions_do_not_move() -> None:
    model, processor = host("mini")
    starts = []
    for count in (2, 4):
        stream = watch(model, processor, "uniform", 4000, positions="grouped")
        stream.push(frames(count))
        asked: list[torch.Tensor] = []
        handle = model.model.language_model.register_forward_pre_hook(
            lambda _, args, kwargs, asked=asked: asked.append(kwargs["position_ids"]),
            with_kwargs=True,
        )
        stream.logits(SAID)
        handle.remove()
        starts.append(asked[-1])
    assert torch.equal(*starts)
    assert float(starts[0].min()) == len(stream.track.before)


def test_increments_slow_time_down() -> None:
    model, processor = host("qwen2_5_vl")
    stream = watch(model, processor, "uniform", 4000, positions="v2pe")
    stream.push(frames(8, "qwen2_5_vl"))
    rows = stream.track.memory.rows[0]
    first = rows.held.now[rows.cell == 0, 0]
    assert first.diff().tolist() == [1.0, 1.0, 1.0]  # a quarter of 2 seconds at 2 a second


def test_switches_that_do_not_fit() -> None:
    model, processor = host("qwen3_5")
    with pytest.raises(StreamError, match=r"instant=True on Qwen3_5.*linear layers"):
        watch(model, processor, instant=True)
    with pytest.raises(StreamError, match="fallback is -1"):
        watch(model, processor, fallback=-1)
