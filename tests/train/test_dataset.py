"""The data set: bad samples, held-out samples, estimates of length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train import small
from train.dataset import Samples, Scan, scan, split
from train.encode import Encoder
from train.recipe import Data
from train.records import DataError, read_records

ASK, SAY = {"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Yes"}


def test_bad_samples_are_named_counted_and_limited(tmp_path: Path) -> None:
    path, media = small.write_data(tmp_path, 8)
    records = json.loads(path.read_text())
    records[2]["image"] = "gone.png"
    records[5]["conversations"] = records[5]["conversations"][:1]
    path.write_text(json.dumps(records, indent=1))
    with pytest.raises(DataError, match=r"(?s)2 of 8 samples are bad.*gone.png: no such file"):
        scan([str(path)], str(media), 0.1)
    scanned = scan([str(path)], str(media), 0.3)
    assert len(scanned) == 6 and len(scanned.faults) == 2
    assert (
        "(id 'scene-5')" in scanned.faults[1].where and "the turns are" in scanned.faults[1].reason
    )


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "C:\\x.png", "link.png"])
def test_paths_that_lead_out_of_the_media_folder_are_refused(tmp_path: Path, name: str) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (tmp_path / "secret.png").write_bytes(b"x")
    (media / "link.png").symlink_to(tmp_path / "secret.png")
    path = tmp_path / "data.json"
    path.write_text(json.dumps([{"conversations": [ASK, SAY], "image": name}]))
    with pytest.raises(DataError, match=r"\.\.|absolute|out of"):
        scan([str(path)], str(media), 0.0)


def test_a_damaged_picture_gives_its_place_to_the_next(tmp_path: Path) -> None:
    path, media = small.write_data(tmp_path, 4)
    (media / "1.png").write_bytes(b"no picture")
    scanned = scan([str(path)], str(media), 0.0)
    samples = Samples(scanned, Encoder(small.processor(), media))
    got = samples[1]
    assert torch.equal(got["input_ids"], samples[2]["input_ids"])
    assert [fault.where for fault in got["faults"]] == [scanned.records.where(1)]
    assert "1.png" in got["faults"][0].reason
    assert not samples[2]["faults"]
    with pytest.raises(DataError, match="line"):
        Samples(scanned, Encoder(small.processor(), media), strict=True)[1]


def test_validation_is_held_out_by_the_seed(tmp_path: Path) -> None:
    path, media = small.write_data(tmp_path, 10)
    data = Data(files=(str(path),), media=str(media), validation=0.2)
    training, validation = split(data, 0)
    assert validation is not None and (len(training), len(validation)) == (8, 2)
    ids = [
        scanned.records[n]["id"] for scanned in (training, validation) for n in range(len(scanned))
    ]
    assert len(set(ids)) == 10
    again = split(data, 0)[1]
    assert again is not None and np.array_equal(again.records.places, validation.records.places)
    with pytest.raises(DataError, match="no data"):
        split(Data(), 0)


def test_estimates_count_text_and_media() -> None:
    scanned = Scan(read_records([]), np.array([40, 80]), np.array([[1, 0], [0, 2]]))
    assert scanned.tokens(576, 100).tolist() == [586, 220]
    assert scanned.kinds == {"image", "video"}
