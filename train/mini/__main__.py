"""`python -m train.mini`: train the embedded model, or one stage of it."""

from __future__ import annotations

import argparse
from pathlib import Path

import train.mini
from train.mini.data import IMAGE, VIDEO, Drawn
from train.mini.stages import STAGES, Trainer
from vlm.embedded import mini
from vlm.model import to_llava


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m train.mini",
        description=train.mini.__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=Path("out/mini"))
    parser.add_argument("--stage", choices=STAGES, help="run only this stage")
    parser.add_argument("--scenes", type=int, default=24_000, help="number of scenes")
    parser.add_argument("--clips", type=int, default=4_000, help="number of clips")
    parser.add_argument("--axes", choices=("mrope", "1d"), default="mrope")
    parser.add_argument(
        "--begin",
        type=Path,
        help="start the joint stage from joint.safetensors of a trained model",
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=0, help="processes that make batches")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    counts = {IMAGE: args.scenes, VIDEO: args.clips}
    data = {kind: Drawn.prepare(kind, args.output, count) for kind, count in counts.items()}
    trainer = Trainer(args.output, data, args.seed, args.axes, args.device, args.workers)
    if args.begin:
        trainer.begin(args.begin)
    for stage in [args.stage or "joint"] if args.stage or args.begin else STAGES:
        trainer.run(stage)
    if args.begin or args.stage in (None, "joint"):
        model = trainer.model.cpu()
        stock = args.axes == "1d"
        processor = mini.build_stock_processor() if stock else trainer.processor
        (to_llava(model) if stock else model).half().save_pretrained(args.output / "model")
        processor.save_pretrained(args.output / "model")


if __name__ == "__main__":
    main()
