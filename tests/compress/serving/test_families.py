"""Where the dense tokens of an image or video stand, from its start; no vLLM is needed for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from compress.serving.vllm.families import ServedLlava, ServedQwen2VL


def _config(**vision: Any) -> Any:
    return SimpleNamespace(vision_config=SimpleNamespace(spatial_merge_size=2, **vision))


def test_tokens_of_one_axis_follow_one_another() -> None:
    is_visual = torch.tensor([0, 1, 1, 0]).bool()  # InternVL: marks before and after
    assert ServedLlava.places(is_visual, {}, None).tolist() == [[0], [1], [2], [3]]


def test_an_image_stands_on_its_grid() -> None:
    data = {"image_grid_thw": torch.tensor([1, 4, 6])}
    places = ServedQwen2VL.places(torch.ones(6).bool(), data, _config())
    assert places.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]


def test_frames_of_qwen2_5_vl_stand_where_their_seconds_are() -> None:
    data = {
        "video_grid_thw": torch.tensor([3, 2, 4]),
        "second_per_grid_ts": torch.tensor(0.75),
    }
    places = ServedQwen2VL.places(torch.ones(6).bool(), data, _config(tokens_per_second=2))
    assert places.tolist() == [[0, 0, 0], [0, 0, 1], [1, 0, 0], [1, 0, 1], [3, 0, 0], [3, 0, 1]]


def test_frames_of_qwen3_vl_stand_between_their_time_stamps() -> None:
    """Two frames of 1 x 2 tokens, each after two words; a word at the end."""
    is_visual = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 0]).bool()
    data = {"video_grid_thw": torch.tensor([2, 2, 4])}
    places = ServedQwen2VL.places(is_visual, data, _config())
    assert places.tolist() == [
        *([0] * 3, [1] * 3),
        *([2, 2, 2], [2, 2, 3]),
        *([4] * 3, [5] * 3),
        *([6, 6, 6], [6, 6, 7]),
        [8] * 3,
    ]
