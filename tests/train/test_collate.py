"""Batches: padding, packing, and a blank image for batches of text."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from tests.tiny import CASES
from tests.tiny.ernie4_5_vl_moe import END, START
from train.collate import Collator, blank_input
from train.encode import IGNORED
from vlm.families import adapter_of


def features(length: int, images: int = 0, first: int = 10) -> dict[str, Any]:
    ids = torch.arange(first, first + length)
    kinds = torch.zeros(length, dtype=torch.int64)
    kinds[1 : 1 + images * 4] = 1
    made = {"input_ids": ids, "labels": ids.clone(), "mm_token_type_ids": kinds, "cut": 0}
    if images:
        made["pixel_values"] = torch.full((images, 3, 2, 2), float(first))
    return made | {"faults": []}


ACCEPTS = frozenset({"input_ids", "labels", "attention_mask", "pixel_values", "position_ids"})


def test_padding_is_on_the_right_and_has_no_labels() -> None:
    batch = Collator(pad=0, accepts=ACCEPTS)(
        [features(6, 1), features(3, 0, 50), features(9, 2, 70)]
    )
    assert batch["input_ids"].shape == (3, 9) and "mm_token_type_ids" not in batch
    assert batch["attention_mask"].sum(1).tolist() == [6, 3, 9]
    assert bool((batch["labels"][batch["attention_mask"] == 0] == IGNORED).all())
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [10, 70, 70]
    assert batch["about"] == {"faults": [], "cut": [], "samples": 3, "text": 6, "visual": 12}


def test_packed_samples_begin_anew_and_keep_their_pictures_in_order() -> None:
    samples = [features(6, 1), features(3, 0, 50), features(9, 2, 70), features(4, 0, 90)]
    batch = Collator(pad=0, accepts=ACCEPTS, packing=True, window=10)(samples)
    assert "attention_mask" not in batch
    rows = batch["input_ids"].tolist()
    assert rows[0] == [*range(10, 16), *range(90, 94)]
    assert rows[1] == [*range(50, 53), *[0] * 7]
    assert rows[2] == [*range(70, 79), 0]
    assert batch["position_ids"][0].tolist() == [*range(6), *range(4)]
    assert batch["position_ids"][1].tolist() == [*range(3), *range(7)]
    assert batch["labels"][0, 6] == IGNORED  # it would be predicted from another sample
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [10, 70, 70]
    one_row = Collator(pad=0, accepts=ACCEPTS, packing=True, one_row=True)(samples)
    assert one_row["input_ids"].shape == (1, 22)


def test_a_batch_of_text_gets_a_blank_picture_after_its_shortest_row() -> None:
    blank = blank_input(features(6, 1, 200))
    assert blank["input_ids"].tolist() == [201, 202, 203, 204]
    collate = Collator(pad=0, blanks={"image": blank}, accepts=ACCEPTS)
    batch = collate([features(8), features(3, 0, 50)])
    assert batch["input_ids"][1].tolist() == [50, 51, 52, 201, 202, 203, 204, 0]
    assert batch["labels"][1].tolist() == [IGNORED, 51, 52, *[IGNORED] * 5]
    assert batch["attention_mask"][1].tolist() == [1] * 7 + [0]
    assert len(batch["pixel_values"]) == 1
    assert batch["about"]["visual"] == 0
    with_picture = collate([features(8, 1), features(3)])
    assert len(with_picture["pixel_values"]) == 1 and with_picture["input_ids"].shape == (2, 8)


def test_token_types_are_those_of_the_family() -> None:
    """Of images (Gemma 3), of what the model is to say (PaliGemma), or of images and the marks
    around them (ERNIE 4.5 VL, whose processor gives some for each sample); none for others."""
    samples = [features(6, images=1), features(4, 0, START - 1)]
    made = {}
    for sample in samples:
        sample["moe_mm_token_type_ids"] = sample["mm_token_type_ids"][None]
    for name in ("gemma3", "paligemma", "llava", "ernie4_5_vl_moe"):
        case = next(case for case in CASES if case.name == name)
        model = case.model()
        accepts = frozenset(inspect.signature(model.forward).parameters) | {"mm_token_type_ids"}
        made[name] = Collator(0, {}, accepts, token_types=adapter_of(model).token_types)(samples)
    batch = made["gemma3"]
    assert torch.equal(batch["token_type_ids"], (batch["mm_token_type_ids"] == 1).long())
    assert batch["token_type_ids"].any()
    batch = made["paligemma"]
    assert torch.equal(batch["token_type_ids"], (batch["labels"] != -100).long())
    assert not {"token_type_ids", "moe_mm_token_type_ids"} & made["llava"].keys()
    batch = made["ernie4_5_vl_moe"]
    marks = torch.isin(batch["input_ids"], torch.tensor([START, END])).long()
    assert marks.sum() == 2
    assert torch.equal(batch["moe_mm_token_type_ids"], batch["mm_token_type_ids"] | marks)
