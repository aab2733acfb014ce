"""Learning of the questions: language model and projector together, on rows of `rows`."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.small.features import Features
from train.small.masters import Masters
from train.small.rows import Batch, collate
from vlm.embedded.collage import Pictures, Question, Split, make_scene, questions
from vlm.embedded.small import GRID

SCENES, WARM_UP = 4, 15
RATES = {"language_model": 2e-4, "fusion": 3e-4}
CONSTANT, LAST = 0.7, 0.05  # share of the steps before the rate falls; share of it that stays
COARSE = 0.8  # share of the steps with averaged tokens; then every token is seen


def answers(model: Any, features: Tensor, batch: Batch) -> Tensor:
    """Logits (K, vocabulary) float32 where answers are predicted.

    features: (R, 256, width) of the frozen encoder.
    """
    pool = int((GRID * GRID / batch.visual[0].sum()) ** 0.5)
    core = model.model
    tokens = core.fusion("dino", features, (GRID, GRID))
    side = GRID // pool
    tokens = tokens.unflatten(1, (side, pool, side, pool)).mean((2, 4)).flatten(1, 2)
    embeds = core.get_input_embeddings()(batch.ids)
    embeds = embeds.masked_scatter(batch.visual[..., None], tokens.to(embeds.dtype))
    minimum = torch.finfo(embeds.dtype).min
    mask = torch.zeros(batch.mask.shape, dtype=embeds.dtype).masked_fill(~batch.mask, minimum)
    hidden = core.language_model(
        inputs_embeds=embeds,
        attention_mask=mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state
    logits: Tensor = model.lm_head(hidden[batch.at[:, 0], batch.at[:, 1]])
    return logits.float()


def ask(pictures: Pictures, split: Split, seed: int, turn: int) -> list[Question]:
    """The questions about a scene, others in each turn."""
    return questions(make_scene(seed, split, pictures), np.random.default_rng((seed, turn)))


def compile_layers(model: Any) -> None:
    """Compile the decoder layers, with attention as plain matrix products: twice as fast on CPU."""
    decoder = model.model.language_model
    decoder.set_attn_implementation("eager")
    for layer in decoder.layers:
        layer.compile(dynamic=True)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")
def measure(
    model: Any,
    tokenizer: Any,
    features: Features,
    pictures: Pictures,
    split: Split,
    scenes: Sequence[int],
    pool: int = 2,
) -> dict[str, tuple[int, int]]:
    """(right, asked) by category, and "all": answers whose every token is the most likely one."""
    right: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    model.eval()
    for start in range(0, len(scenes), SCENES):
        seeds = list(scenes[start : start + SCENES])
        asked = [ask(pictures, split, seed, 0) for seed in seeds]
        batch = collate(tokenizer, asked, pool, torch.Generator().manual_seed(0))
        hits = answers(model, features[seeds], batch).argmax(-1) == batch.wanted
        flat = [question for row in asked for question in row]
        wrong = set(batch.question[~hits].tolist())
        for place, question in enumerate(flat):
            for name in ("all", question.category):
                right[name][0] += place not in wrong
                right[name][1] += 1
    return {name: (a, b) for name, (a, b) in sorted(right.items())}


def factor_of(step: int, steps: int) -> float:
    """The factor of the learning rate at a step of `steps`."""
    fall = min(1.0, (1 - step / steps) / (1 - CONSTANT))
    return min((step + 1) / WARM_UP, LAST + (1 - LAST) * fall)


def learn(
    model: Any,
    tokenizer: Any,
    features: dict[Split, Features],
    pictures: Pictures,
    folder: Path,
    steps: int,
    pool: int = 2,
    save_every: float = 600.0,
    judged: int = 30,
) -> None:
    """Train in place for `steps` in all, those before an interruption included.

    pool: patches on a side that one visual token averages, until the last fifth of the steps.
    save_every: seconds between saved states, each judged on as many validation scenes as `judged`.
    Writes `folder / "state.safetensors"` and lines to `folder / "log.jsonl"`.
    """
    embeddings = model.get_input_embeddings().weight
    masters, state = Masters(model.model, RATES, [embeddings]), folder / "state.safetensors"
    compile_layers(model)
    step, spent = 0, 0.0
    if state.is_file():
        notes = masters.load(state)
        step, spent = int(notes["step"]), float(notes["seconds"])
    began, saved = time.monotonic() - spent, spent
    losses: list[float] = []
    for index, asked in _stream(len(features["train"]), pictures, step, steps):
        generator = torch.Generator().manual_seed(step)
        pool = pool if step < COARSE * steps else 1
        batch = collate(tokenizer, asked, pool, generator)
        model.train()
        logits = answers(model, features["train"][index], batch)
        loss = F.cross_entropy(logits, batch.wanted)
        loss.backward()
        masters.step(factor_of(step, steps))
        losses.append(float(loss.detach()))
        step, spent = step + 1, time.monotonic() - began
        if spent - saved > save_every:
            saved = spent
            masters.save(state, {"step": str(step), "seconds": str(spent)})
            right = measure(model, tokenizer, features["val"], pictures, "val", range(judged), pool)
            line = {
                "step": step,
                "pool": pool,
                "seconds": round(spent),
                "loss": float(np.mean(losses)),
            }
            _log(folder, line | {"right": right})
            losses = []
        elif step % 25 == 0:
            _log(folder, {"step": step, "seconds": round(spent), "loss": np.mean(losses[-25:])})
    masters.save(state, {"step": str(step), "seconds": str(spent)})


def _stream(
    count: int, pictures: Pictures, start: int, stop: int
) -> Iterator[tuple[list[int], list[list[Question]]]]:
    """Scenes of each step and their questions, in an order drawn anew for each pass."""
    each = count // SCENES
    for step in range(start, stop):
        turn, place = divmod(step, each)
        order = np.random.default_rng((1, turn)).permutation(count)
        index = order[SCENES * place : SCENES * (place + 1)].tolist()
        yield index, [ask(pictures, "train", seed, turn + 1) for seed in index]


def _log(folder: Path, line: dict[str, Any]) -> None:
    with (folder / "log.jsonl").open("a") as file:
        print(json.dumps(line, default=float), file=file)
