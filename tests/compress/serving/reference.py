"""Answers of transformers with `compress`, which vLLM's are compared with.

    python -m tests.compress.serving.reference

Runs where transformers is as new as `compress` needs; writes to `cases.FOLDER`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import vlm
from compress import compress
from compress.methods import METHODS, Method
from tests.compress.serving import tiny
from tests.compress.serving.cases import CASES, FOLDER, SCENES, TOKENS, Served, load, metadata
from vlm.embedded.scenes import draw, make_scene, questions


def main() -> None:
    """Write images, models and answers."""
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    asked = [_scene(number) for number in range(SCENES)]
    models: dict[str, Any] = {}
    answers = {}
    for case in CASES:
        if case.model not in models:
            models[case.model] = _model(case.model)
        model, processor = models[case.model]
        requests = _requests(case, processor, asked)
        for request in requests:
            _answer(model, processor, request, _how(case))
        answers[case.name] = requests
    model, processor = models["mini-1d"]
    first = dict(answers[CASES[0].name][0])
    first["prompt"] = first["prompt"].partition("<image>")[0] + "<image>"
    _answer(model, processor, first, _how(CASES[0]))
    answers["ends-in-an-image"] = [first]
    (FOLDER / "answers.json").write_text(json.dumps(answers))
    (FOLDER / "kept.txt").write_text(_replayed("compact", FOLDER / "kept.safetensors"))


def _replayed(positions: str, path: Path) -> str:
    """The answer of examples/replay_kept.py, which writes its file to `path`."""
    command = [sys.executable, "examples/replay_kept.py", "--positions", positions]
    done = subprocess.run(
        [*command, "--output", str(path)],
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )
    (answer,) = (line for line in done.stdout.splitlines() if line.startswith("compressed:"))
    return answer.partition(":")[2].strip()


def _how(case: Served) -> tuple[Method, int | float, str]:
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in case.settings.items()}
    keep, positions = options.pop("keep"), options.pop("positions")
    return METHODS[options.pop("method")](**options), keep, positions


def _scene(number: int) -> str:
    """The question about a scene, whose picture is written."""
    scene = make_scene(number, "test")
    draw(scene).save(FOLDER / f"{number}.png")
    width, height = 64 + 16 * (number % 5), 64 + 16 * (number % 3)
    draw(scene).resize((width, height)).save(FOLDER / f"{number}-any.png")
    frames = [draw(make_scene(number + step, "test")).resize((96, 96)) for step in range(4)]
    np.save(FOLDER / f"{number}.npy", np.stack([np.asarray(frame) for frame in frames]))
    return questions(scene, np.random.default_rng(number))[0].text


def _model(name: str) -> tuple[Any, Any]:
    model, processor = vlm.load(name) if name == "mini-1d" else tiny.build(name)
    folder = FOLDER / name
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if name.startswith(("mini", "llava")):
        rename(folder / "model.safetensors")
    return model, processor


def rename(path: Path) -> None:
    """Give the vision encoder's weights the names that vLLM 0.32 reads, those of transformers 4."""
    old, new = "vision_tower.", "vision_tower.vision_model."
    weights = {
        name if new in name else name.replace(old, new): value
        for name, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def _requests(case: Served, processor: Any, asked: list[str]) -> list[dict[str, Any]]:
    form = tiny.PROMPTS.get(case.model)
    if form is not None and case.video:
        form = form.replace("image", "video")
    shown = [[n] for n in range(case.requests)]
    shown += [[n, (n + 1) % SCENES] for n in range(case.pairs)]
    requests = []
    ending = ".png" if form is None else ".npy" if case.video else "-any.png"
    for numbers in shown:
        files = [f"{n}{ending}" for n in numbers]
        parts = [{"type": "image"} for _ in numbers]
        if form is not None:
            images = form * len(numbers)
            requests.append({"prompt": f"w1 w2 {images} w{numbers[0]} w9", "images": files})
            continue
        content = [*parts, {"type": "text", "text": asked[numbers[0]]}]
        messages = [{"role": "user", "content": content}]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
        requests.append({"question": asked[numbers[0]], "prompt": prompt, "images": files})
    return requests


def _answer(
    model: Any, processor: Any, request: dict[str, Any], how: tuple[Method, int | float, str]
) -> None:
    method, keep, positions = how
    shown = [load(name) for name in request["images"]]
    media: dict[str, Any] = {"images": shown}
    if isinstance(shown[0], np.ndarray):
        known = [metadata(one) for one in shown]
        options = {"do_sample_frames": False, "video_metadata": known}
        media = {"videos": shown, "videos_kwargs": options}
    inputs = processor(text=request["prompt"], return_tensors="pt", **media)
    with torch.no_grad(), compress(model, method, budget=keep, positions=positions):
        out = model.generate(
            **inputs,
            max_new_tokens=TOKENS,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
        )
    ids = out.sequences[0, inputs["input_ids"].shape[1] :]
    logits = torch.cat(out.logits).float().log_softmax(-1)
    request["ids"] = ids.tolist()
    request["text"] = processor.decode(ids, skip_special_tokens=True)
    request["logprobs"] = logits.gather(1, ids[:, None])[:, 0].tolist()


if __name__ == "__main__":
    main()
