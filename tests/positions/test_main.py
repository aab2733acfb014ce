"""`python -m positions`."""

import pytest
import torch
from transformers import LlamaConfig

from positions import V2PE, Compact, Image, MRoPE, PositionError, Randomised, Sequential
from positions.__main__ import Windows, main, parse_scheme


def test_prints_the_plan(capsys):
    assert main(["--text", "30", "--image", "24x24", "--text", "4", "--scheme", "v2pe:1/16"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[2].split() == ["1", "image", "24x24", "576", "29.0625", "65"]
    assert out[-1] == "610 tokens (610 dense), 1 slots, next token at 70"


def test_draws_checks_and_merges(tmp_path, capsys):
    LlamaConfig(max_position_embeddings=16).save_pretrained(tmp_path)
    picture = tmp_path / "plan.png"
    line = f"--text 3 --image 4x6@compact:row --video 2x4x4 --merge 2x2 --slots 2 --out {picture}"
    assert main([*line.split(), "--config", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "17 tokens (59 dense), 2 slots" in out
    assert "check: positions reach 39" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_errors_are_one_line(capsys):
    assert main(["--image", "4", "--text", "2"]) == 2
    assert capsys.readouterr().err == "error: '4': expected 2 numbers joined by x\n"
    with pytest.raises(SystemExit):
        main([])


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("sequential", Sequential()),
        ("v2pe:1/16", V2PE(1 / 16)),
        ("v2pe:random", V2PE("random")),
        ("v2pe:auto:4096", V2PE("auto", window=4096)),
        ("mrope", MRoPE()),
        ("mrope:2", MRoPE(tokens_per_second=2)),
        ("mrope:x1/8", MRoPE(time_scale=1 / 8)),
        ("compact:all", Compact("all")),
        ("randomised:100", Randomised(100)),
        ("randomised:8x9x9", Randomised((8, 9, 9))),
    ],
)
def test_schemes_by_name(text, scheme):
    assert parse_scheme(text) == scheme


@pytest.mark.parametrize(
    "text", ["v2", "v2pe:x", "v2pe:0", "mrope:0", "mrope:x", "compact:rows", "v2pe:1/0"]
)
def test_unknown_schemes(text):
    with pytest.raises(PositionError):
        parse_scheme(text)


def test_windows_cover_the_grid():
    windows = Windows.of(Image((3, 5)), 2, 2)
    assert torch.equal(windows.assign[windows.anchor], torch.arange(6))
    assert bool((windows.anchor.diff() > 0).all())
    assert windows.assign.bincount().sum() == 15
