"""Who answers: the small protocol that the runner knows, and the one that asks a real model."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from PIL import Image

from compress import Compression, Method, compress, get_method
from eval.samples import slug


@dataclass(frozen=True)
class Arm:
    """One configuration of a sweep. method None is dense; budget as in `compress`."""

    method: str | Method | None = None
    budget: int | float = 1.0
    positions: str = "home"

    def describe(self) -> dict[str, Any]:
        """The configuration as JSON: the method with all its fields, and the budget."""
        if self.method is None:
            return {"method": None}
        method = repr(get_method(self.method))
        return {"method": method, "budget": self.budget, "positions": self.positions}

    @property
    def title(self) -> str:
        """For tables: "dense", "duet 64", "Duet(query='all') 0.11 compact"."""
        if self.method is None:
            return "dense"
        name = self.method if isinstance(self.method, str) else repr(self.method)
        budget = f"{self.budget:.4g}" if isinstance(self.budget, float) else str(self.budget)
        return f"{name} {budget}" + ("" if self.positions == "home" else f" {self.positions}")

    @property
    def folder(self) -> str:
        """A folder name that tells configurations apart."""
        if self.method is None:
            return "dense"
        digest = hashlib.sha256(repr(sorted(self.describe().items())).encode()).hexdigest()[:6]
        return slug(f"{self.title[:40]}-{digest}")


DENSE = Arm()


@dataclass(frozen=True)
class Question:
    """A sample with its media read: PIL images, or lists of frames with their times."""

    prompt: str
    media: tuple[Any, ...] = ()
    max_new_tokens: int = 16


@dataclass(frozen=True)
class Reply:
    """What came back. `rendered`: the prompt exactly as the model got it, one placeholder an image.

    figures: measured numbers, such as "tokens" (mean visual tokens per visual input over the
    layers), "dense" (without reduction), "seconds" (this question's share of its batch).
    """

    text: str
    rendered: str = ""
    figures: dict[str, float] = field(default_factory=dict)


class Answerer(Protocol):
    """Turns questions into texts."""

    def answer(self, questions: Sequence[Question], arm: Arm, seed: int) -> list[Reply]:
        """One reply a question, in order. The same sequence object may come once for each arm."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies the model and how it generates, as JSON."""
        ...


class ModelAnswerer:
    """Asks a transformers vision-language model through its chat template, greedily.

    Args:
        model: a model with `generate`.
        processor: its processor, with a chat template.
        name: what the model is called in results.

    Raises:
        ValueError: the processor has no chat template.
    """

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(
                f"the processor of {name} has no chat template, so how to ask it is not known; "
                "give it one (processor.chat_template = ...)"
            )
        self.model, self.processor, self.name = model, processor, name
        self._prepared: tuple[Sequence[Question], list[str], Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Name, class, a fingerprint of the weights, dtype, device type and chat template."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "fingerprint": fingerprint(self.model),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": self.model.device.type,
            "chat_template": self.processor.chat_template,
            "generation": "greedy",
        }

    def answer(self, questions: Sequence[Question], arm: Arm, seed: int) -> list[Reply]:
        """Generate the replies of one batch. See `Answerer`."""
        rendered, inputs = self._prepare(questions)
        begin = time.perf_counter()
        with self._attached(arm, seed) as compression, torch.inference_mode():
            out = self.model.generate(
                **inputs,
                max_new_tokens=max(q.max_new_tokens for q in questions),
                do_sample=False,
                num_beams=1,
                temperature=None,
                top_p=None,
                top_k=None,
            )
            if out.is_cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - begin
            figures = {} if compression is None else _measured(compression)
        figures["seconds"] = seconds / len(questions)
        texts = self.processor.batch_decode(
            out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True
        )
        return [Reply(t, r, dict(figures)) for t, r in zip(texts, rendered, strict=True)]

    def _attached(self, arm: Arm, seed: int) -> Any:
        if arm.method is None:
            return nullcontext()
        generator = torch.Generator().manual_seed(seed)
        return compress(
            self.model, arm.method, arm.budget, positions=arm.positions, generator=generator
        )

    def _prepare(self, questions: Sequence[Question]) -> tuple[list[str], Any]:
        """Rendered prompts and model inputs; kept for the other arms of the same batch."""
        if self._prepared is not None and self._prepared[0] is questions:
            return self._prepared[1:]
        rendered = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": _content(q)}], add_generation_prompt=True
            )
            for q in questions
        ]
        images = [[m for m in q.media if isinstance(m, Image.Image)] for q in questions]
        bos = self.processor.tokenizer.bos_token
        begun = bos is not None and rendered[0].startswith(bos)
        inputs = self.processor(
            text=rendered,
            images=images if any(images) else None,
            padding=True,
            padding_side="left",
            add_special_tokens=not begun,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        self._prepared = (questions, rendered, inputs)
        return rendered, inputs


def _content(question: Question) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in question.media]
    return [*parts, {"type": "text", "text": question.prompt}]


def _measured(compression: Compression) -> dict[str, float]:
    """What the compression reports of its last prefill, as flat numbers."""
    report = compression.report()
    cost, dense = report.reduced, report.dense
    return {
        "tokens": report.budget,
        "dense": dense.layers[0] / report.inputs,
        "macs": cost.macs / report.inputs,
        "dense_macs": dense.macs / report.inputs,
        "cache": float(cost.cache),
        "dense_cache": float(dense.cache),
    }


def fingerprint(model: torch.nn.Module) -> str:
    """16 hexadecimal digits that change with the weights: 16 values of each tensor are hashed."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        step = max(1, len(flat) // 16)
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(flat[::step][:16].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
