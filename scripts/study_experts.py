"""Two experts beside either of them alone, at equal tokens: `python -m scripts.study_experts`.

`coarse` is the embedded model's own tower (96 px, 12 x 12 cells). `fine` is another of the same
grid that sees twice the pixels (192 px, patches of 16): it starts as the coarse tower with its
patch kernel spread over the larger patch, and learns for some minutes to name what each cell shows
while it stays near what the coarse tower gives (so that one projector fits both). Three models are
then made of the embedded model's language model and projector: each expert alone, and both (MLP
fusion; the fine tokens all stand at one position, as MouSi's SAM tokens may). Each learns from the
same questions for the same number of steps, towers frozen. They answer the embedded benchmark, its
test split drawn at 192 px (the coarse expert gets the same pictures, scaled down), with all tokens
and with the same mean number of tokens an image.

Writes `experts.json` (raw figures), `experts.md` and `experts.png`. An interrupted run goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import shlex
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from eval.records import read_records
from eval.report import table
from eval.runner import open_run, run, versions
from eval.samples import Drawing, Sample
from eval.statistics import paired
from eval.summary import score_all, summarise
from train.mini import FIELDS, Batch, CellHeads, answer_loss, pack
from vlm import mini
from vlm.experts import Expert, build_expert, expert_config
from vlm.model import FoveateProcessor, assemble, from_llava
from vlm.scenes import Split, cell_labels, draw, make_scene

SIZE = 192
CELLS = 144
MODELS = {"coarse": ("coarse",), "fine": ("fine",), "both": ("coarse", "fine")}
BUDGETS = (144, 48, 16)
VISION = {"steps": 150, "batch": 16, "lr": 5e-4}
JOINT = {"steps": 80, "batch": 8, "lr": 3e-4}


def experts() -> dict[str, Expert]:
    """Both experts; the fine one before it learned anything of its own."""
    stock, processor = vlm.load("mini")
    tower = stock.model.vision_tower
    images = processor.image_processor
    settings = {"layer": -1, "mean": images.image_mean, "std": images.image_std}
    coarse = build_expert(expert_config("coarse", "clip", tower.config, **settings))
    coarse.tower.load_state_dict(tower.state_dict())
    config = CLIPVisionConfig.from_dict(
        {**tower.config.to_dict(), "image_size": SIZE, "patch_size": 16}
    )
    fine = build_expert(expert_config("fine", "clip", config, **settings))
    weights = tower.state_dict()
    (kernel,) = (name for name in weights if name.endswith("patch_embedding.weight"))
    spread = weights[kernel].repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    fine.tower.load_state_dict({**weights, kernel: spread})
    return {"coarse": coarse, "fine": fine}


def build(names: tuple[str, ...], made: dict[str, Expert]) -> tuple[Any, Any]:
    """A model of some experts, with the embedded model's language model and projector."""
    stock, _ = vlm.load("mini")
    old = from_llava(stock)
    language_model = AutoModelForCausalLM.from_config(old.config.text_config)
    language_model.model.load_state_dict(old.model.language_model.state_dict())
    language_model.lm_head.load_state_dict(old.lm_head.state_dict())
    tokenizer = mini.build_tokenizer()
    scheme = {"fine": {"type": "Compact", "by": "all"}} if len(names) > 1 else {}
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
    """Train some modules; returns a line of the log every 20 steps."""
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
        if (step + 1) % 20 == 0:
            line = {"part": name, "step": step + 1, "loss": round(float(loss.detach()), 4)}
            spent = {"seconds": time.time() - began, "cpu": time.process_time() - used}
            log.append({**line, **{k: round(v, 1) for k, v in spent.items()}, "right": right})
            print(json.dumps(log[-1]), flush=True)
    return log


def teach_fine(coarse: Expert, fine: Expert, work: Path) -> list[dict[str, Any]]:
    """The fine expert learns what each cell shows."""
    path = work / "tower.safetensors"
    if path.is_file():
        fine.tower.load_state_dict(load_file(path))
        return json.loads(path.with_suffix(".json").read_text())
    torch.manual_seed(0)
    heads = CellHeads(fine.width)
    fine.tower.requires_grad_(True)
    _, processor = build(("coarse", "fine"), {"coarse": coarse, "fine": fine})

    def loss_of(seeds: np.ndarray, _: np.random.Generator) -> tuple[Tensor, Any]:
        labels = [cell_labels(make_scene(int(seed))) for seed in seeds]
        fields = torch.tensor(np.stack([[getattr(x, f) for f in FIELDS] for x in labels]))
        pixels = processor(images=pictures(seeds))["pixel_values"]
        hidden = fine.tower(pixels["fine"]).last_hidden_state
        with torch.no_grad():
            near = coarse.tower(pixels["coarse"]).last_hidden_state
        loss, right = heads.loss(hidden, fields)
        apart = functional.mse_loss(hidden, near) / near.var()
        return apart + 0.1 * loss, {k: round(v, 3) for k, v in right.items()}

    log = learn("fine", [fine.tower, heads], VISION, loss_of)
    fine.freeze()
    save_file(fine.tower.state_dict(), path)
    path.with_suffix(".json").write_text(json.dumps(log))
    return log


def widened(batch: Batch, prefix: int) -> Batch:
    """The same with the fine expert's cells after the coarse one's, all at one position."""
    start, more = prefix + CELLS, torch.full((len(batch.ids), CELLS), prefix + CELLS)
    places = (batch.positions[:, :start], more, batch.positions[:, start:] + 1)
    # New rows and columns are like the last coarse cell's, but causal among themselves.
    index = torch.cat(
        [
            torch.arange(start),
            torch.full((CELLS,), start - 1),
            torch.arange(start, batch.mask.shape[-1]),
        ]
    )
    mask = batch.mask[:, :, index][..., index]
    fine = torch.ones(CELLS, CELLS, dtype=torch.bool).tril()
    mask[:, :, start : start + CELLS, start : start + CELLS] = fine
    mask[:, :, :start, start : start + CELLS] = False
    return Batch(batch.ids, batch.labels, torch.cat(places, 1), mask, batch.cells)


def teach(name: str, model: Any, processor: Any, work: Path) -> list[dict[str, Any]]:
    """Fusion and language model learn from questions; the towers do not."""
    path = work / f"{name}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path), strict=False)
        return json.loads(path.with_suffix(".json").read_text())

    def loss_of(seeds: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Any]:
        given = processor(images=pictures(seeds))
        visual = torch.stack(model.get_image_features(given["pixel_values"]).pooler_output)
        batch = pack(seeds, torch.arange(CELLS).expand(len(seeds), -1), rng, captions=0.15)
        prefix = batch.positions.shape[1] - CELLS - batch.ids.shape[1]
        if visual.shape[1] > CELLS:
            batch = widened(batch, prefix)
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
    """A scene of the benchmark, drawn in full size."""
    return draw(make_scene(seed, split), SIZE)


def questions(scenes: int) -> tuple[Embedded, list[Sample]]:
    """The embedded benchmark with larger pictures."""
    benchmark = Embedded("test", scenes)
    samples = [
        replace(sample, media=(Drawing(partial(large, int(sample.cluster), "test")),))
        for sample in benchmark.load().samples
    ]
    return benchmark, samples


def main(argv: list[str] | None = None) -> int:
    """Train, ask, compare, write."""
    parser = argparse.ArgumentParser(prog="python -m scripts.study_experts", description=__doc__)
    parser.add_argument("--scenes", type=int, default=100, help="of the test split")
    parser.add_argument("--method", default="foveate")
    parser.add_argument("--work", type=Path, default=Path("out/study-experts"))
    parser.add_argument("--output", type=Path, default=Path("docs/results"))
    args = parser.parse_args(argv)
    args.work.mkdir(parents=True, exist_ok=True)
    made = experts()
    log = teach_fine(made["coarse"], made["fine"], args.work)
    benchmark, samples = questions(args.scenes)
    arms = [DENSE, *(Arm(args.method, budget) for budget in BUDGETS)]
    results, units = {}, {}
    sizes: Any = {"batch_size": 20, "seed": 0}
    for name, members in MODELS.items():
        model, processor = build(members, made)
        log += teach(name, model, processor, args.work)
        answerer = ModelAnswerer(model, processor, name)
        own = arms if len(members) > 1 else [a for a in arms if a.budget != CELLS]
        folder = open_run(args.work / "answers", benchmark, samples, answerer, **sizes)
        run(folder, samples, answerer, own, **sizes)
        records = {arm: read_records(folder / arm.folder) for arm in own}
        results[name] = summarise(benchmark, samples, records)
        for arm in own:
            tokens = CELLS * len(members) if arm is DENSE else arm.budget
            units[name, tokens] = benchmark.units(score_all(benchmark, samples, records[arm]))
    duels = []
    for tokens in BUDGETS:
        for name in ("coarse", "fine"):
            alone, both = units[name, tokens], units["both", tokens]
            values = ([u.value for u in alone], [u.value for u in both])
            found = paired(*values, [u.cluster for u in alone])
            duels.append({"tokens": tokens, "against": name, **asdict(found)})
    text = write(args, results, duels, log, len(samples), argv)
    print(text)
    return 0


def write(
    args: Any, results: dict[str, Any], duels: Any, log: Any, asked: int, argv: list[str] | None
) -> str:
    """The files; returns the text of `experts.md`."""
    parts = [f"{name}\n{table(rows)}" for name, rows in results.items()]
    lines = ["both against   tokens  won  lost  difference      95% interval       p"]
    lines += [
        f"{d['against']:13}{d['tokens']:>8}{d['gained']:>5}{d['lost']:>6}"
        f"{100 * d['difference']:>+11.1f}{100 * d['low']:>+9.1f} .. {100 * d['high']:<+6.1f}"
        f"{d['p']:>9.2g}"
        for d in duels
    ]
    text = "\n\n".join([*parts, "\n".join(lines)])
    facts = {
        "command": shlex.join(["python", "-m", "scripts.study_experts", *(argv or sys.argv[1:])]),
        "questions": asked,
        "recipe": {"vision": VISION, "joint": JOINT},
        "versions": versions(),
        "hardware": {"machine": platform.machine(), "cores": os.cpu_count(), "gpu": None},
        "results": {name: [asdict(row) for row in rows] for name, rows in results.items()},
        "both_against": duels,
        "training": log,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "experts.json"
    path.write_text(json.dumps(facts, indent=1, default=repr) + "\n")
    path.with_suffix(".md").write_text(f"```\n{text}\n```\n")
    picture(results, path.with_suffix(".png"))
    return text


def picture(results: dict[str, Any], path: Path) -> None:
    """Accuracy against tokens, a line a model."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, (name, rows) in enumerate(results.items()):
        found = sorted((row.figures["tokens"], row.accuracy) for row in rows)
        tokens = [t * 1.03 ** (number - 1) for t, _ in found]
        means = [100 * a.mean for _, a in found]
        errors = [
            [100 * (a.mean - a.low) for _, a in found],
            [100 * (a.high - a.mean) for _, a in found],
        ]
        axes.errorbar(tokens, means, yerr=errors, fmt="osD"[number] + "-", label=name, capsize=2)
    axes.set_xscale("log")
    axes.set_xticks([16, 48, 144, 288], ["16", "48", "144", "288"])
    axes.minorticks_off()
    axes.set_xlabel("visual tokens an image, mean over the layers")
    axes.set_ylabel("right answers, % (95% intervals)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
