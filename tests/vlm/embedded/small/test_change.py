"""What was learned fits in its size and is laid over the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.vlm.embedded.small.files import even
from vlm.embedded.small import PartsError, change


def states() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    before = {name: torch.randn(64, 48, generator=generator) for name in ("a", "b")}
    before["norm"] = torch.ones(48)
    u, v = torch.randn(64, 3, generator=generator), torch.randn(3, 48, generator=generator)
    after = {"a": before["a"] + u @ v, "b": before["b"] + 0.01, "norm": torch.full((48,), 1.5)}
    return before, after | {"projector": torch.randn(8, 8, generator=generator)}


@pytest.mark.parametrize("columns", [48, 47])
def test_a_low_rank_change_comes_back(tmp_path: Path, columns: int) -> None:
    before, after = states()
    for state in (before, after):
        state["a"] = state["a"][:, :columns]
    path = tmp_path / "c.safetensors"
    change.write(path, before, after, even(before), {"split": "val"}, most=60_000)
    laid = {name: tensor.clone() for name, tensor in before.items()}
    laid["projector"] = torch.zeros(8, 8)
    change.apply(path, laid)
    for name, tensor in after.items():
        moved = tensor - before.get(name, 0)
        assert (laid[name] - tensor).norm() < 0.2 * moved.norm(), name  # 4 bits a number


def test_what_matters_to_the_loss_is_kept(tmp_path: Path) -> None:
    """A column that is never fed and a row whose gradient is nothing may be wrong."""
    generator = torch.Generator().manual_seed(0)
    before = {"a": torch.zeros(64, 48)}
    after = {"a": torch.randn(64, 48, generator=generator)}
    inputs, gradients = torch.full((48,), 1e-3), torch.full((64,), 1e-3)
    inputs[:6] = gradients[:8] = 1.0
    errors = []
    for matters in (even(before), {"a": (inputs, gradients)}):
        path, laid = tmp_path / "c.safetensors", {"a": torch.zeros(64, 48)}
        change.write(path, before, after, matters, {}, most=2_400)
        change.apply(path, laid)
        errors.append((laid["a"] - after["a"])[:8, :6].norm())
    assert errors[1] < 0.3 * errors[0]


def test_size_is_kept_and_large_changes_come_first(tmp_path: Path) -> None:
    before, after = states()
    path = tmp_path / "c.safetensors"
    change.write(path, before, after, even(before), {}, most=4_780)
    assert path.stat().st_size <= 4_780
    laid = {name: tensor.clone() for name, tensor in before.items()}
    change.apply(path, laid | {"projector": torch.zeros(8, 8)})
    assert not torch.equal(laid["a"], before["a"]) and torch.equal(laid["b"], before["b"])


def test_other_parts_are_refused(tmp_path: Path) -> None:
    before, after = states()
    change.write(tmp_path / "c.safetensors", before, after, even(before), {}, most=30_000)
    with pytest.raises(PartsError, match="prepare the parts of this version"):
        change.apply(tmp_path / "c.safetensors", {"a": torch.zeros(2, 2)})
