"""Position systems that models were not trained with: `python -m scripts.study_systems`.

- `Traversal` (the two orders of 2D-TPE, arXiv 2409.19700): the 1-D sibling of the embedded model,
  and the small judge if it is there (`--small`), count a picture's tokens by column or as a snake.
- `LMInfinite` (arXiv 2308.16137): the 1-D sibling, which learned single pictures, is asked about
  one picture of a stack. The window holds the last picture and the question.
- Untwisting RoPE (arXiv 2602.05013): keys of visual tokens, frequency by frequency, times a factor
  that goes from `fast` for the fastest pair of channels to `slow` for the slowest. It is in no room
  of this package; hooks on the key projections do it here, as the two channels of a pair have one
  factor. Factors are chosen on the validation split, dense and with tokens merged by pooling.

Each is compared with the model as it is, question by question, in a paired test over pictures.
Writes `systems.json` and `systems.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vlm
from compress import compress
from eval.benchmarks.collage import Collage
from eval.benchmarks.embedded import Embedded
from eval.samples import Benchmark, Sample
from eval.statistics import paired
from positions import LMInfinite, Traversal
from positions.channels import inverse_frequencies
from scripts.common import add_folders, facts, write_json, write_table
from scripts.study_needle import Needle, stack
from vlm.families import adapter_of
from vlm.prompts import picture_prompt

Judge = tuple[Any, Any]
Attach = Callable[[Any, Any], AbstractContextManager[Any]]
FACTORS = ((0.7, 1.0), (0.9, 1.1), (0.8, 1.2), (1.1, 0.9), (1.0, 1.2))  # fast, slow
WINDOW = 192  # of the 1-D sibling, which learned one picture of 144 tokens and a question


def ask(
    judge: Judge, benchmark: Benchmark, samples: Sequence[Sample], attach: Attach
) -> list[float]:
    """The score of each question. attach: what is around `generate`, from the model and inputs."""
    model, processor = judge
    scores = []
    for sample in samples:
        pictures = [medium.load() for medium in sample.media]
        inputs = picture_prompt(model, processor, pictures, sample.prompt)
        with attach(model, inputs):
            out = model.generate(**inputs, max_new_tokens=sample.max_new_tokens, do_sample=False)
        said = out[0, inputs["input_ids"].shape[1] :]
        text = processor.tokenizer.decode(said, skip_special_tokens=True)
        scores.append(float(benchmark.score(sample, text).value or 0.0))
    return scores


def plain(model: Any, inputs: Any) -> AbstractContextManager[Any]:
    """The model as it is."""
    return nullcontext()


def placed(positions: Any) -> Attach:
    """All tokens are kept, at other positions."""
    return lambda model, inputs: compress(model, "uniform", 1.0, positions=positions)


def pooled(factors: tuple[float, float] | None) -> Attach:
    """A quarter of the tokens, merged by pooling, with factors of their keys."""

    @contextmanager
    def attach(model: Any, inputs: Any) -> Iterator[None]:
        with compress(model, "pool", 0.25), untwisted(model, inputs, factors):
            yield

    return attach


def dense(factors: tuple[float, float] | None) -> Attach:
    """All tokens, with factors of their keys."""
    return lambda model, inputs: untwisted(model, inputs, factors)


@contextmanager
def untwisted(model: Any, inputs: Any, factors: tuple[float, float] | None) -> Iterator[None]:
    """Keys of visual tokens of one prompt with one picture times a factor for each frequency."""
    if factors is None:
        yield
        return
    ids, adapter = inputs["input_ids"][0], adapter_of(model)
    visual = (ids == adapter.placeholder("image")).nonzero().flatten()
    begin, after = int(visual[0]), len(ids) - int(visual[-1]) - 1
    half = len(inverse_frequencies(adapter.rotary))
    scale = torch.linspace(*factors, half).repeat(2)

    def hook(module: Any, args: Any, keys: Tensor) -> Tensor | None:
        if keys.shape[1] == 1:  # a decoded token
            return None
        keys = keys.clone()
        own = keys[:, begin : keys.shape[1] - after]
        own *= scale.to(keys).repeat(keys.shape[-1] // len(scale))
        return keys

    handles = [layer.self_attn.k_proj.register_forward_hook(hook) for layer in adapter.layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def row(
    names: tuple[str, str],
    scores: tuple[list[float], list[float]],
    at: list[str],
    wanted: list[bool] | None = None,
) -> dict[str, Any]:
    """One line of the table.

    names: of the system and the arm. scores: as it is, and with the system. at: the picture of each
    question. wanted: which questions count; None for all.
    """
    chosen = range(len(at)) if wanted is None else np.flatnonzero(wanted)
    base, own = ([each[n] for n in chosen] for each in scores)
    at = [at[n] for n in chosen]
    system, arm = names
    found = {"system": system, "arm": arm, "questions": len(own)}
    found |= {"as_it_is": float(np.mean(base)), "right": float(np.mean(own))}
    return found | {"against": asdict(paired(base, own, at)), "scores": own}


def traversal(judge: Judge, name: str, benchmark: Benchmark) -> list[dict[str, Any]]:
    """Column and snake order, over all questions and over those about places."""
    samples = benchmark.load().samples
    at = [sample.cluster for sample in samples]
    base, rows = ask(judge, benchmark, samples, plain), []
    where = [s.groups["category"] in ("place", "where", "relation") for s in samples]
    for by in ("column", "snake"):
        own = ask(judge, benchmark, samples, placed(Traversal(by)))
        rows.append(row((f"traversal, {name}", by), (base, own), at))
        names = f"traversal, {name}", f"{by}: places and relations"
        rows.append(row(names, (base, own), at, where))
    return rows


def infinite(judge: Judge, counts: Sequence[int], stacks: int) -> list[dict[str, Any]]:
    """Stacks of pictures, by whether the one that is asked about is the last."""
    rows = []
    for count in counts:
        benchmark = Needle(pictures=count, stacks=stacks)
        samples = benchmark.load().samples
        base = ask(judge, benchmark, samples, plain)
        own = ask(judge, benchmark, samples, placed(LMInfinite(WINDOW)))
        at, last = [s.cluster for s in samples], [is_last(s, count) for s in samples]
        wheres = {"the last": last, "an earlier one": [not one for one in last]}
        for title, wanted in wheres.items():
            if any(wanted):
                names = "LM-Infinite, mini-1d", f"{title} of {count}"
                rows.append(row(names, (base, own), at, wanted))
    return rows


def is_last(sample: Sample, count: int) -> bool:
    """Whether a question is about the last picture of its stack."""
    scenes, _ = stack(int(sample.cluster), count, "test")
    return bool(scenes[-1].sign or scenes[-1].dot)


def untwisting(judge: Judge, scenes: int) -> list[dict[str, Any]]:
    """The factors that are best on the validation split, on test questions; those of all factors on
    the validation split are in `tried`."""
    rows = []
    tune, test = Embedded("val", scenes // 2, 0), Embedded("test", scenes, 0)
    for title, attach in (("dense", dense), ("pool 1/4", pooled)):
        questions = tune.load().samples
        tried = {
            factors: float(np.mean(ask(judge, tune, questions, attach(factors))))
            for factors in (None, *FACTORS)
        }
        best = max(FACTORS, key=lambda factors: tried[factors])
        samples = test.load().samples
        base, own = (ask(judge, test, samples, attach(factors)) for factors in (None, best))
        names = "untwisting, mini", f"{title}, {best[0]} to {best[1]}"
        found = row(names, (base, own), [sample.cluster for sample in samples])
        rows.append(found | {"tried": {str(factors): value for factors, value in tried.items()}})
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_systems", description=__doc__)
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--stacks", type=int, default=60)
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--small", type=int, default=0, help="collages that the small judge sees")
    add_folders(parser, work="out/systems")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    flat = vlm.load("mini-1d")
    rows = traversal(flat, "mini-1d", Embedded("test", args.scenes, 0))
    rows += infinite(flat, args.pictures, args.stacks)
    rows += untwisting(vlm.load("mini"), args.scenes)
    if args.small:
        rows += traversal(vlm.load("small"), "small", Collage("val", args.small))
    report = facts("study_systems", argv, rows=rows)
    path = args.output / "systems"
    render(write_json(path.with_suffix(".json"), report), path)
    return 0


def render(found: dict[str, Any], path: Any) -> None:
    """Accuracy as it is and with each system, and the paired difference."""
    lines = [f"{'':<24}{'':<34}{'questions':>10}{'as it is':>10}{'with it':>9}{'+/-':>8}{'p':>9}"]
    for one in found["rows"]:
        line = f"{one['system']:<24}{one['arm']:<34}{one['questions']:>10}{one['as_it_is']:>10.1%}"
        line += f"{one['right']:>9.1%}{100 * one['against']['difference']:>+8.1f}"
        lines.append(line + f"{one['against']['p']:>9.2g}")
    write_table(path, "\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
