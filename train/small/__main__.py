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
from train.small.see import learn_to_see
from vlm.embedded.collage import Pictures, Split
from vlm.embedded.small import CACHE, PARTS, PartsError, assemble_parts, load
from vlm.experts import Expert

VALIDATION = 240  # scenes


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m train.small", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=CACHE, help="what `vlm prepare` has made")
    parser.add_argument("--scenes", type=int, default=8000, help="of the training split")
    parser.add_argument("--align", type=int, default=2000, help="steps of the projector alone")
    parser.add_argument("--see", type=int, default=500, help="steps of the encoder's last blocks")
    parser.add_argument("--learn", type=int, default=1500, help="steps of learning, in all")
    parser.add_argument("--pool", type=int, default=2, choices=(1, 2, 4), help="patches on a side")
    parser.add_argument(
        "--from-shipped",
        action="store_true",
        help="go on from the shipped language model, and with --align 0 from its projector",
    )
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
    """The stages, each left out where its result lies in the output folder."""
    out: Path = args.output
    out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(args.cache / "collage")
    parts = args.cache / "small" / "parts"
    model: Any
    model, processor = load(parts) if args.from_shipped else assemble_parts(parts)
    words = Words(model.get_input_embeddings().weight, processor.tokenizer)
    expert, fusion = model.model.experts["dino"], model.model.fusion
    aligned = out / "projector.safetensors"
    if args.align and not aligned.is_file():
        if args.from_shipped:  # the projector that is not shipped: alignment starts at the parts
            fusion.load_state_dict(assemble_parts(parts)[0].model.fusion.state_dict())
        features = encoded(args, "frozen-" if args.see else "", expert, pictures)
        align(fusion, words, features["train"], pictures, args.align, out / "align.log")
        save_file(fusion.state_dict(), aligned)
    if args.align:
        fusion.load_state_dict(load_file(aligned))
    model = model.to(torch.bfloat16)
    seen = learn_to_see(model, words, pictures, args.scenes, args.see, out)
    features = encoded(args, "", expert, pictures)
    labels = labels_of(pictures, "val", range(len(features["val"])))
    print("patches named right:", measure(fusion, words, features["val"], labels), flush=True)
    learn(model, processor.tokenizer, features, pictures, out, args.learn, args.pool)
    if args.export:
        states = [seen, out / "state.safetensors"]
        untrained, _ = assemble_parts(parts)
        export(untrained, processor.tokenizer, pictures, states, args.export, {"parts": PARTS})


def encoded(
    args: argparse.Namespace, prefix: str, expert: Expert, pictures: Pictures
) -> dict[Split, Features]:
    """Features of the training and validation scenes, encoded where they do not lie there yet."""
    counts: dict[Split, int] = {"train": args.scenes, "val": VALIDATION}
    files = {s: Features(args.output / f"{prefix}{s}.features", expert.width) for s in counts}
    for split, count in counts.items():
        for number in write(files[split], expert, pictures, split, count):
            print(f"{split}: {number} of {count} scenes", flush=True)
    return files


if __name__ == "__main__":
    sys.exit(main())
