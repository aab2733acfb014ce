"""Answering questions: the protocol that the runner uses, and its implementation for a model."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

import torch
from PIL import Image
from transformers.video_utils import VideoMetadata

from compress import Compression, compress
from compress.parse import parse_calibration, parse_positions, parse_schedule
from compress.probing.verdict import Probe, probe_of
from eval.arms import DENSE, Arm
from eval.branches import greedy_answers, shared_length
from eval.one_pass import option_ids, option_scores
from eval.turns import Talk, follow_up
from eval.vision import SharedVision
from positions import PPE
from vlm.families import adapter_of
from vlm.fingerprint import fingerprint
from vlm.media import Video
from vlm.model import FoveateProcessor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Inputs with a value for each token of the text.
BY_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


@dataclass(frozen=True)
class Question:
    """A sample with its media loaded: PIL images, or `vlm.Video`s.

    The media come before the prompt. `content`, if given, replaces both: texts and media in order.
    `earlier` questions are asked first, with the media before them, and answered by the model.
    `options` are what the model may say, of a multiple-choice question.
    """

    prompt: str
    media: tuple[Any, ...] = ()
    max_new_tokens: int = 16
    content: tuple[Any, ...] = ()
    earlier: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Any, ...]:
        """Texts and media in the order in which the model gets them."""
        return self.content or (*self.media, self.prompt)


@dataclass(frozen=True)
class Reply:
    """The answer to one question.

    Attributes:
        text: the generated text.
        rendered: the prompt after the chat template, with one placeholder for each image.
        figures: measurements, such as "tokens" (visual tokens per visual input, averaged over
            layers), "entering" (those that enter the language model), "dense" (the same without
            reduction) and "seconds" (this question's share of its batch).
        error: why there is no answer. The question is then counted and not scored.
    """

    text: str
    rendered: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    error: str = ""


class Answerer(Protocol):
    """Anything that answers questions."""

    def answer(self, questions: Sequence[Question], arm: Arm, seed: int) -> list[Reply]:
        """One reply a question, in order. Calls for other arms may pass the same sequence."""
        ...

    def describe(self) -> dict[str, Any]:
        """What identifies the model and its way of generating, as JSON values."""
        ...


class ModelAnswerer:
    """Asks a transformers vision-language model through its chat template, greedily.

    Args:
        model: a model with `generate`.
        processor: its processor, with a chat template.
        name: what the model is called in results.
        share_vision: run the vision encoder once for all configurations of a batch.
        share_prompts: without reduction, read what neighbouring questions about the same media
            begin with, which includes the media, once for all of them. Answers differ from those of
            `generate` by rounding at most. Penalties of the generation configuration do not apply.
        one_pass: answer with the most likely of a question's options (`eval.one_pass`), one
            question a batch, instead of generating.

    Raises:
        ValueError: the processor has no chat template, or prompts are to be shared and the decoder
            has layers without full causal attention.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        name: str,
        share_vision: bool = True,
        share_prompts: bool = False,
        one_pass: bool = False,
    ) -> None:
        if getattr(processor, "chat_template", None) is None:
            raise ValueError(
                f"the processor of {name} has no chat template, so the form of its prompts is not "
                "known: set processor.chat_template"
            )
        adapter = adapter_of(model)
        kinds = {*adapter.layer_kinds, *(["two-way attention"] if adapter.has_blocks else [])}
        kinds -= {"full_attention"}
        if share_prompts and kinds:
            raise ValueError(
                f"share_prompts: {name} has layers of {', '.join(sorted(kinds))}, which cannot "
                "keep questions apart: leave it out"
            )
        self.model, self.processor, self.name = model, processor, name
        self._vision = SharedVision(adapter) if share_vision else None
        self._share_prompts, self._one_pass = share_prompts, one_pass
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
            "generation": "most likely option" if self._one_pass else "greedy",
        } | ({"prompts": "shared"} if self._share_prompts else {})

    def answer(self, questions: Sequence[Question], arm: Arm, seed: int) -> list[Reply]:
        """Generate the replies of one batch. See `Answerer`.

        Figures: "seconds" of `generate` for each question, including the vision encoder even if its
        outputs were shared; on CUDA "memory", peak bytes; with a method, those of its report.
        """
        if any(question.earlier for question in questions):
            return [self._talk(question, arm, seed) for question in questions]
        if self._share_prompts and arm.method is None:
            groups = itertools.groupby(questions, _media_of)
            return [reply for _, group in groups for reply in self._together(list(group))]
        rendered, inputs = self._prepare(questions)
        shared = nullcontext() if self._vision is None else self._vision
        gpu = self.model.device.type == "cuda"
        if self._vision is not None:
            self._vision.restart()
        if gpu:
            torch.cuda.reset_peak_memory_stats(self.model.device)
        with shared, self._attached(arm, seed) as compression, torch.inference_mode():
            begin = time.perf_counter()
            texts = (self._choose if self._one_pass else self._generate)(questions, inputs)
            if gpu:
                torch.cuda.synchronize(self.model.device)
            seconds = time.perf_counter() - begin
            figures = {} if compression is None else _measured(compression, len(questions))
        if self._vision is not None:
            seconds += self._vision.saved
        figures["seconds"] = seconds / len(questions)
        if gpu:
            figures["memory"] = float(torch.cuda.max_memory_allocated(self.model.device))
        return [
            Reply(text, prompt, {**figures, **_frames(question)})
            for text, prompt, question in zip(texts, rendered, questions, strict=True)
        ]

    def _generate(self, questions: Sequence[Question], inputs: Any) -> list[str]:
        plain: dict[str, Any] = {"do_sample": False, "num_beams": 1}
        plain |= dict.fromkeys(("temperature", "top_p", "top_k"))
        most = max(question.max_new_tokens for question in questions)
        out = self.model.generate(**inputs, max_new_tokens=most, **plain)
        new = out[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.processor.batch_decode(new, skip_special_tokens=True)
        return texts

    def _choose(self, questions: Sequence[Question], inputs: Any) -> list[str]:
        """The most likely option of the one question."""
        if len(questions) != 1 or not questions[0].options:
            counts = [len(question.options) for question in questions]
            raise ValueError(
                f"one_pass with {len(questions)} questions of {counts} options: expected one "
                "question with options"
            )
        (question,) = questions
        content = [_content(part) for p in question.parts for part in self._parts(p)]
        ids = option_ids(self.model, self.processor, content, question.options)
        return [question.options[int(option_scores(self.model, inputs, ids).argmax())]]

    def _together(self, questions: Sequence[Question]) -> list[Reply]:
        """Replies to questions about the same media, which the model reads once."""
        rendered, inputs = self._inputs(questions)
        seen = inputs["attention_mask"].bool()
        rows = [ids[own].cpu() for ids, own in zip(inputs["input_ids"], seen, strict=True)]
        begin, count = time.perf_counter(), shared_length(rows)
        _, first = self._inputs(questions[:1])
        shared = {name: x[:, :count] if name in BY_TOKEN else x for name, x in first.items()}
        answers = greedy_answers(
            self.model,
            shared,
            [row[count:] for row in rows],
            [question.max_new_tokens for question in questions],
            self._stop,
        )
        seconds = (time.perf_counter() - begin) / len(questions)
        texts = self.processor.batch_decode(answers, skip_special_tokens=True)
        return [
            Reply(text, prompt, {"seconds": seconds, **_frames(question)})
            for text, prompt, question in zip(texts, rendered, questions, strict=True)
        ]

    def _talk(self, question: Question, arm: Arm, seed: int) -> Reply:
        """The reply to a question after its earlier ones, on the cache of the first.

        Figures: those of the first turn's reduction, and "seconds" of the last turn.
        """
        first, *later = (*question.earlier, question.prompt)
        rendered, inputs = self._inputs([replace(question, prompt=first, earlier=())])
        talk = Talk(self.model, self._stop, arm.method is not None)
        most = question.max_new_tokens
        with self._attached(arm, seed) as compression:
            begin, answer = time.perf_counter(), talk.ask(inputs, most)
            figures = {} if compression is None else _measured(compression, 1)
            for text in later:
                ids = follow_up(self.processor, text).to(self.model.device)
                begin, answer = time.perf_counter(), talk.ask({"input_ids": ids}, most)
        figures["seconds"] = time.perf_counter() - begin
        (text,) = self.processor.batch_decode([answer], skip_special_tokens=True)
        prompt = "\n".join([rendered[0], *later])
        return Reply(text, prompt, {**figures, **_frames(question)})

    @cached_property
    def _stop(self) -> set[int]:
        """Ids that end an answer."""
        end: Any = self.model.generation_config.eos_token_id
        return {end} if isinstance(end, int) else set(end or ())

    @cached_property
    def _probe(self) -> Probe | None:
        """The saved probe of the model, looked up once for all batches."""
        return probe_of("probed", adapter_of(self.model))

    def _attached(self, arm: Arm, seed: int) -> Any:
        if arm.method is None:
            return nullcontext()
        generator = torch.Generator().manual_seed(seed)
        return compress(
            self.model,
            arm.method,
            arm.budget,
            positions=parse_positions(arm.positions),
            slots=PPE(arm.slots, arm.layout),
            schedule=self._probe if parse_schedule(arm.schedule) else None,
            calibrate=parse_calibration(arm.calibrate),
            keep_phase=arm.keep_phase,
            generator=generator,
        )

    def _prepare(self, questions: Sequence[Question]) -> tuple[list[str], Any]:
        """Rendered prompts and model inputs. They are kept for other arms of the same batch."""
        if self._prepared is not None and self._prepared[0] is questions:
            return self._prepared[1:]
        if self._vision is not None:
            self._vision.next_batch()
        self._prepared = (questions, *self._inputs(questions))
        return self._prepared[1:]

    def _inputs(self, questions: Sequence[Question]) -> tuple[list[str], Any]:
        """Rendered prompts and model inputs, padded on the left."""
        shown = [[part for p in q.parts for part in self._parts(p)] for q in questions]
        rendered = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": list(map(_content, parts))}],
                add_generation_prompt=True,
            )
            for parts in shown
        ]
        images = [[m for m in parts if isinstance(m, Image.Image)] for parts in shown]
        videos = [m for parts in shown for m in parts if isinstance(m, Video)]
        bos = self.processor.tokenizer.bos_token
        begun = bos is not None and rendered[0].startswith(bos)
        inputs = self.processor(
            text=rendered,
            **({"images": images} if any(images) else {}),
            **(self._videos(videos) if videos else {}),
            padding=True,
            padding_side="left",
            add_special_tokens=not begun,
            return_tensors="pt",
        ).to(self.model.device, self.model.dtype)
        return rendered, inputs

    def _parts(self, part: Any) -> list[Any]:
        """A part in the form that the model takes: for models without video, frames as images."""
        known = isinstance(self.processor, FoveateProcessor)
        known = known or getattr(self.processor, "video_processor", None) is not None
        if isinstance(part, Video) and not known:
            return [Image.fromarray(frame) for frame in part.frames]
        return [part]

    def _videos(self, videos: Sequence[Video]) -> dict[str, Any]:
        """Processor arguments for frames that were sampled already, with their times."""
        if isinstance(self.processor, FoveateProcessor):
            return {"videos": list(videos)}
        return _videos(videos)


def _media_of(question: Question) -> list[int]:
    """Equal for questions that begin with the same media."""
    return [id(question)] if question.content else list(map(id, question.media))


def _content(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    return {"type": "video" if isinstance(part, Video) else "image"}


def _videos(videos: Sequence[Video]) -> dict[str, Any]:
    """Arguments of a stock processor for frames that were sampled already, with their times."""
    metadata = [
        VideoMetadata(
            total_num_frames=max(1, round(video.duration * video.fps)),
            fps=video.fps,
            duration=video.duration,
            frames_indices=video.indices.tolist(),
        )
        for video in videos
    ]
    frames = [torch.from_numpy(video.frames).permute(0, 3, 1, 2) for video in videos]
    return {"videos": frames, "video_metadata": metadata, "do_sample_frames": False}


def _frames(question: Question) -> dict[str, float]:
    counts = [len(part) for part in question.parts if isinstance(part, Video)]
    return {"frames": float(sum(counts))} if counts else {}


def _measured(compression: Compression, questions: int) -> dict[str, float]:
    """The report of the last prefill as numbers.

    Tokens and multiply-adds are per visual input, bytes per question.
    """
    report = compression.report()
    cost, dense = report.reduced, report.dense
    return {
        "tokens": report.budget,
        "dense": dense.layers[0] / report.inputs,
        "entering": cost.layers[0] / report.inputs,
        "macs": cost.macs / report.inputs,
        "dense_macs": dense.macs / report.inputs,
        "cache": cost.cache / questions,
        "dense_cache": dense.cache / questions,
    }


__all__ = ["DENSE", "Answerer", "Arm", "ModelAnswerer", "Question", "Reply"]
