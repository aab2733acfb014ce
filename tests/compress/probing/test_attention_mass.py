"""Attention mass, against the model's own attention maps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compress import CompressionError
from compress.methods import PyramidDrop
from compress.probing.attention_mass import PARTS, attention_mass, rollout
from positions.__main__ import main
from tests.tiny import CASES
from vlm.embedded.scenes import draw, make_scene

LLAVA = next(case for case in CASES if case.name == "llava")


def test_dense_it_is_the_model_s_own_attention() -> None:
    model, sample = LLAVA.model("eager"), LLAVA.samples()[2]  # text, image, text, image, text
    inputs = LLAVA.inputs([sample])
    found = attention_mass(model, inputs)
    with torch.no_grad():
        maps = model(**inputs, output_attentions=True).attentions
    maps = [one[0].double().mean(0) for one in maps]
    torch.testing.assert_close(found.layers, torch.stack([one[-1] for one in maps]))
    through = torch.eye(len(sample.ids), dtype=torch.float64)
    for one in maps:
        through = (one @ through + through) / 2
    torch.testing.assert_close(found.rollout, through[-1])
    torch.testing.assert_close(rollout(maps), through[-1])
    image = ~found.place.isnan()
    assert int(image.sum()) == 128
    assert bool((found.place[image].diff() > 0).all())
    parts = found.parts()
    assert list(parts) == list(PARTS)
    torch.testing.assert_close(torch.stack(list(parts.values())).sum(0), torch.ones(5).double())
    torch.testing.assert_close(parts["visual"][:4], found.layers[:, image].sum(1))
    torch.testing.assert_close(found.by_place(8).sum(1), parts["visual"])


def test_tokens_that_left_get_none() -> None:
    model, sample = LLAVA.model("eager"), LLAVA.samples()[0]
    method = PyramidDrop(layers=(1, 2))
    found = attention_mass(model, LLAVA.inputs([sample]), method, 0.5)
    torch.testing.assert_close(found.rows.sum(1), torch.ones(5).double())
    seen = (found.layers > 0).sum(1).tolist()
    assert seen[0] > seen[1] > seen[2] == seen[3]
    assert torch.equal(found.by_place(4) > 0, found.by_place(4) > -1)


def test_other_attention_is_refused() -> None:
    with pytest.raises(CompressionError, match="'sdpa' returns no attention: expected 'eager'"):
        attention_mass(LLAVA.model(), LLAVA.inputs([LLAVA.samples()[0]]))


@pytest.mark.slow
def test_the_command_measures_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw(make_scene(0, "val")).save(tmp_path / "a.png")
    out = tmp_path / "mass.png"
    given = ["--picture", str(tmp_path / "a.png"), "--ask", "How many?", "--out", str(out)]
    assert main(["diagnose", "--model", "mini", *given]) == 0
    told = capsys.readouterr().out
    assert "foveate 1/9" in told
    assert told.count("text after") == 2
    assert out.stat().st_size > 1000
    assert main(["diagnose", "--model", "mini", "--picture", str(tmp_path / "no.png")]) == 1
