"""What was learned fits in its size and is laid over the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlm.embedded.small import PartsError, change


def states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    before = {name: torch.randn(64, 48, generator=generator) for name in ("a", "b")}
    before["norm"] = torch.ones(48)
    u, v = torch.randn(64, 3, generator=generator), torch.randn(3, 48, generator=generator)
    after = {"a": before["a"] + u @ v, "b": before["b"] + 0.01, "norm": torch.full((48,), 1.5)}
    return before, after | {"projector": torch.randn(8, 8, generator=generator)}


def test_a_low_rank_change_comes_back(tmp_path: Path) -> None:
    before, after = states()
    change.write(tmp_path / "c.safetensors", before, after, {"split": "val"}, most=30_000)
    laid = {name: tensor.clone() for name, tensor in before.items()}
    laid["projector"] = torch.zeros(8, 8)
    change.apply(tmp_path / "c.safetensors", laid)
    for name, tensor in after.items():
        assert (laid[name] - tensor).abs().max() < 0.02 * tensor.abs().max(), name


def test_size_is_kept_and_large_changes_come_first(tmp_path: Path) -> None:
    before, after = states()
    path = tmp_path / "c.safetensors"
    change.write(path, before, after, {}, most=12_200)
    assert path.stat().st_size <= 12_200
    laid = {name: tensor.clone() for name, tensor in before.items()}
    change.apply(path, laid | {"projector": torch.zeros(8, 8)})
    assert not torch.equal(laid["a"], before["a"]) and torch.equal(laid["b"], before["b"])


def test_other_parts_are_refused(tmp_path: Path) -> None:
    before, after = states()
    change.write(tmp_path / "c.safetensors", before, after, {}, most=30_000)
    with pytest.raises(PartsError, match="prepare the parts of this version"):
        change.apply(tmp_path / "c.safetensors", {"a": torch.zeros(2, 2)})
