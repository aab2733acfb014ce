"""The vision encoder runs once for all configurations, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from eval.answerers import ModelAnswerer, Question
from eval.arms import DENSE, Arm
from eval.vision import SharedVision
from tests.vlm import models
from vlm.embedded.scenes import draw, make_scene
from vlm.families import adapter_of

ARMS = [DENSE, Arm("duet", 48), Arm("random", 16), Arm("duet", 16, "compact")]


@pytest.fixture(scope="module")
def model_and_processor() -> Any:
    return models.stock_llava()


def questions(seed: int) -> list[Question]:
    picture = draw(make_scene(seed, "val"))
    return [Question(text, (picture,), 4) for text in ("What does the sign say?", "How many?")]


def counted(model: Any) -> list[int]:
    calls: list[int] = []
    inner = model.model.vision_tower.embeddings
    inner.forward = _counting(inner.forward, calls)
    return calls


def _counting(forward: Any, calls: list[int]) -> Any:
    def count(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    return count


def test_once_a_batch_and_the_same_answers(model_and_processor: Any) -> None:
    model, processor = model_and_processor
    calls = counted(model)
    try:
        seen = {}
        for share in (True, False):
            calls.clear()
            answerer = ModelAnswerer(model, processor, "mini", share_vision=share)
            for batch in (questions(1), questions(2)):
                for arm in ARMS:
                    seen[share, arm, batch[0].media[0].tobytes()] = [
                        reply.text for reply in answerer.answer(batch, arm, seed=3)
                    ]
            assert len(calls) == (2 if share else 2 * len(ARMS))
        for (share, arm, picture), texts in seen.items():
            assert seen[not share, arm, picture] == texts
    finally:
        del model.model.vision_tower.embeddings.forward
    assert "forward" not in vars(model.model.vision_tower)


def test_other_pictures_run_it_again(model_and_processor: Any) -> None:
    model, _ = model_and_processor
    first, second = torch.randn(2, 1, 3, 96, 96).unbind()
    with SharedVision(adapter_of(model)) as shared, torch.no_grad():
        plain = model.model.get_image_features(second).pooler_output[0]
        shared.next_batch()
        model.model.get_image_features(first)
        shared.restart()
        again = model.model.get_image_features(second).pooler_output[0]
    torch.testing.assert_close(again, plain, rtol=0, atol=0)


def test_a_hook_in_the_encoder_is_not_passed_over(model_and_processor: Any) -> None:
    model, _ = model_and_processor
    pixels = torch.randn(1, 3, 96, 96)
    layer = model.model.vision_tower.encoder.layers[0]
    with SharedVision(adapter_of(model)) as shared, torch.no_grad():
        plain = model.model.get_image_features(pixels).pooler_output[0]
        shared.restart()
        handle = layer.register_forward_hook(lambda module, args, output: output * 2)
        try:
            changed = model.model.get_image_features(pixels).pooler_output[0]
        finally:
            handle.remove()
    assert not torch.equal(plain, changed)
