"""Two experts beside either of them alone, at equal tokens: `python -m scripts.study_experts`.

`coarse` is the vision encoder of the embedded model's 1-D sibling (96 px, 12 x 12 tokens). `fine`
has the same grid and sees twice the pixels (192 px, patches of 16). It starts as the coarse encoder
with its patch kernel spread over the larger patch. It is then trained for some minutes to name what
each grid cell shows, and to stay near the features of the coarse encoder, so that one projector
fits both.

Models are built with the embedded model's language model and projector: each expert alone, and both
with MLP fusion. With both, the fine tokens share one position, share one a row, or have one each
(MouSi's schemes). Every model is trained on the same questions for the same number of steps, with
frozen vision encoders. All answer the test split of the embedded benchmark, drawn at 192 px (scaled
down for the coarse expert), with all tokens and with the same mean number of tokens an image.

Writes `experts.json` (raw figures), `experts.md` and `experts.png`. An interrupted run is resumed
by the same command.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, CLIPVisionConfig

import vlm
from eval.answerers import ModelAnswerer
from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import Embedded
from eval.report import table
from eval.samples import Drawing, Loaded
from scripts.common import (
    Asked,
    add_folders,
    against,
    canvas,
    facts,
    result_of,
    write_json,
    write_table,
)
from train.mini.data import IMAGE, Batch, original_positions, pack, turns_of
from train.mini.modules import CellHeads, answer_loss
from vlm.embedded import mini
from vlm.embedded.scenes import Split, cell_labels, draw, make_scene
from vlm.experts import Expert, build_expert, expert_config
from vlm.model import FoveateProcessor, assemble, from_llava

SIZE = 192
TOKENS = 144
# Experts of each model, and how the fine tokens share positions (MouSi, arXiv 2401.17221).
MODELS = {
    "coarse": (("coarse",), None),
    "fine": (("fine",), None),
    "both": (("coarse", "fine"), "all"),
    "both, row": (("coarse", "fine"), "row"),
    "both, original": (("coarse", "fine"), "original"),
}
BUDGETS = (144, 48, 16)
VISION = {"steps": 300, "batch": 16, "lr": 5e-4}
JOINT = {"steps": 250, "batch": 8, "lr": 3e-4}


def experts() -> dict[str, Expert]:
    """Both experts, the fine one not trained yet."""
    stock, processor = vlm.load("mini-1d")
    encoder = stock.model.vision_tower
    images = processor.image_processor
    settings = {"layer": -1, "mean": images.image_mean, "std": images.image_std}
    coarse = build_expert(expert_config("coarse", "clip", encoder.config, **settings))
    coarse.encoder.load_state_dict(encoder.state_dict())
    config = CLIPVisionConfig.from_dict(
        {**encoder.config.to_dict(), "image_size": SIZE, "patch_size": 16}
    )
    fine = build_expert(expert_config("fine", "clip", config, **settings))
    weights = encoder.state_dict()
    (kernel,) = (name for name in weights if name.endswith("patch_embedding.weight"))
    spread = weights[kernel].repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    fine.encoder.load_state_dict({**weights, kernel: spread})
    return {"coarse": coarse, "fine": fine}


def build(names: tuple[str, ...], by: str | None, made: dict[str, Expert]) -> tuple[Any, Any]:
    """A model of some experts, with the embedded model's language model and projector.

    by: how the tokens of the fine expert share positions, if there are both.
    """
    stock, _ = vlm.load("mini-1d")
    old = from_llava(stock)
    language_model = AutoModelForCausalLM.from_config(old.config.text_config)
    language_model.model.load_state_dict(old.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(old.lm_head.state_dict())
    tokenizer = mini.build_tokenizer()
    scheme = {"fine": {"type": "Compact", "by": by}} if by else {}
    own = [copy.deepcopy(made[name]) for name in names]
    with torch.random.fork_rng():
        torch.manual_seed(0)  # of the embedding of <video>
        model = assemble(language_model, own, tokenizer, {"scheme": scheme})
    projector = old.model.fusion
    for name in names:
        model.model.fusion.first[name].load_state_dict(projector.first["clip"].state_dict())
    model.model.fusion.second.load_state_dict(projector.second.state_dict())
    processor = FoveateProcessor.for_model(
        model.config, tokenizer, chat_template=mini.CHAT_TEMPLATE
    )
    return model, processor


def pictures(seeds: np.ndarray) -> list[Image.Image]:
    """Training scenes in full size."""
    return [draw(make_scene(int(seed)), SIZE) for seed in seeds]


def schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: a short warm-up, then down to nothing."""
    return min(1.0, (step + 1) / 20) * (1 - step / steps)


def learn(name: str, parts: list[Any], plan: dict[str, Any], loss_of: Any) -> list[dict[str, Any]]:
    """Train some modules; returns a line of the log every 50 steps."""
    weights = [p for part in parts for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=plan["lr"], betas=(0.9, 0.98), weight_decay=0.01)
    rng = np.random.default_rng(0)
    began, used, log = time.time(), time.process_time(), []
    for step in range(plan["steps"]):
        seeds = np.arange(plan["batch"]) + 100_000 + step * plan["batch"]
        loss, right = loss_of(seeds, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = plan["lr"] * schedule(step, plan["steps"])
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 50 == 0:
            line = {"part": name, "step": step + 1, "loss": round(float(loss.detach()), 4)}
            spent = {"seconds": time.time() - began, "cpu": time.process_time() - used}
            log.append({**line, **{k: round(v, 1) for k, v in spent.items()}, "right": right})
            print(json.dumps(log[-1]), flush=True)
    return log


def teach_fine(coarse: Expert, fine: Expert, work: Path) -> list[dict[str, Any]]:
    """Train the fine expert to name what each grid cell shows. Returns the log."""
    path = work / "encoder.safetensors"
    if path.is_file():
        fine.encoder.load_state_dict(load_file(path))
        return json.loads(path.with_suffix(".json").read_text())
    torch.manual_seed(0)
    heads = CellHeads(fine.width)
    fine.encoder.requires_grad_(True)
    _, processor = build(("coarse", "fine"), "all", {"coarse": coarse, "fine": fine})

    def loss_of(seeds: np.ndarray, _: np.random.Generator) -> tuple[Tensor, Any]:
        fields = torch.tensor(np.stack([cell_labels(make_scene(int(seed))) for seed in seeds]))
        pixels = processor(images=pictures(seeds))["pixel_values"]
        hidden = fine.encoder(pixels["fine"]).last_hidden_state
        with torch.no_grad():
            near = coarse.encoder(pixels["coarse"]).last_hidden_state
        loss, right = heads.loss(hidden, fields)
        apart = functional.mse_loss(hidden, near) / near.var()
        return apart + 0.1 * loss, {k: round(float(v), 3) for k, v in right.items()}

    log = learn("vision encoder", [fine.encoder, heads], VISION, loss_of)
    fine.freeze()
    save_file(fine.encoder.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(log))
    return log


def widened(batch: Batch, prefix: int, by: str) -> Batch:
    """A batch with the fine tokens after the coarse ones, at positions shared `by`."""
    start, side = prefix + TOKENS, mini.GRID
    count = {"all": 1, "row": side, "original": TOKENS}[by]
    more = torch.arange(count).repeat_interleave(TOKENS // count) + start
    places = (
        batch.positions[..., :start],
        more.expand(3, len(batch.ids), -1),
        batch.positions[..., start:] + count,
    )
    # New rows and columns copy the last coarse token's, but are causal among themselves.
    index = torch.cat(
        [
            torch.arange(start),
            torch.full((TOKENS,), start - 1),
            torch.arange(start, batch.mask.shape[-1]),
        ]
    )
    mask = batch.mask[:, :, index][..., index]
    fine = torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril()
    mask[:, :, start : start + TOKENS, start : start + TOKENS] = fine
    mask[:, :, :start, start : start + TOKENS] = False
    return Batch(batch.ids, batch.labels, torch.cat(places, 2), mask)


def teach(
    name: str, by: str | None, model: Any, processor: Any, work: Path
) -> list[dict[str, Any]]:
    """Train the fusion and the language model on questions. The experts are frozen."""
    path = work / f"{name}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path), strict=False)
        return json.loads(path.with_suffix(".json").read_text())

    def loss_of(seeds: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Any]:
        given = processor(images=pictures(seeds))
        visual = torch.stack(model.get_image_features(given["pixel_values"]).pooler_output)
        rows = [turns_of(IMAGE, int(s), rng, captioned=False, letters=0.0, rounds=2) for s in seeds]
        where, after = original_positions(IMAGE, "1d")
        batch = pack(rows, where.expand(len(seeds), -1, -1), after)
        prefix = batch.positions.shape[2] - TOKENS - batch.ids.shape[1]
        if by:
            batch = widened(batch, prefix, by)
        loss, right = answer_loss(model, batch, visual)
        return loss, round(float(right), 3)

    model.train()
    log = learn(name, [model], JOINT, loss_of)
    model.eval()
    learned = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    save_file(learned, path)
    path.with_suffix(".json").write_text(json.dumps(log))
    return log


def large(seed: int, split: Split) -> Image.Image:
    """Draw a scene of the benchmark in full size."""
    return draw(make_scene(seed, split), SIZE)


@dataclass(frozen=True)
class Large(Embedded):
    """The embedded benchmark with larger pictures."""

    name: ClassVar[str] = "embedded-large"

    def load(self) -> Loaded:
        """Draw the samples."""
        loaded = super().load()
        drawn = (partial(large, int(s.cluster[1:]), self.split) for s in loaded.samples)
        pairs = zip(loaded.samples, drawn, strict=True)
        return replace(loaded, samples=[replace(s, media=(Drawing(make),)) for s, make in pairs])


def main(argv: list[str] | None = None) -> int:
    """Train, ask, compare, write."""
    parser = argparse.ArgumentParser(prog="python -m scripts.study_experts", description=__doc__)
    parser.add_argument("--scenes", type=int, default=300, help="of the test split")
    parser.add_argument("--method", default="foveate")
    add_folders(parser, work="out/study-experts")
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    made = experts()
    log = teach_fine(made["coarse"], made["fine"], args.work)
    arms = [DENSE, *(Arm(args.method, budget) for budget in BUDGETS)]
    benchmark = Large("test", args.scenes, clips=0)
    results, units, count = {}, {}, 0
    for name, (members, by) in MODELS.items():
        model, processor = build(members, by, made)
        log += teach(name, by, model, processor, args.work)
        answerer = ModelAnswerer(model, processor, name)
        own = arms if len(members) > 1 else [a for a in arms if a.budget != TOKENS]
        asked = Asked(benchmark, answerer, own, args.work / "answers")
        results[name], count = [asdict(row) for row in asked.results()], len(asked.samples)
        for arm in own:
            tokens = TOKENS * len(members) if arm is DENSE else arm.budget
            units[name, tokens] = asked.units(arm)
    duels = [
        {"tokens": tokens, "against": name, **against(units[name, tokens], units["both", tokens])}
        for tokens in (2 * TOKENS, *BUDGETS)
        for name in MODELS
        if name != "both" and (name, tokens) in units
    ]
    report = facts(
        "study_experts",
        argv,
        questions=count,
        recipe={"vision": VISION, "joint": JOINT},
        results=results,
        both_against=duels,
        training=log,
    )
    render(write_json(args.output / "experts.json", report), args.output / "experts")
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Write the tables and the picture of a report."""
    results = {k: [result_of(row) for row in rows] for k, rows in found["results"].items()}
    parts = [f"{name}\n{table(rows)}" for name, rows in results.items()]
    lines = [
        "both (one position) against   tokens  won  lost  difference      95% interval       p"
    ]
    lines += [
        f"{d['against']:28}{d['tokens']:>8}{d['gained']:>5}{d['lost']:>6}"
        f"{100 * d['difference']:>+11.1f}{100 * d['low']:>+9.1f} .. {100 * d['high']:<+6.1f}"
        f"{d['p']:>9.2g}"
        for d in found["both_against"]
    ]
    duels = "\n".join(lines)
    write_table(path, "\n\n".join([*parts, duels]))
    write_table(path.with_name(f"{path.name}-short"), duels)
    picture(results, path.with_suffix(".png"))


def picture(results: dict[str, Any], path: Path) -> None:
    """Draw accuracy against tokens, one line a model."""
    figure, axes = canvas(5.5, 3.4)
    for number, (name, rows) in enumerate(results.items()):
        points = sorted((row.figures["tokens"], row.accuracy) for row in rows)
        tokens = [t * 1.03 ** (number - 2) for t, _ in points]
        means = [100 * a.mean for _, a in points]
        errors = [
            [100 * (a.mean - a.low) for _, a in points],
            [100 * (a.high - a.mean) for _, a in points],
        ]
        axes.errorbar(tokens, means, yerr=errors, fmt="osD^v"[number] + "-", label=name, capsize=2)
    axes.set_xscale("log")
    axes.set_xticks([16, 48, 144, 288], ["16", "48", "144", "288"])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens an image, mean over the layers")
    axes.set_ylabel("right answers, % (95% intervals)")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
