"""The five stages, the one of the 1-D sibling, and the loop that runs them."""

from __future__ import annotations

import json
import math
import time
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from train.mini.data import (
    IMAGE,
    SYMBOLS,
    TOKENS,
    UNKNOWN,
    VIDEO,
    Batch,
    Drawn,
    Lesson,
    Lessons,
    normalised,
)
from train.mini.modules import CellHeads, Symbols, answer_loss
from train.mini.muon import optimizers
from vlm.embedded import mini

STAGES = ("vision", "closer", "language", "bridge", "joint")
CLIP_WEIGHT = 0.6  # of the loss of clips, with 1 for scenes
SAVE = 250  # steps between two checkpoints
SEE_WEIGHT = 0.2  # of the read-outs' loss, once there are other losses
APART_WEIGHT = 1.0  # of the distance to the symbols, with 1 for the answers
Shares = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """The settings of one stage.

    Attributes:
        batch, clips: scenes and clips a step.
        lr, muon: the peak learning rates of AdamW and of Muon.
        shown, mosaics, symbols: see `Lessons`.
        asked: `captions`, `letters` and `rounds` of `Lessons`.
        restarts: how often the learning rate schedule restarts. Each round after the first ends
            with the mean of the weights at its start and its end.
    """

    steps: int
    batch: int
    clips: int
    lr: float
    muon: float
    shown: int | None = 0
    asked: tuple[float, float, int] = (0.0, 0.0, 1)
    mosaics: float = 0.0
    symbols: float = 0.0
    restarts: int = 0


RECIPE = {
    "vision": Stage(900, 24, 2, lr=1e-3, muon=0.01),
    "closer": Stage(3200, 32, 1, lr=1e-3, muon=0.01, mosaics=0.9),
    "language": Stage(
        2300, 20, 3, lr=2e-3, muon=0.01, shown=TOKENS, asked=(0.1, 0.2, 4), symbols=1.0
    ),
    "bridge": Stage(300, 32, 2, lr=1e-3, muon=0.005, mosaics=0.5),
    "joint": Stage(
        3250, 14, 2, lr=6e-4, muon=0.005, shown=None, asked=(0.03, 0.2, 4), symbols=0.42, restarts=4
    ),
    "sibling": Stage(
        300, 12, 2, lr=1e-3, muon=0.005, shown=None, asked=(0.1, 0.2, 4), symbols=0.33
    ),
}


def schedule(progress: float) -> float:
    """The share of the peak learning rate at `progress` in [0, 1]: warm-up, then cosine to 1%."""
    return min(1.0, progress / 0.02 + 1e-3) * (0.505 + 0.495 * math.cos(math.pi * progress))


class Trainer:
    """Runs the stages. Writes `<stage>.safetensors` and `log.jsonl`."""

    def __init__(
        self,
        output: Path,
        data: dict[str, Drawn],
        seed: int,
        axes: mini.Axes,
        device: str = "cpu",
        workers: int = 0,
        compiled: bool = True,
    ) -> None:
        self.output, self.data, self.seed, self.axes = output, data, seed, axes
        self.device, self.workers, self.compiled = torch.device(device), workers, compiled
        self.begun = False
        self.model, self.processor = mini.build(seed, axes)
        torch.manual_seed(seed)
        text: Any = self.model.config.text_config
        self.noise = 0.5 * text.initializer_range
        expert: Any = self.model.model.experts["clip"]
        self.vision_encoder = expert.encoder
        self.heads = CellHeads(mini.WIDTH)
        self.symbols = Symbols(text.hidden_size, text.initializer_range)
        vision = {"vision_encoder": self.vision_encoder, "heads": self.heads}
        language = {"lm": self.model.model.language_model, "lm_head": self.model.lm_head}
        self.parts = {
            "vision": nn.ModuleDict(vision),
            "closer": nn.ModuleDict(vision),
            "language": nn.ModuleDict({**language, "symbols": self.symbols}),
            "bridge": nn.ModuleDict({**vision, "fusion": self.model.model.fusion}),
            "joint": nn.ModuleDict(
                {"model": self.model, "heads": self.heads, "symbols": self.symbols}
            ),
        }
        modules: list[nn.Module] = [self.model, self.heads, self.symbols]
        for module in modules:
            module.to(self.device)

    def load(self, stage: str) -> bool:
        """Load the weights of a finished stage. Returns whether it is finished."""
        path = self.output / f"{stage}.safetensors"
        if path.is_file():
            self.parts[stage].load_state_dict(load_file(path))
        return path.is_file()

    def begin(self, path: Path) -> None:
        """Load the weights of a finished joint stage, of this model or of its 1-D sibling.

        The output bias of attention, which one of them lacks, keeps its initial value of 0.
        """
        missing, foreign = self.parts["joint"].load_state_dict(load_file(path), strict=False)
        if odd := [name for name in [*missing, *foreign] if not name.endswith("o_proj.bias")]:
            raise ValueError(f"{path} is of another model: only one of them has {odd[0]}")
        self.begun = True

    def run(self, stage: str) -> None:
        """Run one stage, from its last checkpoint if there is one."""
        recipe, parts = RECIPE["sibling" if self.begun else stage], self.parts[stage]
        if self.load(stage):
            return
        for before in STAGES[: STAGES.index(stage)] if not self.begun else ():
            if stage != "language" and not self.load(before):
                raise FileNotFoundError(f"stage {stage!r} needs {before!r} in {self.output} first")
        stage_optimizers = optimizers(parts, recipe.lr, recipe.muon)
        partial = self.output / f"{stage}.partial.pt"
        first, start = 0, dict[str, Tensor]()  # start: the weights at the start of a later round
        length = math.ceil(recipe.steps / (recipe.restarts + 1))
        if partial.is_file():
            state = torch.load(partial, weights_only=True)
            parts.load_state_dict(state["weights"])
            for optimizer, saved in zip(stage_optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            first, start = state["step"], state["start"]
        loader = self._loader(stage, recipe, first)
        began, seen = time.time(), []
        parts.train()
        if self.compiled:
            self.vision_encoder.compile(dynamic=False)
            lm: Any = self.model.model.language_model
            lm.compile(dynamic=False)
        on_gpu = self.device.type == "cuda"
        for step, lesson in enumerate(loader, first):
            if step and step % length == 0:
                start = deepcopy(parts.state_dict())
                stage_optimizers = optimizers(parts, recipe.lr, recipe.muon)
            with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
                shares = self._step(stage, lesson)
            nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            for optimizer in stage_optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * schedule(step % length / length)
                optimizer.step()
                optimizer.zero_grad()
            ends = (step + 1) % length == 0 or step + 1 == recipe.steps
            if ends and step >= length:
                ended = parts.state_dict()
                parts.load_state_dict({k: (start[k] + ended[k]) / 2 for k in ended})
            seen.append(shares)
            if (step + 1) % 25 == 0:
                self._log(stage, step + 1, began, seen)
                seen = []
            if (step + 1) % SAVE == 0 and step + 1 < recipe.steps:
                states = [optimizer.state_dict() for optimizer in stage_optimizers]
                weights = {"weights": parts.state_dict(), "start": start}
                torch.save({"step": step + 1, "optimizers": states, **weights}, partial)
        save_file(parts.state_dict(), self.output / f"{stage}.safetensors")
        partial.unlink(missing_ok=True)

    def _loader(self, stage: str, recipe: Stage, first: int) -> DataLoader[Any]:
        """The lessons of a stage from step `first` on."""
        lessons = Lessons(
            self.data,
            {IMAGE: recipe.batch, VIDEO: recipe.clips},
            recipe.steps,
            self.seed + 1000 * STAGES.index(stage),
            self.axes,
            recipe.shown,
            *recipe.asked,
            recipe.mosaics,
            recipe.symbols,
        )
        return DataLoader(
            lessons, batch_size=None, sampler=range(first, recipe.steps), num_workers=self.workers
        )

    def _step(self, stage: str, lessons: dict[str, Lesson]) -> Shares:
        """Accumulate the gradients of one step: a batch of scenes and a batch of clips."""
        shares: Shares = {}
        for kind, lesson in lessons.items():
            pixels, fields = lesson.pixels.to(self.device), lesson.fields.to(self.device)
            batch = lesson.batch and Batch(*(x.to(self.device) for x in lesson.batch))
            told = lesson.told.to(self.device)
            loss, right = getattr(self, f"_{stage}")(pixels, fields, batch, told)
            ((1.0 if kind == IMAGE else CLIP_WEIGHT) * loss).backward()
            shares |= {f"{kind} {name}": share.detach() for name, share in right.items()}
            shares[f"{kind} loss"] = loss.detach()
        return shares

    def _log(self, stage: str, step: int, began: float, seen: list[Shares]) -> None:
        row = {k: round(float(torch.stack([r[k] for r in seen]).mean()), 4) for k in seen[0]}
        head = {"stage": stage, "step": step, "seconds": round(time.time() - began, 1)}
        with (self.output / "log.jsonl").open("a") as file:
            print(json.dumps(head | row), file=file)
        print(f"{stage} {step} {head['seconds']:.0f} s {row}", flush=True)

    # The loss of a batch by stage, and its figures for the log.

    def _see(self, pixels: Tensor, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (b * frames, 1 + tokens, width) and labels (b * frames, fields, tokens)."""
        hidden = self.vision_encoder(normalised(pixels)).last_hidden_state
        return hidden, fields.unflatten(2, (-1, TOKENS)).transpose(1, 2).flatten(0, 1)

    def _vision(self, pixels: Tensor, fields: Tensor, *_: Any) -> tuple[Tensor, Shares]:
        return self.heads.loss(*self._see(pixels, fields))

    _closer = _vision

    def _language(
        self, _: Tensor, fields: Tensor, batch: Batch, told: Tensor
    ) -> tuple[Tensor, Shares]:
        loss, right = answer_loss(self.model, batch, self._noisy(fields, told))
        return loss, {"answer": right}

    def _bridge(self, pixels: Tensor, fields: Tensor, *_: Any) -> tuple[Tensor, Shares]:
        hidden, labels = self._see(pixels, fields)
        apart = self._apart(self._project(hidden), labels)
        see = self.heads.loss(hidden, labels)[0]
        return apart + SEE_WEIGHT * see, {"apart": apart, "see": see}

    def _joint(
        self, pixels: Tensor, fields: Tensor, batch: Batch, told: Tensor
    ) -> tuple[Tensor, Shares]:
        hidden, labels = self._see(pixels, fields)
        said = self._project(hidden)
        visual = said.unflatten(0, (len(fields), -1)).flatten(1, 2)
        with torch.no_grad():
            symbols = self._noisy(fields.clamp(min=0), told)
        visual = torch.where((told < SYMBOLS)[:, None, None], visual, symbols)
        loss, right = answer_loss(self.model, batch, visual)
        see, apart = self.heads.loss(hidden, labels)[0], self._apart(said, labels)
        shares = {"answer": right, "see": see, "apart": apart}
        return loss + SEE_WEIGHT * see + APART_WEIGHT * apart, shares

    def _noisy(self, fields: Tensor, told: Tensor) -> Tensor:
        """Symbols with noise, (b, tokens, width)."""
        symbols = self.symbols(fields, told)
        return symbols + torch.randn_like(symbols) * self.noise

    def _apart(self, said: Tensor, labels: Tensor) -> Tensor:
        """The squared distance from the projector's outputs to the symbols, over their variance.

        Where a field is unknown, the span of its embeddings is left out of the distance.
        """
        with torch.no_grad():
            wanted = self.symbols(labels.clamp(min=0))
        off = said.float() - wanted
        for number, table in enumerate(self.symbols.parameters()):
            if bool((unknown := (labels[:, number] == UNKNOWN).all(1)).any()):
                span = torch.linalg.qr(table.detach().T).Q
                rest = off - off @ span @ span.T
                off = torch.where(unknown[:, None, None], rest, off)
        # Blank grid cells, items, signs and dots have equal weight, as a picture has only one dot.
        weight = 1 / torch.bincount(labels[:, 0].flatten(), minlength=4)[labels[:, 0]]
        return (off.square().mean(2) * weight).sum() / weight.sum() / wanted.var()

    def _project(self, hidden: Tensor) -> Tensor:
        return self.model.model.fusion("clip", hidden[:, 1:], (mini.GRID, mini.GRID))
