"""`python -m train.mini`: train the embedded model, or one stage of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import train.mini
from train.mini.data import IMAGE, VIDEO, Drawn
from train.mini.stages import STAGES, Trainer


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.mini",
        description=train.mini.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("out/mini"))
    parser.add_argument("--stage", choices=STAGES, help="run this stage alone")
    parser.add_argument("--scenes", type=int, default=24_000, help="how many scenes are drawn")
    parser.add_argument("--clips", type=int, default=4_000, help="how many clips are drawn")
    parser.add_argument("--axes", choices=("mrope", "1d"), default="mrope")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts = {IMAGE: args.scenes, VIDEO: args.clips}
    data = {kind: Drawn.prepare(kind, args.output, count) for kind, count in counts.items()}
    trainer = Trainer(args.output, data, args.seed, args.axes, args.device, args.workers)
    for stage in [args.stage] if args.stage else STAGES:
        trainer.run(stage)
    if args.stage in (None, "joint"):
        trainer.model.cpu().half().save_pretrained(args.output / "model")
        trainer.processor.save_pretrained(args.output / "model")


if __name__ == "__main__":
    main()
