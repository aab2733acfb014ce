"""What `Compression.export` gives another engine, and files of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from compress import compress, load_export, picture_hash, save_export
from compress.methods import Duet
from positions import V2PE
from tests.marks import each_case
from tests.tiny import CASES, Case
from vlm.families import adapter_of

CASE = CASES[0]


def _seen(module: Any, name: str, place: int, call: Any) -> Tensor:
    """An argument of a module, of the batch's only row, as `call` hands it over first."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs.get(name, (*args, *[None] * 2)[place])),
        with_kwargs=True,
    )
    call()
    handle.remove()
    return seen[0]


@each_case
def test_another_engine_can_replay_the_prompt(case: Case) -> None:
    """Features are the rows that enter the language model; positions those of the stock model."""
    model, sample = case.model(), case.samples()[2]
    inputs = case.inputs([sample])
    adapter = adapter_of(model)
    with torch.no_grad():
        placed = _seen(adapter.rotary, "position_ids", 1, lambda: model(**inputs)).reshape(
            -1, len(sample.ids)
        )
        if case.experts:  # the model's rotary embedding looks up indices
            placed = case.positions(sample)[0].T
        with compress(model, "divprune", case.budget) as c:
            entered = _seen(adapter.layers[0], "hidden_states", 0, lambda: model(**inputs))[0]
            exported = c.export()
    visual = torch.isin(sample.ids, torch.tensor([adapter.placeholder(k) for k in adapter.kinds]))
    columns = visual.nonzero().flatten().split([len(kept["assign"]) for kept in exported])
    assert any(len(kept["keep_index"]) < len(kept["assign"]) for kept in exported)
    before = 0
    for kept, own in zip(exported, columns, strict=True):
        assert kept["keep_index"].tolist() == sorted(set(kept["anchor"].tolist()))
        assert kept["grid"].prod() == len(own)
        anchor = own[kept["anchor"]]
        rows = (~visual).cumsum(0)[anchor] + torch.arange(len(anchor)) + before
        assert kept["features"].equal(entered[rows])
        before += len(anchor)
        assert kept["positions"][:, 0].equal(placed[:, anchor].T.expand(-1, 3).double())
        assert kept["next_position"] == placed[:, own[-1] + 1].max()


def test_next_positions_of_schemes_and_of_renumbered_tokens() -> None:
    model, sample = CASE.model(), CASE.samples()[0]  # 3 words, 64 tokens, 7 words
    found = {}
    for positions in ("original", "compact", V2PE(1 / 4)):
        with torch.no_grad(), compress(model, "divprune", 16, positions=positions) as c:
            model(**CASE.inputs([sample]))
            found[str(positions)] = float(c.export()[0]["next_position"])
    assert list(found.values()) == [3 + 64, 3 + 16, 2 + 64 / 4 + 1]


@pytest.mark.parametrize(
    "method, dependent",
    [("divprune", False), ("cdpruner", True), ("foveate", True), (Duet(layers=(2,)), False)],
    ids=str,
)
def test_says_whether_the_question_decided(method: Any, dependent: bool) -> None:
    model, sample = CASE.model(), CASE.samples()[0]
    with torch.no_grad(), compress(model, method, 16) as c:
        model(**CASE.inputs([sample]))
        (kept,) = c.export()
    assert kept["question_dependent"] is dependent
    assert kept["method"].lower().startswith(str(method).lower()[:4])


def test_a_file_gives_back_what_was_exported(tmp_path: Path) -> None:
    model, sample = CASE.model(), CASE.samples()[2]
    pictures = [np.full((4, 5, 3), number, np.uint8) for number in range(2)]
    with torch.no_grad(), compress(model, Duet(layers=(2,), ratios=(0.5,)), 16) as c:
        model(**CASE.inputs([sample]))
        exported = c.export(pictures)
        with pytest.raises(ValueError, match="pictures are 1: expected one for each of the 2"):
            c.export(pictures[:1])
    path = tmp_path / "kept.safetensors"
    save_export(path, exported, prompt="a prompt")
    loaded, more = load_export(path)
    assert more == {"prompt": "a prompt"}
    assert len(loaded) == 2
    for one, other in zip(exported, loaded, strict=True):
        assert one.keys() == other.keys() and "layers.2.anchor" in one
        for key, value in one.items():
            same = value.equal(other[key]) if isinstance(value, Tensor) else value == other[key]
            assert same, key
    assert [one["source_hash"] for one in loaded] == [picture_hash(one) for one in pictures]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"0.anchor": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="does not hold an export"):
        load_export(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        load_export(path)


def test_a_picture_has_one_hash_whatever_its_form() -> None:
    values = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    assert picture_hash(picture) == picture_hash(values) == picture_hash(picture.convert("RGBA"))
    assert picture_hash(values) != picture_hash(values.reshape(8, 6, 3))
    with pytest.raises(ValueError, match="float64 and shape \\(6, 8, 3\\)"):
        picture_hash(values / 255)
