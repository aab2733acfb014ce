"""Asking the page's model: one question about one picture or video, under several methods."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList, TextStreamer

from compress import Compression, Report, compress, ops
from compress.measure import measure
from compress.methods import METHODS, Method, get_method
from compress.parse import parse_calibration, parse_positions
from compress.report.overlay import legend, overlay, stack
from compress.tokens import Reduction, VisualTokens
from foveate.page.media import Media
from vlm.__main__ import show
from vlm.families import adapter_of

MOST_METHODS = 4
NEW_TOKENS = 48
SCHEDULES = ("default", "published", "probed")
_END = object()


@dataclass(frozen=True)
class Question:
    """What is asked of the page.

    methods: names. budget: tokens (int) or a share (float). schedule: one of SCHEDULES; "published"
        is that of a method's released code, where it differs from the default.
    """

    media: Media
    text: str
    methods: tuple[str, ...]
    budget: int | float
    positions: str = "original"
    schedule: str = "default"
    calibrate: str = "own"

    def method(self, name: str) -> Method:
        """A method of the question. Raises ValueError for an unknown name."""
        if self.schedule == "published" and has_variants(name):
            return METHODS[name](variant="released")  # type: ignore[call-arg]
        return get_method(name)

    def options(self) -> dict[str, Any]:
        """What `compress` takes beside a method and the budget."""
        schedule = "probed" if self.schedule == "probed" else None
        calibrate = parse_calibration(self.calibrate)
        positions = parse_positions(self.positions)
        return {"positions": positions, "schedule": schedule, "calibrate": calibrate}


@dataclass
class Answer:
    """What one method answered. method is None for the unreduced model.

    kept: one dictionary a visual input: `grid`; `steps`, each with its decoder layer, `assign` and
        `anchor`; `positions`, one (t, h, w) a token that entered the language model.
    report: with times once they are measured.
    error: a sentence in the place of an answer.
    """

    method: str | None
    text: str = ""
    done: bool = False
    error: str = ""
    report: Report | None = None
    kept: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Saliency(Method):
    """Keeps the saliency that it is given, for the heat map."""

    requires: ClassVar[frozenset[str]] = frozenset({"saliency"})
    seen: Any = None

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        """The first `keep` tokens; the saliency goes to `seen`."""
        self.seen.extend(tokens.need("saliency").float().cpu())
        first = torch.arange(keep, device=tokens.features.device)
        return ops.prune(tokens.features, first.expand(len(tokens.features), -1))


class _Words(TextStreamer):
    """Puts the text of an answer into a queue as it comes."""

    def __init__(self, tokenizer: Any) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.queue: Queue[Any] = Queue()

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.queue.put(text)


class _Stop(StoppingCriteria):
    """Ends an answer that nobody waits for any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)


class Session:
    """A model, its processor, and a lock that lets one question at a time at them."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        self.model, self.processor, self.name = model, processor, name
        self._lock = threading.Lock()

    def prompt(self, question: Question) -> tuple[str, Any]:
        """The text with placeholders, and what `generate` takes."""
        media = question.media
        shown, prepare = show(self.model, self.processor, [(media.kind, media.item)])
        content = [*shown, {"type": "text", "text": question.text}]
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
        return text, prepare(text)

    def dense_tokens(self, media: Media) -> int:
        """Visual tokens of a picture or video, of all its inputs together."""
        _, inputs = self.prompt(Question(media, "?", (), 1.0))
        adapter = adapter_of(self.model)
        places = {adapter.placeholder(kind) for kind in adapter.kinds}
        return max(1, sum(int((inputs["input_ids"] == place).sum()) for place in places))

    def ask(self, question: Question) -> Iterator[tuple[list[Answer], list[list[float]]]]:
        """Yields the answers so far and the saliency of each visual input, as words come.

        The unreduced model comes first. A method that fails has its `error` set; the others go on.
        Raises ValueError for a question that no method could answer.
        """
        if not 1 <= len(question.methods) <= MOST_METHODS:
            raise ValueError(
                f"{len(question.methods)} methods are chosen: expected 1 to {MOST_METHODS}"
            )
        if not question.text.strip():
            raise ValueError("there is no question: write one")
        if question.schedule not in SCHEDULES:
            expected = ", ".join(SCHEDULES)
            raise ValueError(f"schedule is {question.schedule!r}: expected one of {expected}")
        options = question.options() | {"budget": question.budget}
        methods = [question.method(name) for name in question.methods]
        with self._lock:
            _, inputs = self.prompt(question)
            answers = [Answer(None), *(Answer(name) for name in question.methods)]
            saliency = self._saliency(inputs)
            for words in self._words(inputs):
                answers[0].text += words
                yield answers, saliency
            answers[0].done = True
            for answer, method in zip(answers[1:], methods, strict=True):
                try:
                    with compress(self.model, method, **options) as attached:
                        for words in self._words(inputs):
                            answer.text += words
                            yield answers, saliency
                        _keep(answer, attached)
                        yield answers, saliency
                    answer.report = self._measure(inputs, method, options)
                    answers[0].report = answers[0].report or answer.report
                except (ValueError, TypeError, RuntimeError) as error:
                    answer.error = sentence(error)
                answer.done = True
                yield answers, saliency

    def save(self, question: Question, folder: Path) -> tuple[Path, Path]:
        """Write what the methods keep: the picture, and the tensors of `Compression.export()`."""
        rows: list[Any] = []
        tensors: dict[str, Any] = {}
        with self._lock:
            _, inputs = self.prompt(question)
            for name in question.methods:
                method, options = question.method(name), question.options()
                with compress(self.model, method, question.budget, **options) as kept:
                    self.model.generate(**inputs, max_new_tokens=1, do_sample=False)
                    exported = kept.export()
                    frames = list(question.media.frames)
                    for index in range(len(exported)):
                        shown = frames if len(exported) == 1 else frames[index : index + 1]
                        rows.append(overlay(shown, kept.steps(index), name))
                    for index, one in enumerate(exported):
                        tensors |= {
                            f"{name}.{index}.{key}": x
                            for key, x in one.items()
                            if isinstance(x, Tensor)
                        }
        picture, file = folder / "kept.png", folder / "kept.safetensors"
        title = f"{question.media.name}, budget {question.budget:g}"
        sheet = stack(rows)
        stack([legend(sheet.width, title), sheet]).save(picture)
        save_file(tensors, file)
        return picture, file

    def _words(self, inputs: Any) -> Iterator[str]:
        """The answer in pieces. `generate` runs in a thread, and has ended when this has."""
        words, stop = _Words(self.processor.tokenizer), _Stop()

        def run() -> None:
            try:
                self.model.generate(
                    **inputs,
                    max_new_tokens=NEW_TOKENS,
                    do_sample=False,
                    streamer=words,
                    stopping_criteria=StoppingCriteriaList([stop]),
                )
            except Exception as error:  # raised again where it is read
                words.queue.put(error)
            words.queue.put(_END)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            while (piece := words.queue.get()) is not _END:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            stop.event.set()
            thread.join()

    def _saliency(self, inputs: Any) -> list[list[float]]:
        """One list a visual input, of values that sum to 1; empty where the model gives none."""
        seen: list[Tensor] = []
        try:
            with compress(self.model, _Saliency(seen), 0.5):
                self.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        except (ValueError, TypeError, RuntimeError):
            return []
        return [(row / row.sum().clamp_min(1e-12)).flatten().tolist() for row in seen]

    def _measure(self, inputs: Any, method: Any, options: dict[str, Any]) -> Report:
        """Times of both sides, each from a run without the page's thread around it."""
        once = {"new_tokens": 2, "repeats": 1, **options}
        report = measure(self.model, inputs, method, **once)
        if (report.dense.first or 0.0) < 500:
            report = measure(self.model, inputs, method, **(once | {"repeats": 3}))
        return report


def _keep(answer: Answer, attached: Compression) -> None:
    answer.report = attached.report()
    for index, one in enumerate(attached.export()):
        layers = [int(key.split(".")[1]) for key in one if key.endswith(".anchor")]
        steps = [
            {
                "layer": layer,
                "assign": reduction.assign[0].tolist(),
                "anchor": reduction.anchor[0].tolist(),
            }
            for layer, (_, _, reduction) in zip([0, *layers], attached.steps(index), strict=True)
        ]
        positions = one["positions"][:, 0].tolist()
        answer.kept.append({"grid": one["grid"].tolist(), "steps": steps, "positions": positions})


def sentence(error: BaseException) -> str:
    """The first line of an error, as a sentence."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def has_variants(name: str) -> bool:
    """Whether a method has its published form beside its own."""
    return (
        "variant" in {field.name for field in fields(METHODS[name])} if name in METHODS else False
    )


def code(question: Question, model: str, text: str) -> str:
    """Lines of Python that give the first method's answer again."""
    given = {"image": "images=vlm.read_image", "video": "videos=vlm.read_video"}
    file = "photo.jpg" if question.media.kind == "image" else "clip.mp4"
    name = question.methods[0]
    method, imports = repr(name), ["import vlm", "from compress import compress"]
    if question.schedule == "published" and has_variants(name):
        method = f'{METHODS[name].__name__}(variant="released")'
        imports.append(f"from compress.methods import {METHODS[name].__name__}")
    options = f"positions={question.positions!r}"
    if question.schedule == "probed":
        options += ', schedule="probed"'
    if question.calibrate != "own":
        options += f", calibrate={parse_calibration(question.calibrate)!r}"
        imports[1] = "from compress import Calibration, compress"
    budget = f"{question.budget:.4g}" if isinstance(question.budget, float) else question.budget
    lines = [
        f"model, processor = vlm.load({model!r})",
        f'inputs = processor(text={text!r}, {given[question.media.kind]}("{file}"), '
        'return_tensors="pt")',
        f"with compress(model, {method}, {budget}, {options}) as c:",
        f"    out = model.generate(**inputs, max_new_tokens={NEW_TOKENS}, do_sample=False)",
        "print(processor.batch_decode(out), c.report())",
    ]
    return "\n".join([*imports, "", *lines])
