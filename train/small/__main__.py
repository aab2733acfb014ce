"""`python -m train.small --output out/small`: trains the small judge, resumed where it stopped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from train.small.align import Words, align, labels_of, measure
from train.small.export import export
from train.small.features import Features, write
from train.small.learn import learn
from vlm.embedded.collage import Pictures, Split
from vlm.embedded.small import CACHE, PARTS, PartsError, assemble_parts, load


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.small", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE, help="what `vlm prepare` has made")
    parser.add_argument("--scenes", type=int, default=4000, help="of the training split")
    parser.add_argument("--steps", type=int, default=900, help="of the alignment")
    parser.add_argument("--minutes", type=float, default=60, help="of learning, in all")
    parser.add_argument("--pool", type=int, default=2, choices=(1, 2, 4), help="patches on a side")
    parser.add_argument("--from-shipped", action="store_true", help="go on from what is shipped")
    parser.add_argument(
        "--export", type=Path, help="write what was learned to this file at the end"
    )
    args = parser.parse_args(argv)
    try:
        run(args)
    except (PartsError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """The three stages, each left out where its result lies in the output folder."""
    out: Path = args.output
    out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(args.cache / "collage")
    parts = args.cache / "small" / "parts"
    model: Any
    model, processor = load(parts) if args.from_shipped else assemble_parts(parts)
    expert, fusion = model.model.experts["dino"], model.model.fusion
    counts: dict[Split, int] = {"train": args.scenes, "val": 240}
    features = {split: Features(out / f"{split}.features", expert.width) for split in counts}
    for split, count in counts.items():
        for number in write(features[split], expert, pictures, split, count):
            print(f"{split}: {number} of {count} scenes", flush=True)
    aligned = out / "projector.safetensors"
    if args.from_shipped:
        pass
    elif aligned.is_file():
        fusion.load_state_dict(load_file(aligned))
    else:
        words = Words(model.get_input_embeddings().weight, processor.tokenizer)
        align(fusion, words, features["train"], pictures, args.steps, out / "align.log")
        labels = labels_of(pictures, "val", range(len(features["val"])))
        print("patches named right:", measure(fusion, words, features["val"], labels), flush=True)
        save_file(fusion.state_dict(), aligned)
    model = model.to(torch.bfloat16)
    learn(model, processor.tokenizer, features, pictures, out, 60 * args.minutes, args.pool)
    if args.export:
        untrained, _ = assemble_parts(parts)
        export(untrained, out / "state.safetensors", args.export, {"parts": PARTS})


if __name__ == "__main__":
    sys.exit(main())
