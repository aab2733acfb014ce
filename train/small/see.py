"""The encoder's last blocks learn, with the projector, to name what each patch shows.

The frozen encoder tells too little of letters, of small things and of how many there are. The
labels are those of the alignment; no language model runs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from train.small.align import SCENES, Words, chosen, labels_of
from train.small.features import pixels_of, read_blocks
from train.small.masters import Masters
from vlm.embedded.collage import Pictures
from vlm.embedded.small import LAYERS

BLOCKS = "experts.dino.encoder.encoder.layer."
# What the first of the read layers gives stays as it is.
RATES = {f"{BLOCKS}{block}.": 2e-4 for block in range(min(LAYERS), max(LAYERS))} | {"fusion.": 1e-3}
WARM_UP, SAVE_EVERY = 20, 100  # steps


def learn_to_see(
    model: Any, words: Words, pictures: Pictures, first: int, steps: int, folder: Path
) -> Path:
    """Train in place for `steps` in all, those before an interruption included.

    model: bfloat16. first: scenes of the training split are drawn from this number on, each once.
    Returns the file of what was learned, `folder / "encoder.safetensors"`; lines go to
    `folder / "encoder.log"`.
    """
    expert, fusion = model.model.experts["dino"], model.model.fusion
    masters, state, step = Masters(model.model, RATES), folder / "encoder.safetensors", 0
    if state.is_file():
        step = int(masters.load(state)["step"])
    began = time.monotonic()
    with read_blocks(expert, frozen=False):
        while step < steps:
            seeds = range(first + SCENES * step, first + SCENES * (step + 1))
            wanted = labels_of(pictures, "train", seeds).flatten(0, 1)
            keep = chosen(wanted, np.random.default_rng((2, step)))
            features = expert(pixels_of(expert, pictures, "train", seeds), scores=False).features
            rows = features.flatten(0, 1)[keep]
            tokens = fusion("dino", rows[None], (1, len(rows)))[0]
            loss, right = words.loss(tokens, wanted[keep])
            loss.backward()
            masters.step(min((step + 1) / WARM_UP, 1 - step / steps))
            step += 1
            if step % 25 == 0:
                line = f"{step} {time.monotonic() - began:.0f}s loss {float(loss.detach()):.3f} "
                with (folder / "encoder.log").open("a") as file:
                    print(line + " ".join(f"{share:.2f}" for share in right), file=file)
            if step % SAVE_EVERY == 0:
                masters.save(state, {"step": str(step)})
    masters.save(state, {"step": str(step)})
    return state
