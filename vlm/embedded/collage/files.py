"""Collages as files: conversations in LLaVA's form, and multiple choice in MMBench's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vlm.embedded import mmbench
from vlm.embedded.collage.drawing import draw
from vlm.embedded.collage.forms import answer_of, caption, options
from vlm.embedded.collage.questions import questions
from vlm.embedded.collage.scene import Pictures, Split, make_scene
from vlm.media import png

OPTIONS, CAPTIONS = 1, 2  # numbers of the random streams beside that of the questions


def write_llava(folder: Path, split: Split, scenes: int, pictures: Pictures) -> Iterator[Path]:
    """Write `llava.json` and `images/*.png`; yields each picture's path, and the JSON's last.

    A record is one picture, a caption of it and all questions about it, as one conversation.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    records: list[dict[str, Any]] = []
    for seed in range(scenes):
        scene = make_scene(seed, split, pictures)
        path = folder / "images" / f"{split}-{seed:05d}.png"
        _put(path, png(draw(scene)))
        asked = [caption(scene, np.random.default_rng((seed, 0, CAPTIONS)))]
        asked += questions(scene, np.random.default_rng((seed, 0)))
        turns: list[dict[str, str]] = []
        for question in asked:
            mark = "" if turns else "<image>\n"
            turns.append({"from": "human", "value": mark + question.text})
            turns.append({"from": "gpt", "value": question.answer})
        records.append({"id": path.stem, "image": path.name, "conversations": turns})
        yield path
    _put(folder / "llava.json", json.dumps(records, indent=1).encode())
    yield folder / "llava.json"


def write_mmbench(folder: Path, split: Split, scenes: int, pictures: Pictures) -> Path:
    """Write `mmbench.tsv`: the questions of the benchmark with two to four options each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[list[object]] = []
    for seed in range(scenes):
        scene = make_scene(seed, split, pictures)
        asked = []
        for number, question in enumerate(questions(scene, np.random.default_rng((seed, 0)))):
            text, listed = options(question, scene, np.random.default_rng((seed, number, OPTIONS)))
            asked.append((question.category, text, answer_of(question), listed))
        rows += mmbench.rows_of(len(rows), png(draw(scene)), asked, split)
    mmbench.write_rows(folder / "mmbench.tsv", rows)
    return folder / "mmbench.tsv"


def _put(path: Path, data: bytes) -> None:
    """Write a file; nothing is left of an interrupted call under this name."""
    partial = path.with_name(path.name + ".part")
    partial.write_bytes(data)
    partial.replace(path)
