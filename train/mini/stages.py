"""The four stages, and the loop that runs them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from train.mini.data import CELLS, IMAGE, VIDEO, Drawn, homes, pack, turns_of
from train.mini.modules import CellHeads, Symbols, answer_loss
from train.mini.muon import optimizers
from vlm import mini

STAGES = ("vision", "language", "bridge", "joint")
SHOWN = 64  # cells that the language stage shows
Shares = dict[str, Tensor]


@dataclass(frozen=True)
class Stage:
    """How long and how fast one stage learns.

    batch: scenes a step. clips: clips a step. lr: the peak of AdamW, muon: of Muon.
    """

    steps: int
    batch: int
    clips: int
    lr: float
    muon: float


RECIPE = {
    "vision": Stage(steps=1500, batch=24, clips=2, lr=1e-3, muon=0.01),
    "language": Stage(steps=3000, batch=20, clips=6, lr=2e-3, muon=0.01),
    "bridge": Stage(steps=400, batch=24, clips=2, lr=1e-3, muon=0.005),
    "joint": Stage(steps=1500, batch=12, clips=2, lr=3e-4, muon=0.002),
}


def schedule(progress: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1]: warm-up, then a cosine to 1%."""
    return min(1.0, progress / 0.02 + 1e-3) * (0.505 + 0.495 * math.cos(math.pi * progress))


class Trainer:
    """Holds the parts, runs the stages, and writes `<stage>.safetensors` and `log.jsonl`."""

    def __init__(
        self, output: Path, data: dict[str, Drawn], seed: int, axes: mini.Axes, device: str
    ) -> None:
        self.output, self.data, self.seed, self.axes = output, data, seed, axes
        self.device = torch.device(device)
        self.model, self.processor = mini.build(seed, axes)
        torch.manual_seed(seed)
        text: Any = self.model.config.text_config
        self.noise = 0.5 * text.initializer_range
        expert: Any = self.model.model.experts["clip"]
        self.tower = expert.tower
        self.heads = CellHeads(mini.WIDTH)
        self.symbols = Symbols(text.hidden_size, text.initializer_range)
        tower = {"tower": self.tower, "heads": self.heads}
        language = {"lm": self.model.model.language_model, "lm_head": self.model.lm_head}
        self.parts = {
            "vision": nn.ModuleDict(tower),
            "language": nn.ModuleDict({**language, "symbols": self.symbols}),
            "bridge": nn.ModuleDict({**tower, "fusion": self.model.model.fusion}),
            "joint": nn.ModuleDict({"model": self.model, "heads": self.heads}),
        }
        for module in (self.model, self.heads, self.symbols):
            module.to(self.device)

    def load(self, stage: str) -> bool:
        """Take a finished stage's weights, if it is finished."""
        path = self.output / f"{stage}.safetensors"
        if path.is_file():
            self.parts[stage].load_state_dict(load_file(path))
        return path.is_file()

    def run(self, stage: str) -> None:
        """Run one stage to its end, from its last checkpoint where there is one."""
        recipe, parts = RECIPE[stage], self.parts[stage]
        if self.load(stage):
            return
        for before in STAGES[: STAGES.index(stage)]:
            if stage in ("bridge", "joint") and not self.load(before):
                raise FileNotFoundError(f"stage {stage!r} needs {before!r} in {self.output} first")
        found = optimizers(parts, recipe.lr, recipe.muon)
        partial = self.output / f"{stage}.partial.pt"
        first = 0
        if partial.is_file():
            state = torch.load(partial, weights_only=True)
            parts.load_state_dict(state["weights"])
            for optimizer, saved in zip(found, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            first = state["step"]
        rng = np.random.default_rng((self.seed, STAGES.index(stage), first))
        sizes = {IMAGE: recipe.batch, VIDEO: recipe.clips}
        batches = {k: self.data[k].batches(n, self.seed + first) for k, n in sizes.items() if n}
        began, seen = time.time(), []
        parts.train()
        self.tower.compile(dynamic=False)
        lm: Any = self.model.model.language_model
        lm.compile(dynamic=False)
        on_gpu = self.device.type == "cuda"
        for step in range(first, recipe.steps):
            with torch.autocast("cuda", torch.bfloat16) if on_gpu else nullcontext():
                shares = self._step(stage, batches, rng, step / recipe.steps)
            nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            for optimizer in found:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * schedule(step / recipe.steps)
                optimizer.step()
                optimizer.zero_grad()
            seen.append(shares)
            if (step + 1) % 25 == 0:
                self._log(stage, step + 1, began, seen)
                seen = []
            if (step + 1) % 500 == 0 and step + 1 < recipe.steps:
                states = [optimizer.state_dict() for optimizer in found]
                state = {"step": step + 1, "weights": parts.state_dict(), "optimizers": states}
                torch.save(state, partial)
        save_file(parts.state_dict(), self.output / f"{stage}.safetensors")
        partial.unlink(missing_ok=True)

    def _step(
        self,
        stage: str,
        batches: dict[str, Iterator[np.ndarray]],
        rng: np.random.Generator,
        progress: float,
    ) -> Shares:
        """Gradients of one step: a batch of scenes and a batch of clips."""
        shares: Shares = {}
        for kind, found in batches.items():
            index = next(found)
            loss, right = getattr(self, f"_{stage}")(kind, index, rng, progress)
            weight = 1.0 if kind == IMAGE else 0.4
            (weight * loss).backward()
            shares |= {f"{kind} {name}": share.detach() for name, share in right.items()}
            shares[f"{kind} loss"] = loss.detach()
        return shares

    def _log(self, stage: str, step: int, began: float, seen: list[Shares]) -> None:
        row = {k: round(float(torch.stack([r[k] for r in seen]).mean()), 4) for k in seen[0]}
        head = {"stage": stage, "step": step, "seconds": round(time.time() - began, 1)}
        with (self.output / "log.jsonl").open("a") as file:
            print(json.dumps(head | row), file=file)
        print(f"{stage} {step}/{RECIPE[stage].steps} {head['seconds']:.0f} s {row}", flush=True)

    # one batch of each stage: (kind, indices, rng, progress) -> loss, shares right

    def _see(self, kind: str, index: np.ndarray) -> tuple[Tensor, Tensor]:
        """Hidden states (b * frames, 1 + cells, width) and labels (b * frames, fields, cells)."""
        hidden = self.tower(self.data[kind].pixels(index).to(self.device)).last_hidden_state
        fields = self.data[kind].fields(index).to(self.device).unflatten(2, (-1, CELLS))
        return hidden, fields.transpose(1, 2).flatten(0, 1)

    def _vision(
        self, kind: str, index: np.ndarray, rng: np.random.Generator, progress: float
    ) -> tuple[Tensor, Shares]:
        hidden, fields = self._see(kind, index)
        if kind == VIDEO:  # signs are on pictures only
            return self._read_items(hidden, fields)
        return self.heads.loss(hidden, fields)

    def _read_items(self, hidden: Tensor, fields: Tensor) -> tuple[Tensor, Shares]:
        loss, right = self.heads.loss(hidden, fields)
        return loss, {name: right[name] for name in ("kind", "colour", "shape")}

    def _language(
        self, kind: str, index: np.ndarray, rng: np.random.Generator, progress: float
    ) -> tuple[Tensor, Shares]:
        fields = self.data[kind].fields(index)
        # Every cell that shows something, and some blank ones: short sequences, true positions.
        score = (fields[:, 0] > 0) + torch.from_numpy(rng.random(fields[:, 0].shape))
        cells = score.topk(SHOWN, dim=1).indices.sort(dim=1).values
        fields = fields.gather(2, cells[:, None].expand(-1, fields.shape[1], -1))
        visual = self.symbols(fields.to(self.device))
        visual = visual + torch.randn_like(visual) * self.noise
        where, after = homes(kind, self.axes)
        # Letters come when there is something to choose by.
        letters = 0.3 * min(1.0, max(0.0, 3 * progress - 1))
        rows = [turns_of(kind, int(s), rng, 0.3, letters) for s in index]
        batch = pack(rows, where[cells], after).to(self.device)
        loss, right = answer_loss(self.model, batch, visual)
        return loss, {"answer": right}

    def _bridge(
        self, kind: str, index: np.ndarray, rng: np.random.Generator, progress: float
    ) -> tuple[Tensor, Shares]:
        hidden, fields = self._see(kind, index)
        with torch.no_grad():
            wanted = self.symbols(fields)
        said = self._project(hidden)
        apart = functional.mse_loss(said.float(), wanted) / wanted.var()
        see = self.heads.loss(hidden, fields)[0] if kind == IMAGE else hidden.new_zeros(())
        return apart + 0.05 * see, {"apart": apart, "see": see}

    def _joint(
        self, kind: str, index: np.ndarray, rng: np.random.Generator, progress: float
    ) -> tuple[Tensor, Shares]:
        hidden, fields = self._see(kind, index)
        visual = self._project(hidden).unflatten(0, (len(index), -1)).flatten(1, 2)
        where, after = homes(kind, self.axes)
        rows = [turns_of(kind, int(s), rng, 0.15, 0.2) for s in index]
        batch = pack(rows, where.expand(len(index), -1, -1), after).to(self.device)
        loss, right = answer_loss(self.model, batch, visual)
        see = self.heads.loss(hidden, fields)[0] if kind == IMAGE else hidden.new_zeros(())
        return loss + 0.05 * see, {"answer": right, "see": see}

    def _project(self, hidden: Tensor) -> Tensor:
        return self.model.model.fusion("clip", hidden[:, 1:], (mini.GRID, mini.GRID))
