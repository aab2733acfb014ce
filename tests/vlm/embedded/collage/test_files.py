"""Collages as files, read again by the readers of those forms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval.benchmarks import Collage, MMBench
from tests.vlm.embedded.collage.folder import make_folder
from train.samples import parse
from vlm.embedded.collage import Pictures, draw, make_scene
from vlm.embedded.collage.__main__ import main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "pictures")


def command(form: str, folder: Path, output: Path, *more: str) -> int:
    return main([form, "--pictures", str(folder), "--output", str(output), "--scenes", "3", *more])


def test_conversations_of_llava(folder: Path, tmp_path: Path) -> None:
    assert command("llava", folder, tmp_path / "out") == 0
    records = json.loads((tmp_path / "out" / "llava.json").read_text())
    assert [record["id"] for record in records] == [f"train-{seed:05d}" for seed in range(3)]
    for seed, record in enumerate(records):
        sample = parse(record)
        assert sample.media == [("image", f"train-{seed:05d}.png")]
        assert len(sample.messages) > 10
        scene = make_scene(seed, "train", Pictures(folder))
        with Image.open(tmp_path / "out" / "images" / record["image"]) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(draw(scene)))


def test_the_tsv_of_mmbench(folder: Path, tmp_path: Path) -> None:
    assert command("mmbench", folder, tmp_path, "--split", "val") == 0
    loaded = MMBench(tmp_path / "mmbench.tsv", circular=False).load()
    asked = Collage("val", 3, pictures=folder).load().samples
    assert not loaded.problems and len(loaded.samples) == len(asked)
    for sample, question in zip(loaded.samples, asked, strict=True):
        assert sample.groups["category"] == question.groups["category"]
        if sample.groups["category"] != "choice":
            assert sample.options[sample.answer] == question.answer
    assert len({sample.cluster for sample in loaded.samples}) == 3


def test_what_is_wrong_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("llava", tmp_path, tmp_path / "out") == 1
    assert "prepare collage" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["llava", "--scenes", "0", "--output", str(tmp_path)])
    assert not (tmp_path / "out").exists()
