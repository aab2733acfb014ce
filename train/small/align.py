"""Alignment: the projector learns to name what each patch shows, without a language model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.small.features import Features
from vlm.embedded.collage import FIELDS, Pictures, make_scene, patch_labels
from vlm.embedded.small import GRID

SCENES, RATE = 16, 2e-3  # of a step
SHARPNESS = 16.0  # factor of the cosines
BACKGROUND_SHARE = 0.15  # of background patches, drawn for each step


class Words:
    """Input embeddings of the words of `FIELDS`, centred on the mean of the vocabulary."""

    def __init__(self, embeddings: Tensor, tokenizer: Any) -> None:
        table = embeddings.detach().float()
        self.mean = table.mean(0)
        self.fields = [
            F.normalize(
                torch.stack(
                    [table[tokenizer(f" {w}").input_ids].mean(0) - self.mean for w in words]
                ),
                dim=-1,
            )
            for words in FIELDS.values()
        ]
        self.norm = float((table - self.mean).norm(dim=-1).mean())

    def loss(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
        """The loss of (n, D) tokens against (n, fields) labels, and the share right by field."""
        centred = tokens.float() - self.mean
        direction = F.normalize(centred, dim=-1)
        # Half a token's length above that of a word: it says several things at once.
        loss = 0.1 * (centred.norm(dim=-1) / (1.5 * self.norm) - 1).square().mean()
        right = []
        for place, words in enumerate(self.fields):
            logits = SHARPNESS * direction @ words.T
            loss = loss + F.cross_entropy(logits, labels[:, place], ignore_index=-1)
            known = labels[:, place] >= 0
            hits = logits.detach().argmax(-1)[known] == labels[known, place]
            right.append(float(hits.float().mean()))
        return loss, right


def labels_of(pictures: Pictures, split: Any, seeds: Sequence[int]) -> Tensor:
    """(scenes, patches, fields) int64."""
    rows = [patch_labels(make_scene(seed, split, pictures), GRID) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


@torch.no_grad()
def standardise(first: nn.Linear, features: Tensor) -> None:
    """Change a first layer so that it sees its (n, width) features with mean 0 and deviation 1."""
    mean, deviation = features.float().mean(0), features.float().std(0) + 1e-3
    first.weight /= deviation
    first.bias.sub_(first.weight @ mean)


def chosen(wanted: Tensor, rng: np.random.Generator) -> Tensor:
    """Which of (n, fields) labelled patches a step learns from: few are background."""
    shown = wanted[:, 0] != len(FIELDS["shows"]) - 1
    return shown | torch.from_numpy(rng.random(len(wanted)) < BACKGROUND_SHARE)


def align(
    fusion: Any, words: Words, features: Features, pictures: Pictures, steps: int, log: Path
) -> None:
    """Train the projector in place for `steps` steps. `log` gets a line every 50 steps."""
    rng = np.random.default_rng(0)
    count = len(features)
    labels = labels_of(pictures, "train", range(count))
    standardise(fusion.first["dino"], features[list(range(0, count, 40))].flatten(0, 1))
    optimiser = torch.optim.AdamW(fusion.parameters(), RATE, weight_decay=0.01, fused=True)
    began = time.monotonic()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * min((step + 1) / 20, 1 - step / steps)
        index = rng.integers(count, size=SCENES).tolist()
        wanted = labels[index].flatten(0, 1)
        keep = chosen(wanted, rng)
        rows = features[index].flatten(0, 1)[keep]
        with torch.autocast("cpu", torch.bfloat16):
            tokens = fusion("dino", rows[None], (1, len(rows)))[0]
        loss, right = words.loss(tokens, wanted[keep])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 50 == 49:
            line = (
                f"{step + 1} {time.monotonic() - began:.0f}s loss {float(loss.detach()):.3f} right "
            )
            with log.open("a") as file:
                print(line + " ".join(f"{share:.2f}" for share in right), file=file)


@torch.no_grad()
def measure(fusion: Any, words: Words, features: Features, labels: Tensor) -> list[float]:
    """The share of patches named right, by field; background left out of the first."""
    labels = labels.flatten(0, 1)
    shown = labels[:, 0] != len(FIELDS["shows"]) - 1
    rows = features[list(range(len(features)))].flatten(0, 1)[shown]
    tokens = fusion("dino", rows[None], (1, len(rows)))[0]
    return words.loss(tokens, labels[shown])[1]
