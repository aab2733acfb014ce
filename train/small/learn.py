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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from train.small.features import Features
from train.small.rows import Batch, collate
from vlm.embedded.collage import Pictures, Question, Split, make_scene, questions
from vlm.embedded.small import GRID

SCENES, WARM_UP, CLIP = 4, 15, 1.0
RATES = {"language_model": 2e-4, "fusion": 3e-4}
CONSTANT, LAST = 0.7, 0.05  # share of the time before the rate falls; share of it that stays


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


class Masters:
    """Float32 copies of the bfloat16 parameters that learn, and their AdamW."""

    def __init__(self, model: Any) -> None:
        head = {id(model.model.get_input_embeddings().weight)}
        self.groups = {
            part: {
                f"{part}.{name}": parameter
                for name, parameter in getattr(model.model, part).named_parameters()
                if id(parameter) not in head
            }
            for part in RATES
        }
        self.learned = {n: p for group in self.groups.values() for n, p in group.items()}
        model.requires_grad_(False)
        for parameter in self.learned.values():
            parameter.requires_grad_(True)
        self.master = {n: p.detach().float().clone() for n, p in self.learned.items()}
        groups = [
            {"params": [self.master[n] for n in names], "lr": RATES[part], "rate": RATES[part]}
            for part, names in self.groups.items()
        ]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, factor: float) -> None:
        """One step at `factor` of the full rates, from the gradients of the parameters."""
        for name, parameter in self.learned.items():
            self.master[name].grad = parameter.grad.float()
            parameter.grad = None
        gradients = [tensor.grad for tensor in self.master.values()]
        norm = nn.utils.get_total_norm(gradients)
        if norm > CLIP:
            nn.utils.clip_grads_with_norm_(list(self.master.values()), CLIP, norm)
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * factor
        self.optimiser.step()
        with torch.no_grad():
            for name, parameter in self.learned.items():
                parameter.copy_(self.master[name])
                self.master[name].grad = None

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Weights and moments in one file, which replaces the last in one move."""
        state = {f"weight.{name}": tensor for name, tensor in self.master.items()}
        for name, tensor in self.master.items():
            for kind in ("exp_avg", "exp_avg_sq", "step"):
                if kind in self.optimiser.state[tensor]:
                    state[f"{kind}.{name}"] = self.optimiser.state[tensor][kind]
        partial = path.with_suffix(".part")
        save_file(state, partial, notes)
        partial.replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> dict[str, str]:
        """What `save` wrote; returns its notes."""
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for name, tensor in self.master.items():
                tensor.copy_(file.get_tensor(f"weight.{name}"))
                self.learned[name].copy_(tensor)
                if f"exp_avg.{name}" in names:
                    kinds = ("exp_avg", "exp_avg_sq", "step")
                    moments = {kind: file.get_tensor(f"{kind}.{name}") for kind in kinds}
                    self.optimiser.state[tensor].update(moments)
            return dict(file.metadata() or {})


def factor_of(step: int, share: float) -> float:
    """The factor of the learning rate at a step, when `share` of the time has passed."""
    fall = min(1.0, (1 - share) / (1 - CONSTANT))
    return min((step + 1) / WARM_UP, LAST + (1 - LAST) * max(0.0, fall))


def learn(
    model: Any,
    tokenizer: Any,
    features: dict[Split, Features],
    pictures: Pictures,
    folder: Path,
    seconds: float,
    pool: int = 2,
    save_every: float = 600.0,
    judged: int = 30,
) -> None:
    """Train in place for `seconds` in all, those before an interruption included.

    save_every: seconds between saved states, each judged on as many validation scenes as `judged`.
    Writes `folder / "state.safetensors"` and lines to `folder / "log.jsonl"`.
    """
    masters, state = Masters(model), folder / "state.safetensors"
    compile_layers(model)
    step, spent = 0, 0.0
    if state.is_file():
        notes = masters.load(state)
        step, spent = int(notes["step"]), float(notes["seconds"])
    began, saved = time.monotonic() - spent, spent
    losses: list[float] = []
    count = 0
    for index, asked in _stream(len(features["train"]), pictures, step):
        spent = time.monotonic() - began
        if spent >= seconds:
            break
        generator = torch.Generator().manual_seed(step)
        batch = collate(tokenizer, asked, pool, generator)
        model.train()
        logits = answers(model, features["train"][index], batch)
        loss = F.cross_entropy(logits, batch.wanted)
        loss.backward()
        masters.step(factor_of(step, spent / seconds))
        losses.append(float(loss.detach()))
        step, count = step + 1, count + sum(map(len, asked))
        if spent - saved > save_every:
            saved = spent
            masters.save(state, {"step": str(step), "seconds": str(spent)})
            right = measure(model, tokenizer, features["val"], pictures, "val", range(judged))
            line = {"step": step, "seconds": round(spent), "loss": float(np.mean(losses))}
            _log(folder, line | {"right": right})
            losses = []
        elif step % 25 == 0:
            _log(folder, {"step": step, "seconds": round(spent), "loss": np.mean(losses[-25:])})
    masters.save(state, {"step": str(step), "seconds": str(spent)})


def _stream(
    count: int, pictures: Pictures, step: int
) -> Iterator[tuple[list[int], list[list[Question]]]]:
    """Scenes of each step and their questions, in an order drawn anew for each pass."""
    each = count // SCENES
    while True:
        turn, place = divmod(step, each)
        order = np.random.default_rng((1, turn)).permutation(count)
        index = order[SCENES * place : SCENES * (place + 1)].tolist()
        yield index, [ask(pictures, "train", seed, turn + 1) for seed in index]
        step += 1


def _log(folder: Path, line: dict[str, Any]) -> None:
    with (folder / "log.jsonl").open("a") as file:
        print(json.dumps(line, default=float), file=file)
