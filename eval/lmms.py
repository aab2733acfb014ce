"""A model class for lmms-eval, to run its tasks on a reduced model.

    lmms-eval --model foveate --model_args pretrained=./out,method=duet,budget=64 --tasks pope

Found through the entry point of `eval.lmms_plugin`. Needs the package lmms-eval.
"""

from __future__ import annotations

import zlib
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms

import vlm
from compress.parse import parse_budget, parse_method
from eval.answerers import ModelAnswerer, Question
from eval.arms import DENSE, Arm
from vlm import read_image, read_video
from vlm.progress import progress_bar


class Foveate(lmms):
    """A transformers model with a compression, or dense without `method`.

    Args:
        pretrained: as in `vlm.load`.
        method, budget, positions: as in `compress`; the budget can also be "1/9" or "11%".
        frames: evenly spaced frames of a video; with fps, the largest number of frames.
        dtype, device: of the model; the default device is the GPU of this process, if any.
        batch_size: questions at a time.
        max_batch_size: not used; the harness passes it.

    Raises ValueError or TypeError for an unknown argument, before the model loads.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str = "mini",
        method: str | None = None,
        budget: str | int | float = 0.25,
        positions: str = "original",
        frames: int = 32,
        fps: float | None = None,
        dtype: str = "float32",
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(f"model_args: no option {', '.join(unknown)}")
        self.arm = DENSE
        if method is not None:
            count = parse_budget(budget) if isinstance(budget, str) else budget
            self.arm = Arm(parse_method(method), count, positions)
        self.frames, self.fps = int(frames), fps
        self.batch_size = int(batch_size)
        self.accelerator = Accelerator()
        self._rank = self.accelerator.process_index
        self._world_size = self.accelerator.num_processes
        where = torch.device(device) if device else self.accelerator.device
        model, processor = vlm.load(pretrained, dtype=getattr(torch, dtype), device=where)
        self.answerer = ModelAnswerer(model, processor, pretrained, share_vision=False)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """One text for each request, in order."""
        texts = []
        steps = range(0, len(requests), self.batch_size)
        for start in progress_bar(steps, disable=self.rank != 0, desc=self.arm.title):
            batch = requests[start : start + self.batch_size]
            questions = [self._question(request) for request in batch]
            seed = zlib.crc32(f"{batch[0].args[3:]}".encode())
            replies = self.answerer.answer(questions, self.arm, seed)
            for request, reply in zip(batch, replies, strict=True):
                text = reply.text
                for stop in _stops(request.args[2]):
                    text = text.split(stop)[0]
                texts.append(text)
        return texts

    def _question(self, request: Instance) -> Question:
        _, to_messages, options, number, task, split = request.args
        if (
            options.get("do_sample")
            or options.get("temperature")
            or options.get("num_beams", 1) > 1
        ):
            raise ValueError(f"task {task} asks for sampling or beams; foveate answers greedily")
        messages = to_messages(self.task_dict[task][split][number])
        if [message["role"] for message in messages] != ["user"]:
            raise ValueError(f"task {task}: expected one message of the user, got {len(messages)}")
        parts = tuple(self._part(part, task) for part in messages[0]["content"])
        limit = int(options.get("max_new_tokens", 128))
        return Question("", (), limit, parts)

    def _part(self, part: dict[str, Any], task: str) -> Any:
        if part["type"] == "text":
            return part["text"]
        if part["type"] == "image":
            return read_image(part["url"])
        if part["type"] == "video" and isinstance(part["url"], str):
            if self.fps is not None:
                return read_video(part["url"], fps=self.fps, max_frames=self.frames)
            return read_video(part["url"], self.frames)
        raise ValueError(f"task {task} contains a {part['type']} that foveate cannot read")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not supported: reductions are evaluated by generation."""
        raise NotImplementedError("foveate has generate_until only; choose a task that generates")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not supported."""
        raise NotImplementedError("foveate has generate_until only; choose a task of one round")


def _stops(options: dict[str, Any]) -> list[str]:
    until = options.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop.strip()]
