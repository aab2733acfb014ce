"""Time and memory of a long video: 5, 20 and 60 minutes at one frame a second, to 8,192 tokens.

    python -m scripts.bench_long_video --out docs/bench/long-video.json

A drawn video is written to a file. A model with random weights, whose vision encoder gives 196
tokens a frame, decodes, encodes and reduces it in chunks of 8 frames and then answers a question.
Each figure is measured in a process of its own, on one thread:

    stream       wall clock and processor time of decoding, encoding and reducing; the decoder runs
                 in a child process, whose memory is reported separately
    peak         peak resident set at the end of the stream
    above model  the same, less the resident set with the model loaded

The time of decoding grows with the frames of the file, not with the frames that are used. With
"known", the stream is given the length and reduces each window once. With "unknown" (first method
only) it is not, and reduces the tokens that it has kept repeatedly.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlamaForCausalLM

from compress import stream_video, video_prompt
from scripts.bench_plan import processor as processor_name
from vlm.embedded.mini import build_tokenizer
from vlm.experts import build_expert, expert_config
from vlm.media import Video, iter_video
from vlm.model import FoveateProcessor, assemble

MINUTES = (5, 20, 60)
RATE = 5  # frames a second in the file; one of them is used
SIDE = 224
BUDGET = 8192


def write(path: Path, minutes: float, seed: int = 0) -> None:
    """Write an H.264 video of coloured squares that move and change."""
    import av

    draw = np.random.RandomState(seed)
    with av.open(str(path), "w") as file:
        options = {"preset": "ultrafast", "g": "50"}
        stream: Any = file.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
        ground = draw.randint(0, 255, 3)
        things = draw.randint(0, SIDE - 40, (6, 2))
        colours = draw.randint(0, 255, (6, 3))
        for index in range(round(minutes * 60 * RATE)):
            if index % (20 * RATE) == 0:  # a cut
                ground, colours = draw.randint(0, 255, 3), draw.randint(0, 255, (6, 3))
            picture = np.broadcast_to(ground.astype(np.uint8), (SIDE, SIDE, 3)).copy()
            things = (things + draw.randint(-2, 3, things.shape)).clip(0, SIDE - 40)
            for (top, left), colour in zip(things, colours, strict=True):
                picture[top : top + 40, left : left + 40] = colour
            file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        file.mux(stream.encode())


def build() -> tuple[Any, Any]:
    """An expert model of 4 + 4 layers x 128 with 14 x 14 tokens a frame, and its processor."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=16,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=16384,
        pad_token_id=tokenizer.pad_token_id,
    )
    expert = build_expert(expert_config("clip", "clip", vision))
    model = assemble(LlamaForCausalLM(text), [expert], tokenizer).eval()
    return model, FoveateProcessor.for_model(model.config, tokenizer)


def resident() -> float:
    """Resident set of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def unannounced(path: str) -> Iterator[Video]:
    """The chunks of a file, without its length."""
    for piece in iter_video(path, 8, fps=1.0):
        piece.total = None
        yield piece


def measure(path: str, method: str, known: bool, budget: int) -> dict[str, Any]:
    """Measure one video in this process."""
    torch.set_num_threads(1)
    model, processor = build()
    processor(images=np.zeros((SIDE, SIDE, 3), np.uint8), text="<image>")  # imports and set-up
    before, used, clock = resident(), time.process_time(), time.perf_counter()
    source: Any = path if known else unannounced(path)
    video = stream_video(model, processor, source, method, budget)
    cpu, wall = time.process_time() - used, time.perf_counter() - clock
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    clock = time.perf_counter()
    given = video_prompt(model, processor, "USER: <video>\nWhat ASSISTANT:", [video])
    said = model.generate(**given, max_new_tokens=8, do_sample=False)
    answer = time.perf_counter() - clock
    whole = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    from vlm.media import worker

    worker.close_idle()  # so that the child's resources are counted
    child = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {
        "method": method,
        "length": "known" if known else "unknown",
        "frames": video.grids[0][0],
        "cells": video.dense,
        "tokens": len(video),
        "most_held": video.most,
        "stream_wall_s": wall,
        "stream_cpu_s": cpu,
        "decoder_cpu_s": child.ru_utime + child.ru_stime,
        "answer_wall_s": answer,
        "new_tokens": said.shape[1] - given["input_ids"].shape[1],
        "model_mib": before,
        "peak_mib": peak,
        "above_model_mib": peak - before,
        "peak_with_answer_mib": whole,
        "decoder_peak_mib": child.ru_maxrss / 1024,
        "dense_features_mib": video.dense * 128 * 4 / 2**20,
    }


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw time and memory against minutes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys((row["method"], row["length"]) for row in rows):
        selected = [row for row in rows if (row["method"], row["length"]) == name]
        minutes = [row["minutes"] for row in selected]
        label = f"{name[0]}, length {name[1]}"
        left.plot(minutes, [row["stream_cpu_s"] for row in selected], "o-", label=label)
        right.plot(minutes, [row["above_model_mib"] for row in selected], "o-", label=label)
    right.plot(
        minutes,
        [row["dense_features_mib"] for row in selected],
        "--",
        color="0.6",
        label="all features",
    )
    left.set_ylabel("processor seconds")
    right.set_ylabel("MiB above the model, peak")
    for axes in (left, right):
        axes.set_xlabel("minutes of video")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=90, metadata={"Software": None})


def main() -> None:
    """Measure every length and method, each in a process of its own, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/bench/long-video.json"))
    parser.add_argument("--methods", default="foveate,divprune")
    parser.add_argument("--minutes", type=float, nargs="+", default=list(MINUTES))
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        path, method, length = options.one
        print(json.dumps(measure(path, method, length == "known", options.budget)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for minutes in options.minutes:
            path = Path(folder) / f"{minutes:g}.mp4"
            write(path, minutes)
            for number, method in enumerate(options.methods.split(",")):
                for length in ("known",) if number else ("known", "unknown"):
                    command = [sys.executable, "-m", "scripts.bench_long_video"]
                    command += ["--budget", str(options.budget), "--one", str(path), method, length]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    row = {"minutes": minutes, **json.loads(done.stdout.splitlines()[-1])}
                    rows.append(row)
                    print(
                        f"{minutes:5g} min  {method:9} {length:8}{row['cells']:>8} tokens"
                        f"{row['tokens']:>6} tokens{row['stream_wall_s']:>8.1f} s wall"
                        f"{row['stream_cpu_s']:>8.1f} s cpu{row['above_model_mib']:>8.1f} MiB"
                        f" above model{row['peak_mib']:>8.1f} MiB peak"
                        f"{row['most_held']:>7} held{row['answer_wall_s']:>7.1f} s to answer",
                        flush=True,
                    )
    report = {
        "command": " ".join(["python -m scripts.bench_long_video", *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "hardware": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "load_average": os.getloadavg(),
        },
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    picture(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
