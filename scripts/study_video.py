"""The order of events in a long video: `python -m scripts.study_video`.

The embedded model was trained on clips of four frames. Here the frames of a clip of the test split
are put at random places of a longer video, in order, with empty frames between them. The model is
asked, training-free, which of three shapes is seen first or last. Positions are one a frame
(M-RoPE), with the time axis divided by a factor, or with all axes divided so that time stays within
the trained range (linear RoPE scaling).

Writes `video.json` (raw figures, versions, hardware, command), `video.md` and `video.png`. An
interrupted run is resumed by the same command.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import vlm
from compress.parse import split_list
from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import as_video
from eval.samples import Drawing, Loaded, Sample
from scripts.common import add_folders, against, facts, mean, write_json
from scripts.study_needle import Exact, ask, curves, scaled
from vlm.embedded.scenes import FRAMES, Clip, Split, clip_questions, draw_clip, make_clip
from vlm.media import Video


@dataclass(frozen=True)
class LongClip(Exact):
    """Questions about order in clips stretched to `frames` frames, one second apart."""

    frames: int = FRAMES
    clips: int = 100
    split: Split = "test"

    name: ClassVar[str] = "long-clip"

    def load(self) -> Loaded:
        """Draw the clips."""
        samples = []
        for seed in range(self.clips):
            clip = make_clip(seed, self.split)
            for number, asked in enumerate(clip_questions(clip, np.random.default_rng((seed, 7)))):
                samples.append(
                    Sample(
                        key=f"{seed:04d}-{number}",
                        prompt=asked.text,
                        media=(Drawing(partial(_drawn, seed, self), "video"),),
                        answer=asked.answer,
                        groups={"category": asked.category},
                        cluster=f"{seed:04d}",
                        max_new_tokens=8,
                    )
                )
        return Loaded(samples)


def _drawn(seed: int, asked: LongClip) -> Video:
    clip = make_clip(seed, asked.split)
    rng = np.random.default_rng((seed, asked.frames, 13))
    places = sorted(rng.permutation(asked.frames)[:FRAMES].tolist())
    frames = [replace(clip.frames[0], items=())] * asked.frames
    for place, frame in zip(places, clip.frames, strict=True):
        frames[place] = frame
    return as_video(draw_clip(Clip(tuple(frames))))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.study_video", description=__doc__)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--frames", default="4,8,16,32")
    parser.add_argument("--stretches", default="1/2,1/4,1/8", help="of the time axis")
    parser.add_argument("--clips", type=int, default=100)
    add_folders(parser, work="out/video")
    args = parser.parse_args(argv)
    model, processor = vlm.load(args.model)
    arms = {"time x 1": DENSE}
    for stretch in split_list(args.stretches):
        arms[f"time x {stretch}"] = Arm("random", 1.0, f"mrope:x{stretch}")
    rows = []
    for frames in (int(text) for text in split_list(args.frames)):
        benchmark = LongClip(frames=frames, clips=args.clips)
        factor = max(1.0, frames / FRAMES)
        linear = scaled(Path(model.name_or_path), factor)
        asked = {"plain": (model, arms), f"linear {factor:g}": (linear, {"linear": DENSE})}
        units = ask(benchmark, asked, processor, args.work)
        for title, own in units.items():
            beside = against(units["time x 1"], own)
            row = {"frames": frames, "positions": title, "accuracy": mean(own), "against": beside}
            rows.append({**row, "questions": len(own)})
    report = facts("study_video", argv, rows=rows)
    render(write_json(args.output / "video.json", report), args.output / "video")
    return 0


def render(found: dict[str, Any], path: Path) -> None:
    """Write the table and the picture of a report."""
    label = "frames of 144 tokens in the video (dotted: what it learned from)"
    curves(found["rows"], "frames", FRAMES, "time x", label, path)


if __name__ == "__main__":
    sys.exit(main())
