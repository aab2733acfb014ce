"""PixelPrune: its rule against loops, and vision encoders that see some of the patches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compress import CompressionError, Coverage, compress
from compress.methods import PixelPrune
from compress.ops.pixels import residuals
from tests.compress.common import CLOSE, answer, logits_of
from tests.marks import later, over
from tests.tiny import CASES, Case
from vlm.families import adapter_of

NAMES = {
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
    *("glm4v", "glm4v_moe", "glm46v", "glm_ocr"),
}
PACKED = tuple(case for case in CASES if case.name in NAMES)
BY_NAME = {case.name: case for case in CASES}


def by_loops(picture: np.ndarray, threshold: float) -> np.ndarray:
    """(H, W, C) -> residuals, cell after cell; what is dropped is replaced by its prediction."""
    h, w, _ = picture.shape
    known, far = picture.copy(), np.full((h, w), np.inf)

    def alike(a: np.ndarray, b: np.ndarray) -> bool:
        return bool(np.abs(a - b).max() <= threshold)

    for r in range(h):
        for c in range(w):
            if r == c == 0:
                continue
            if r == 0:
                guess = known[r, c - 1]
            elif c == 0:
                guess = known[r - 1, c]
            else:
                left, above, corner = known[r, c - 1], known[r - 1, c], known[r - 1, c - 1]
                guess = above if alike(corner, left) and not alike(corner, above) else left
            far[r, c] = np.abs(picture[r, c] - guess).max()
            if far[r, c] <= threshold:
                known[r, c] = guess
    return far


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.1])
@pytest.mark.parametrize("grid", [(1, 5, 7), (2, 4, 3), (1, 1, 6), (1, 6, 1)])
def test_residuals_are_those_of_the_rule(grid: tuple[int, int, int], threshold: float) -> None:
    t, h, w = grid
    draw = torch.Generator().manual_seed(h)
    picture = torch.randint(0, 3, (t, h, w, 2), generator=draw).double() / 2
    found = residuals(picture.reshape(1, -1, 2), grid, threshold).reshape(t, h, w)
    for frame, far in zip(picture, found, strict=True):
        np.testing.assert_allclose(far.numpy(), by_loops(frame.numpy(), threshold))


def repeating(case: Case, columns: bool) -> tuple[dict[str, Tensor], dict[str, Tensor], list[int]]:
    """A picture of 6 x 4 cells whose rows from the third on repeat the one before, or its columns
    from the second on; what comes before alone; and which cells those are."""
    given = case.inputs([case.sample((3, ("image", "a"), 7))])
    cells = given["pixel_values"].reshape(6, 4, -1).clone()
    index = torch.arange(24).reshape(6, 4)
    if columns:
        cells[:, 2:] = cells[:, 1:2]
        part, first, grid = cells[:, :2], index[:, :2], (1, 12, 4)
    else:
        cells[3:] = cells[2]
        part, first, grid = cells[:3], index[:3], (1, 6, 8)
    width = given["pixel_values"].shape[1]
    cut = {
        "pixel_values": part.reshape(-1, width),
        "image_grid_thw": given["image_grid_thw"].new_tensor([grid]),
    }
    return given | {"pixel_values": cells.reshape(-1, width)}, cut, first.flatten().tolist()


@over(PACKED, ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"))
@pytest.mark.parametrize("columns", [True, *later(False)])
def test_kept_patches_are_encoded_as_if_the_others_were_not_there(
    case: Case, columns: bool
) -> None:
    """Positions that are added depend on the picture's size, so they are made equal here."""
    model = case.fresh()
    with torch.no_grad():
        for name, parameter in model.model.visual.named_parameters():
            if "pos_embed" in name or "position_embedding" in name:
                parameter.copy_(parameter[:1].expand_as(parameter))
    given, top, cells = repeating(case, columns)
    with torch.no_grad():
        wanted = torch.cat(list(model.model.get_image_features(**top).pooler_output))
    with compress(model, PixelPrune(), 1.0) as c:
        answer(model, given)
        record, (kept, *_) = c._last(), [step[2] for step in c.steps(0)]
        assert (
            c.report().budget
            == 12
            == PixelPrune().counts(given["pixel_values"], given["image_grid_thw"], 2)[0]
        )
    assert kept.anchor[0].tolist() == cells
    torch.testing.assert_close(record.features_of(0), wanted, **CLOSE)
    with compress(model, "random", 1.0) as whole:
        answer(model, given)
    dense = whole._last()
    torch.testing.assert_close(record.positions_of(0), dense.positions_of(0)[cells])
    assert record.next_position(0) == dense.next_position(0)


@over(PACKED, ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"))
def test_all_patches_given_one_by_one_are_the_stock_encoder(case: Case) -> None:
    model, given = case.model(), case.inputs(case.samples()[:1])
    call = {name: given[name] for name in ("pixel_values", "image_grid_thw")}
    adapter = adapter_of(model)
    everything = torch.ones(len(adapter.cells(call["pixel_values"])), dtype=torch.bool)
    with torch.no_grad():
        stock = model.model.get_image_features(**call)
        with adapter.some_cells(everything):
            ours = model.model.get_image_features(**call)
    assert all(map(torch.equal, stock.pooler_output, ours.pooler_output))
    deep = [getattr(one, "deepstack_features", None) or [] for one in (stock, ours)]
    assert len(deep[0]) == len(deep[1])
    for layers in zip(*deep, strict=True):
        first, second = (torch.cat(list(one)) if isinstance(one, tuple) else one for one in layers)
        assert torch.equal(first, second)


def test_pictures_without_repetition_are_untouched() -> None:
    case = BY_NAME["qwen2_5_vl"]
    model, given = case.model(), case.inputs(case.samples())
    plain = logits_of(model, given)
    with compress(model, PixelPrune(), 1.0):
        assert torch.equal(logits_of(model, given), plain)
    assert torch.equal(logits_of(model, given), plain)


@over(PACKED, ("qwen3_vl",))
def test_the_budget_is_the_most(case: Case) -> None:
    """Windows and layers of other widths, in a batch as alone; decoding goes on."""
    model, samples = case.model(), case.samples()
    with compress(model, PixelPrune(), 0.5) as c:
        together = logits_of(model, case.inputs(samples))
        assert c.report().budget == pytest.approx(
            0.5 * c.report().dense.layers[0] / c.report().inputs
        )
        alone = torch.cat([logits_of(model, case.inputs([one])) for one in samples])
        torch.testing.assert_close(together, alone, **CLOSE)
        model.generate(**case.inputs(samples[:1]), max_new_tokens=3)


def test_a_tolerance_keeps_fewer() -> None:
    draw = torch.Generator().manual_seed(0)
    cells = torch.zeros(36, 12) + 0.01 * torch.rand(36, 12, generator=draw)
    cells[20] = 1.0
    counts = [int(PixelPrune(t).kept_cells(cells, (1, 6, 6), 36).sum()) for t in (0, 0.02, 2)]
    assert counts[0] == 36 and 2 <= counts[1] <= 4 and counts[2] == 1


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold is -1"):
        PixelPrune(-1)
    with pytest.raises(CompressionError, match="needs a vision encoder of packed patches"):
        compress(BY_NAME["llava"].model(), "pixelprune", 1.0)
    model: Any = BY_NAME["qwen2_vl"].model()
    with pytest.raises(CompressionError, match="does not choose there"):
        compress(model, "pixelprune", Coverage(0.9))
    with pytest.raises(CompressionError, match="keep_phase"):
        compress(model, "pixelprune", 1.0, keep_phase=0.05)
