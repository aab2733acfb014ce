"""Stages of training, resuming, and the mean of the weights of a round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from train.mini import stages
from train.mini.data import (
    ASKED,
    UNKNOWN,
    Drawn,
)
from train.mini.stages import STAGES, Trainer
from vlm.embedded import mini
from vlm.embedded.scenes import FIELDS, cell_labels, make_scene


def trainer(folder: Path, data: dict[str, Drawn], axes: mini.Axes = "mrope") -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(folder, data, 0, axes, compiled=False)


def test_a_field_that_is_not_known_is_left_out_of_the_distance(tmp_path: Path) -> None:
    untrained = trainer(tmp_path, {})
    colour, shape = (list(FIELDS).index(field) for field in ASKED)
    labels = torch.from_numpy(cell_labels(make_scene(3)))[None].repeat(2, 1, 1)
    said = untrained.symbols(labels).detach()
    assert untrained._apart(said, labels) == 0
    said[1] += list(untrained.symbols.parameters())[shape][5]
    assert untrained._apart(said, labels) > 0.01
    labels[1, shape] = UNKNOWN
    assert untrained._apart(said, labels) < 1e-6
    said[1] += list(untrained.symbols.parameters())[colour][5]
    assert untrained._apart(said, labels) > 0.01


@pytest.mark.slow
def test_all_stages_and_one_that_was_cut_off(
    tmp_path: Path, data: dict[str, Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, recipe in stages.RECIPE.items():
        small = replace(recipe, steps=25 if name == "vision" else 2, batch=2, clips=1, restarts=1)
        monkeypatch.setitem(stages.RECIPE, name, small)
    monkeypatch.setattr(stages, "SAVE", 10)
    whole = trainer(tmp_path / "whole", data)
    with pytest.raises(FileNotFoundError, match="needs 'vision'"):
        whole.run("joint")
    for stage in STAGES:
        whole.run(stage)
    sibling = trainer(tmp_path / "sibling", data, "1d")
    sibling.begin(tmp_path / "whole" / "joint.safetensors")
    sibling.run("joint")
    assert (tmp_path / "sibling" / "joint.safetensors").is_file()
    with pytest.raises(ValueError, match="is of another model"):
        sibling.begin(tmp_path / "whole" / "vision.safetensors")
    rows = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert rows[0]["stage"] == "vision" and 0 < rows[0]["image loss"] < 40
    with monkeypatch.context() as broken:
        broken.setattr(Trainer, "_log", lambda *_: 1 / 0)  # after step 25, saved at 20
        with pytest.raises(ZeroDivisionError):
            trainer(tmp_path / "cut", data).run("vision")
    assert (tmp_path / "cut" / "vision.partial.pt").is_file()
    trainer(tmp_path / "cut", data).run("vision")
    one, two = ((tmp_path / n / "vision.safetensors").read_bytes() for n in ("whole", "cut"))
    assert one == two


def test_a_round_keeps_the_mean_of_its_ends(
    tmp_path: Path, data: dict[str, Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    class AddOne(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            with torch.no_grad():
                for group in self.param_groups:
                    for weight in group["params"]:
                        weight += 1

    def optimizers(parts: torch.nn.Module, *_: float) -> list[AddOne]:
        return [AddOne([{"params": parts.parameters(), "peak": 1.0}])]

    monkeypatch.setattr(stages, "optimizers", optimizers)
    small = replace(stages.RECIPE["vision"], steps=6, batch=2, clips=1, restarts=2)
    monkeypatch.setitem(stages.RECIPE, "vision", small)
    ours = trainer(tmp_path / "rounds", data)
    before = {name: weight.clone() for name, weight in ours.parts["vision"].named_parameters()}
    ours.run("vision")
    # Two steps a round: 2; the mean of 2 and 4; the mean of 3 and 5.
    for name, weight in ours.parts["vision"].named_parameters():
        torch.testing.assert_close(weight, before[name] + 4)
