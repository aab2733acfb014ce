"""Fine-tune with DUET in every forward, under DeepSpeed: what training saw is what inference sees.

python examples/finetune_deepspeed.py                      # the embedded LLaVA on 40 drawn scenes
python examples/finetune_deepspeed.py --steps 300 --processes 8
A model and data of your own: docs/train.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

import vlm
from vlm.embedded.scenes import draw, make_scene, questions

RECIPE = """compress.method=duet compress.budget=48 data.template=chat data.pad_to_square=false
learning_rate.projector=2e-4 learning_rate.language_model=2e-4 optimizer.batch=8
optimizer.micro_batch=8 log.every=1 checkpointing=false data.workers=0"""


def write_data(folder: Path, scenes: int) -> None:
    """Pictures, and conversations about them in LLaVA's form."""
    samples = []
    for seed in range(scenes):
        scene = make_scene(seed)
        draw(scene).save(folder / f"{seed}.png")
        turns = []
        for asked in questions(scene, np.random.default_rng(seed)):
            said = {"human": asked.text, "gpt": asked.answer}
            turns += [{"from": who, "value": text} for who, text in said.items()]
        turns[0]["value"] = "<image>\n" + turns[0]["value"]
        samples.append({"id": str(seed), "image": f"{seed}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(samples))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("finetuned"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    base, data = options.output / "base", options.output / "data"
    data.mkdir(parents=True)
    for part in vlm.load("mini-1d"):
        part.save_pretrained(base)
    write_data(data, 40)
    command = [sys.executable, "-m", "deepspeed.launcher.runner"]
    command += ["--num_accelerators", str(options.processes), "--module", "train", "finetune"]
    command += ["--model", str(base), "--data", str(data / "data.json"), "--media", str(data)]
    command += ["--output", str(options.output / "model"), "--deepspeed", "zero2"]
    subprocess.run([*command, *RECIPE.split(), f"optimizer.steps={options.steps}"], check=True)


if __name__ == "__main__":
    main()
