"""Train the embedded model: `python -m train.mini --output out/mini`.

A model of 3 million parameters does not learn to look things up in 144 cells from questions alone
in the time one has on 2 cores. The recipe therefore takes the two halves apart first:

1. `vision`: the tower learns to name what each cell shows (colour, shape, slot, character), its
   class token to list what the picture holds, so that its attention goes to things;
2. `language`: the language model learns to answer from *symbols*: each cell is the sum of learned
   embeddings of its labels, so that whole steps cost a tenth and nothing has to be seen yet;
3. `bridge`: tower and projector learn to turn what is seen into those symbols;
4. `joint`: everything is trained together on pictures, dense, with all 144 cells.

Stages 1 and 2 are independent (`--stage` runs one alone). Each stage writes its weights and goes on
where it was when it is run again. All questions about a picture lie in one sequence and share its
cells, but do not see one another: each stands where it would stand alone.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

from vlm import mini
from vlm.scenes import (
    CHARACTERS,
    COLOURS,
    SHAPES,
    CellLabels,
    caption,
    cell_labels,
    draw,
    make_scene,
    questions,
)

GRID = mini.IMAGE_SIZE // mini.PATCH_SIZE
CELLS = GRID * GRID
FIELDS = {  # label -> number of classes
    "kind": 3,
    "colour": len(COLOURS) + 1,
    "shape": len(SHAPES) + 1,
    "row": 5,
    "column": 5,
    "character": len(CHARACTERS) + 1,
    "place": 3,
    "centre": 2,
}
STAGES = ("vision", "language", "bridge", "joint")


@dataclass(frozen=True)
class Stage:
    """How long and how fast one stage learns; `lr` is the peak."""

    steps: int
    batch: int
    lr: float


RECIPE = {
    "vision": Stage(steps=1500, batch=32, lr=2e-3),
    "language": Stage(steps=1500, batch=32, lr=3e-3),
    "bridge": Stage(steps=600, batch=32, lr=1e-3),
    "joint": Stage(steps=1600, batch=16, lr=4e-4),
}


# ------------------------------------------------------------------ data


class Scenes:
    """Drawn training scenes: pictures (n, 96, 96, 3) uint8 and labels (n, fields, cells)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    @classmethod
    def prepare(cls, path: Path, count: int) -> Scenes:
        """Draw the first `count` training scenes, or read them where they were drawn before."""
        if not (path.is_file() and len(np.load(path, mmap_mode="r")) == count):
            path.parent.mkdir(parents=True, exist_ok=True)
            with Pool() as pool:
                rows = pool.map(_draw_one, range(count), chunksize=64)
            np.save(path, np.stack([image for image, _ in rows]))
            np.save(path.with_suffix(".labels.npy"), np.stack([label for _, label in rows]))
        return cls(np.load(path, mmap_mode="r"), np.load(path.with_suffix(".labels.npy")))

    def batches(self, size: int, seed: int) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(seed)
        while True:
            order = rng.permutation(len(self.images))
            yield from (order[i : i + size] for i in range(0, len(order) - size + 1, size))

    def pixels(self, index: np.ndarray) -> Tensor:
        """(b, 3, 96, 96) float32, normalised as the processor does."""
        images = torch.from_numpy(self.images[np.sort(index)][np.argsort(np.argsort(index))])
        mean, std = (torch.tensor(v) for v in (_MEAN, _STD))
        return ((images / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()

    def fields(self, index: np.ndarray) -> Tensor:
        """(b, fields, cells) int64."""
        return torch.from_numpy(self.labels[index].astype(np.int64))


_processor = mini.build_processor()
_MEAN, _STD = _processor.image_processor.image_mean, _processor.image_processor.image_std
_tokenizer = _processor.tokenizer


def _draw_one(seed: int) -> tuple[np.ndarray, np.ndarray]:
    scene = make_scene(seed)
    labels: CellLabels = cell_labels(scene, GRID)
    return np.asarray(draw(scene)), np.stack([getattr(labels, f) for f in FIELDS]).astype(np.uint8)


_token_cache: dict[str, list[int]] = {}


def _tokens(text: str) -> list[int]:
    if text not in _token_cache:
        _token_cache[text] = _tokenizer(text, add_special_tokens=False)["input_ids"]
    return _token_cache[text]


def _prompt(question: str) -> tuple[list[int], list[int]]:
    """Token ids before and after the placeholders, as the chat template writes them."""
    parts = [{"type": "image"}, {"type": "text", "text": question}]
    messages: Any = [{"role": "user", "content": parts}]
    text = _processor.apply_chat_template(messages, add_generation_prompt=True)
    before, after = text.split("<image>")
    return _tokens(before), _tokens(after)


_PREFIX, _ = _prompt("")
_turn_cache: dict[str, list[int]] = {}


def _turn(question: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids and labels of one question and its answer."""
    if question not in _turn_cache:
        _turn_cache[question] = _prompt(question)[1]
    ask = _turn_cache[question]
    reply = [*_tokens(" " + answer), _tokenizer.eos_token_id]
    return ask + reply, [-100] * len(ask) + reply


@dataclass
class Batch:
    """Prefix, cells and questions of some scenes, in one sequence each (see `pack`)."""

    ids: Tensor  # (b, text) question and answer ids
    labels: Tensor  # (b, text) shifted: the id that each token has to predict, or -100
    positions: Tensor  # (b, prefix + cells + text)
    mask: Tensor  # (b, 1, s, s) bool
    cells: Tensor  # (b, v) which cells are shown


def pack(seeds: np.ndarray, cells: Tensor, rng: np.random.Generator, captions: float) -> Batch:
    """Lay the questions of each scene side by side; none sees another, all see the cells."""
    rows = []
    for seed in seeds:
        scene = make_scene(int(seed))
        turns = [_turn(q.text, q.answer) for q in questions(scene, rng)]
        if rng.random() < captions:
            turns.append(_turn("Describe the picture.", caption(scene)))
        rows.append(turns)
    prefix, shown = len(_PREFIX), cells.shape[1]
    length = max(sum(len(ids) for ids, _ in turns) for turns in rows)
    length = -(-length // 48) * 48  # few different shapes, so that compiled code is used again
    batch = len(rows)
    ids = torch.full((batch, length), _tokenizer.pad_token_id)
    labels = torch.full((batch, length), -100)
    turn_of = torch.full((batch, length), -1)
    place = torch.zeros((batch, length), dtype=torch.long)
    for b, turns in enumerate(rows):
        start = 0
        for k, (turn, label) in enumerate(turns):
            stop = start + len(turn)
            ids[b, start:stop] = torch.tensor(turn)
            labels[b, start : stop - 1] = torch.tensor(label[1:])
            turn_of[b, start:stop] = k
            place[b, start:stop] = torch.arange(len(turn)) + prefix + CELLS
            start = stop
    head = torch.arange(prefix).expand(batch, -1)
    positions = torch.cat([head, prefix + cells, place], dim=1)
    group = torch.cat([torch.full((batch, prefix + shown), -2), turn_of], dim=1)
    causal = torch.ones(group.shape[1], group.shape[1], dtype=torch.bool).tril()
    mask = causal & ((group[:, None] == -2) | (group[:, None] == group[:, :, None]))
    return Batch(ids, labels, positions, mask[:, None], cells)


def answer_loss(
    model: LlavaForConditionalGeneration, batch: Batch, visual: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the answers' tokens, and the share of them that is right."""
    lm = model.model.language_model
    words = lm.embed_tokens(batch.ids)
    prefix = lm.embed_tokens(torch.tensor(_PREFIX)).expand(len(words), -1, -1)
    hidden = lm(
        inputs_embeds=torch.cat([prefix, visual, words], dim=1),
        attention_mask=batch.mask,
        position_ids=batch.positions,
        use_cache=False,
    ).last_hidden_state[:, -batch.ids.shape[1] :]
    wanted = batch.labels != -100
    logits, labels = model.lm_head(hidden[wanted]), batch.labels[wanted]
    right = (logits.argmax(-1) == labels).float().mean()
    return functional.cross_entropy(logits.float(), labels), right


# ------------------------------------------------------------------ modules that only training has


class CellHeads(nn.Module):
    """Linear read-outs of the tower: a label a cell, and what the picture holds from its CLS."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({f"read_{f}": nn.Linear(width, n) for f, n in FIELDS.items()})
        self.holds = nn.Linear(width, sum(FIELDS[f] for f in ("colour", "shape", "character")))

    def loss(self, hidden: Tensor, fields: Tensor) -> tuple[Tensor, dict[str, float]]:
        """`hidden` (b, 1 + cells, width), `fields` (b, fields, cells) -> loss, shares right."""
        labels = dict(zip(FIELDS, fields.unbind(1), strict=True))
        item, thing = labels["kind"] == 1, labels["kind"] > 0
        where = {"kind": thing | True, "colour": item, "shape": item, "centre": item}
        total, right = torch.zeros(()), {}
        for field, label in labels.items():
            at = where.get(field, labels["kind"] == 2 if field in ("character", "place") else thing)
            logits = self.cells[f"read_{field}"](hidden[:, 1:][at])
            total = total + functional.cross_entropy(logits, label[at])
            right[field] = float((logits.argmax(-1) == label[at]).float().mean())
        held = [
            functional.one_hot(labels[f], FIELDS[f]).amax(1)
            for f in ("colour", "shape", "character")
        ]
        logits = self.holds(hidden[:, 0])
        total = total + 4 * functional.binary_cross_entropy_with_logits(
            logits, torch.cat(held, dim=1).float()
        )
        return total, right


class Symbols(nn.Module):
    """A cell as the sum of its labels' embeddings: what the projector has to say later."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {f"table_{f}": nn.Embedding(n, width) for f, n in FIELDS.items()}
        )
        for weight in self.parameters():
            nn.init.normal_(weight, std=std)

    def forward(self, fields: Tensor) -> Tensor:
        """(b, fields, v) -> (b, v, width)."""
        tables = zip(self.tables.values(), fields.unbind(1), strict=True)
        return torch.stack([table(column) for table, column in tables]).sum(0)


# ------------------------------------------------------------------ the loop


def schedule(progress: float) -> float:
    """Share of the peak learning rate at `progress` in [0, 1]: a warm-up, then a cosine to 2%."""
    return min(1.0, progress / 0.02 + 1e-3) * (0.51 + 0.49 * math.cos(math.pi * progress))


class Trainer:
    """Holds the parts, runs the stages, and writes `<stage>.safetensors` and `log.jsonl`."""

    def __init__(self, output: Path, scenes: Scenes, seed: int) -> None:
        self.output, self.scenes, self.seed = output, scenes, seed
        self.model, _ = mini.build(seed)
        torch.manual_seed(seed)
        config: Any = self.model.config
        self.noise = 0.5 * config.text_config.initializer_range
        self.heads = CellHeads(config.vision_config.hidden_size)
        self.symbols = Symbols(config.text_config.hidden_size, config.text_config.initializer_range)
        self.parts = {
            "vision": nn.ModuleDict({"tower": self.model.model.vision_tower, "heads": self.heads}),
            "language": nn.ModuleDict(
                {
                    "lm": self.model.model.language_model,
                    "lm_head": self.model.lm_head,
                    "symbols": self.symbols,
                }
            ),
            "bridge": nn.ModuleDict(
                {
                    "tower": self.model.model.vision_tower,
                    "heads": self.heads,
                    "projector": self.model.model.multi_modal_projector,
                }
            ),
        }
        self.parts["joint"] = nn.ModuleDict({"model": self.model, "heads": self.heads})

    def load(self, stage: str) -> bool:
        path = self.output / f"{stage}.safetensors"
        if path.is_file():
            self.parts[stage].load_state_dict(load_file(path))
        return path.is_file()

    def run(self, stage: str) -> None:
        """Run one stage to its end, from its last checkpoint where there is one."""
        plan, parts = RECIPE[stage], self.parts[stage]
        if self.load(stage):
            return
        for before in STAGES[: STAGES.index(stage)]:
            if stage in ("bridge", "joint") and not self.load(before):
                raise FileNotFoundError(f"stage {stage!r} needs {before!r} in {self.output} first")
        optimizer = torch.optim.AdamW(
            parts.parameters(), lr=plan.lr, betas=(0.9, 0.98), weight_decay=0.01, fused=True
        )
        partial = self.output / f"{stage}.partial.pt"
        first = 0
        if partial.is_file():
            state = torch.load(partial, weights_only=True)
            parts.load_state_dict(state["weights"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
        rng = np.random.default_rng((self.seed, STAGES.index(stage), first))
        batches = self.scenes.batches(plan.batch, self.seed + first)
        began, seen = time.time(), []
        parts.train()
        self.model.model.vision_tower.compile()
        self.model.model.language_model.compile(dynamic=False)
        for step in range(first, plan.steps):
            loss, right = getattr(self, f"_{stage}")(next(batches), rng)
            loss.backward()
            nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * schedule(step / plan.steps)
            optimizer.step()
            optimizer.zero_grad()
            seen.append((float(loss.detach()), right))
            if (step + 1) % 25 == 0:
                self._log(stage, step + 1, began, seen)
                seen = []
            if (step + 1) % 500 == 0 and step + 1 < plan.steps:
                weights, state = parts.state_dict(), optimizer.state_dict()
                torch.save({"step": step + 1, "weights": weights, "optimizer": state}, partial)
        save_file(parts.state_dict(), self.output / f"{stage}.safetensors")
        partial.unlink(missing_ok=True)

    def _log(
        self, stage: str, step: int, began: float, seen: list[tuple[float, dict[str, float]]]
    ) -> None:
        loss = sum(value for value, _ in seen) / len(seen)
        right = {k: round(sum(r[k] for _, r in seen) / len(seen), 4) for k in seen[0][1]}
        row = {"stage": stage, "step": step, "seconds": round(time.time() - began, 1)}
        with (self.output / "log.jsonl").open("a") as file:
            print(json.dumps(row | {"loss": round(loss, 4)} | right), file=file)
        print(
            f"{stage} {step}/{RECIPE[stage].steps} {row['seconds']:.0f} s loss {loss:.3f} {right}",
            flush=True,
        )

    # one step of each stage: (scene indices, rng) -> loss, shares right

    def _see(self, index: np.ndarray) -> Tensor:
        return self.model.model.vision_tower(self.scenes.pixels(index)).last_hidden_state

    def _vision(self, index: np.ndarray, _: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.heads.loss(self._see(index), self.scenes.fields(index))

    def _language(
        self, index: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        fields = self.scenes.fields(index)
        # Every cell that shows something, and some blank ones: short sequences, true positions.
        shown = 48
        score = (fields[:, 0] > 0) + torch.from_numpy(rng.random(fields[:, 0].shape))
        cells = score.topk(shown, dim=1).indices.sort(dim=1).values
        fields = fields.gather(2, cells[:, None].expand(-1, fields.shape[1], -1))
        visual = self.symbols(fields)
        visual = visual + torch.randn_like(visual) * self.noise
        batch = pack(index, cells, rng, captions=0.3)
        loss, right = answer_loss(self.model, batch, visual)
        return loss, {"answer": float(right)}

    def _bridge(self, index: np.ndarray, _: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        hidden, fields = self._see(index), self.scenes.fields(index)
        with torch.no_grad():
            wanted = self.symbols(fields)
        said = self.model.model.multi_modal_projector(hidden[:, 1:])
        apart = functional.mse_loss(said, wanted) / wanted.var()
        see = self.heads.loss(hidden, fields)[0]
        return apart + 0.05 * see, {"apart": float(apart.detach()), "see": float(see.detach())}

    def _joint(
        self, index: np.ndarray, rng: np.random.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        hidden = self._see(index)
        visual = self.model.model.multi_modal_projector(hidden[:, 1:])
        batch = pack(index, torch.arange(CELLS).expand(len(index), -1), rng, captions=0.15)
        loss, right = answer_loss(self.model, batch, visual)
        see, _ = self.heads.loss(hidden, self.scenes.fields(index))
        return loss + 0.05 * see, {"answer": float(right), "see": float(see.detach())}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("out/mini"))
    parser.add_argument("--stage", choices=STAGES, help="run this stage alone")
    parser.add_argument("--scenes", type=int, default=24_000, help="how many scenes are drawn")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    scenes = Scenes.prepare(args.output / "scenes.npy", args.scenes)
    trainer = Trainer(args.output, scenes, args.seed)
    for stage in [args.stage] if args.stage else STAGES:
        trainer.run(stage)
    if args.stage in (None, "joint"):
        trainer.model.half().save_pretrained(args.output / "model")
        _processor.save_pretrained(args.output / "model")


if __name__ == "__main__":
    main()
