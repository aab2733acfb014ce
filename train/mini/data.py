"""Training scenes and clips, drawn to disk, and questions about them as token sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from positions import Image, MRoPE, Sequential, Text, Video, plan
from vlm.embedded import mini
from vlm.embedded.scenes import (
    COLOURS,
    FIELDS,
    FRAMES,
    IMAGE_SIZE,
    SHAPES,
    SLOTS,
    Question,
    Scene,
    caption,
    cell_labels,
    clip_caption,
    clip_labels,
    clip_questions,
    draw,
    draw_clip,
    make_clip,
    make_scene,
    multiple_choice,
    options,
    questions,
)

TOKENS = mini.GRID * mini.GRID
IMAGE, VIDEO = "image", "video"
MOSAIC = (0.4, 0.3, 0.3)  # shares of the slots of a mosaic with a sign, a dot, anything
SLOW = ("relation", "count", "order")  # kinds of questions that need several look-ups
# The fields of an item that questions ask about, with their words.
ASKED = {"colour": tuple(COLOURS), "shape": SHAPES}
# How a scene is shown: pixels with strange colours or shapes, pixels, or symbols.
STRANGE, PIXELS, SYMBOLS = -3, -2, -1
UNKNOWN = -100  # the label of a field that a picture does not show
_processor = mini.build_processor()
_tokenizer = _processor.tokenizer
_view = _processor.seen[0]


# ------------------------------------------------------------------ pictures and labels


class Drawn:
    """The pictures and labels of the first n training scenes (one frame each) or clips.

    Attributes:
        images: (n, frames, 96, 96, 3) uint8.
        labels: (n, fields, frames * tokens) uint8.
    """

    def __init__(self, kind: str, images: np.ndarray, labels: np.ndarray) -> None:
        self.kind, self.images, self.labels = kind, images, labels

    @classmethod
    def prepare(cls, kind: str, folder: Path, count: int) -> Drawn:
        """Draw `count` of them, or load them if they were drawn before."""
        path = folder / f"{kind}s.npy"
        if not (path.is_file() and len(np.load(path, mmap_mode="r")) == count):
            folder.mkdir(parents=True, exist_ok=True)
            with Pool() as pool:
                rows = pool.starmap(_draw, [(kind, seed) for seed in range(count)], chunksize=64)
            np.save(path.with_suffix(".labels.npy"), np.stack([label for _, label in rows]))
            np.save(path, np.stack([images for images, _ in rows]))
        return cls(kind, np.load(path, mmap_mode="r"), np.load(path.with_suffix(".labels.npy")))

    def pick(self, step: int, size: int, seed: int) -> np.ndarray:
        """The indices of a step's batch. In a round through all scenes, each comes once."""
        rounds = len(self.images) // size
        order = np.random.default_rng((seed, step // rounds)).permutation(len(self.images))
        return order[size * (step % rounds) :][:size]

    def mosaics(self, count: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Pixels and fields of pictures that combine slots of many, most with a sign or a dot.

        An object stays in its slot, so its labels stay right. Shapes as in `pixels` and `fields`.
        """
        side = mini.GRID // SLOTS
        labels = self.labels.reshape(len(self.labels), -1, SLOTS, side, SLOTS, side)
        pixels = np.empty((count, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        fields = np.empty((count, *labels.shape[1:]), np.int64)
        width = IMAGE_SIZE // SLOTS
        for row in range(SLOTS):
            for column in range(SLOTS):
                pools = self._pools[row][column]
                which = rng.choice(len(pools), count, p=MOSAIC)
                picks = [int(rng.choice(pools[w])) for w in which]
                at = np.s_[row * width : (row + 1) * width, column * width : (column + 1) * width]
                for number, pick in enumerate(picks):
                    pixels[number][at] = self.images[pick, 0][at]
                fields[:, :, row, :, column] = labels[picks][:, :, row, :, column]
        return torch.from_numpy(pixels), torch.from_numpy(fields.reshape(count, -1, TOKENS))

    @cached_property
    def _pools(self) -> list[list[list[np.ndarray]]]:
        """For each row and column of slots: the pictures with a sign there, with a dot, and all."""
        side, everything = mini.GRID // SLOTS, np.arange(len(self.labels))
        kind = self.labels[:, 0].reshape(-1, SLOTS, side, SLOTS, side)

        def holding(wanted: int, row: int, column: int) -> np.ndarray:
            pictures = np.flatnonzero((kind[:, row, :, column] == wanted).any((1, 2)))
            return pictures if len(pictures) else everything

        return [
            [[holding(2, r, c), holding(3, r, c), everything] for c in range(SLOTS)]
            for r in range(SLOTS)
        ]

    def pixels(self, index: np.ndarray) -> Tensor:
        """(b * frames, 96, 96, 3) uint8."""
        return torch.from_numpy(np.stack([self.images[i] for i in index])).flatten(0, 1)

    def fields(self, index: np.ndarray) -> Tensor:
        """(b, fields, frames * tokens) int64."""
        return torch.from_numpy(self.labels[index].astype(np.int64))


def recoloured(pixels: Tensor, rng: np.random.Generator) -> Tensor:
    """(frames, 96, 96, 3) uint8 with all hues turned by one angle, and paler.

    No colour of the palette is as pale, except white, which does not change. So no pair that is
    held out for the tests is shown.
    """
    angle, pale = rng.uniform(0, 2 * np.pi), rng.uniform(0.3, 0.7)
    axis = np.full((3, 3), 1 / 3)  # projects on the axis of greys, which colours turn around
    across = np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / 3**0.5
    turn = np.cos(angle) * (np.eye(3) - axis) + np.sin(angle) * across
    matrix = torch.from_numpy(axis + pale * turn).float()
    return (pixels.float() @ matrix.T).clamp(0, 255).to(torch.uint8)


def reshaped(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with random outlines that have no name, in place of its shapes."""
    items = [
        replace(item, outline=tuple(rng.uniform(0.4, 1.15, int(rng.integers(5, 13)))))
        for item in scene.items
    ]
    return replace(scene, items=tuple(items))


def normalised(pixels: Tensor) -> Tensor:
    """(b, 96, 96, 3) uint8 -> (b, 3, 96, 96) float32, normalized as by the processor."""
    mean, std = (torch.tensor(v, device=pixels.device) for v in (_view.mean, _view.std))
    return ((pixels / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def _draw(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    if kind == IMAGE:
        scene = make_scene(seed)
        frames, labels = [draw(scene)], cell_labels(scene, mini.GRID)
    else:
        clip = make_clip(seed)
        frames, labels = draw_clip(clip), clip_labels(clip, mini.GRID)
    return np.stack([np.asarray(f) for f in frames]), labels.astype(np.uint8)


# ------------------------------------------------------------------ questions as sequences


@cache
def _tokens(text: str) -> tuple[int, ...]:
    return tuple(_tokenizer(text, add_special_tokens=False)["input_ids"])


def _prompt(kind: str, question: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids before and after the placeholder, as the chat template writes them."""
    parts = [{"type": kind}, {"type": "text", "text": question}]
    messages: Any = [{"role": "user", "content": parts}]
    text = _processor.apply_chat_template(messages, add_generation_prompt=True)
    before, after = text.split(f"<{kind}>")
    return _tokens(before), _tokens(after)


PREFIX = _prompt(IMAGE, "")[0]


@cache
def _ask(question: str) -> tuple[int, ...]:
    return _prompt(IMAGE, question)[1]


def _turn(question: str, answer: str) -> tuple[list[int], list[int]]:
    """Ids and labels of one question and its answer."""
    ask, reply = _ask(question), (*_tokens(" " + answer), _tokenizer.eos_token_id)
    return [*ask, *reply], [-100] * len(ask) + [*reply]


def turns_of(
    kind: str,
    seed: int,
    rng: np.random.Generator,
    captioned: bool,
    letters: float,
    rounds: int = 1,
    blended: str = "",
) -> list[tuple[list[int], list[int]]]:
    """Token ids and labels of the questions about one scene or clip, with their answers.

    Args:
        captioned: add a caption.
        letters: the probability that a question is multiple choice.
        rounds: how often the kinds of questions that are slow to learn are drawn.
        blended: a field of items ("colour" or "shape") that no question may depend on, or "".
    """
    if kind == IMAGE:
        scene = make_scene(seed)
        draws = [questions(scene, rng) for _ in range(rounds)]
        shown, told = list(scene.items), caption(scene)
    else:
        clip = make_clip(seed)
        draws, told = [clip_questions(clip, rng) for _ in range(rounds)], clip_caption(clip)
        shown = [item for frame in clip.frames for item in frame.items]

    again = (q for drawn in draws[1:] for q in drawn if q.category in SLOW)
    asked = dict.fromkeys([*draws[0], *again])
    if blended:
        asked = dict.fromkeys(q for q in asked if not _asks(q, blended))

    def form(question: Question) -> Question:
        if rng.random() >= letters:
            return question
        return multiple_choice(question, options(question, shown, rng))

    turns = [_turn(q.text, q.answer) for q in map(form, asked)]
    if captioned:
        turns.append(_turn(f"Describe the {'picture' if kind == IMAGE else 'video'}.", told))
    return turns


def _asks(question: Question, field: str) -> bool:
    """Whether a question, or its answer, depends on that field of an item."""
    told = f"{question.text} {question.answer}"
    return any(word in told for word in (field, *ASKED[field]))


@cache
def original_positions(kind: str, axes: mini.Axes) -> tuple[Tensor, int]:
    """Positions of all visual tokens, (tokens, 3) int64, and of the first token after them."""
    grid = (mini.GRID, mini.GRID)
    visual = Image(grid) if kind == IMAGE else Video((FRAMES, *grid))
    scheme = MRoPE() if axes == "mrope" else Sequential()
    layout = plan([Text(len(PREFIX)), visual], scheme=scheme)
    return layout.positions[len(PREFIX) :, 0].long(), int(layout.next_position)


class Batch(NamedTuple):
    """Prefix, visual tokens and questions of b scenes, one sequence each (see `pack`)."""

    ids: Tensor  # (b, text) question and answer ids
    labels: Tensor  # (b, text) the id that each token has to predict, or -100
    positions: Tensor  # (3, b, prefix + visual tokens + text)
    mask: Tensor  # (b, 1, s, s) bool


Turns = Sequence[Sequence[tuple[list[int], list[int]]]]


def pack(rows: Turns, visual: Tensor, after: int) -> Batch:
    """Put the questions of each scene into one row. They attend to the image, not to each other.

    Args:
        rows: the turns of each scene.
        visual: (b, v, 3) positions of the visual tokens that are shown.
        after: the position of the first text token after the visual tokens.
    """
    prefix, shown = len(PREFIX), visual.shape[1]
    length = max(sum(len(ids) for ids, _ in turns) for turns in rows)
    length = -(-length // 128) * 128  # few different shapes, so that compiled code is reused
    batch = len(rows)
    ids = torch.full((batch, length), _tokenizer.pad_token_id)
    labels = torch.full((batch, length), -100)
    turn_of = torch.full((batch, length), -1)
    place = torch.zeros((batch, length), dtype=torch.long)
    for b, turns in enumerate(rows):
        start = 0
        for k, (turn, label) in enumerate(turns):
            stop = start + len(turn)
            ids[b, start:stop] = torch.tensor(turn)
            labels[b, start : stop - 1] = torch.tensor(label[1:])
            turn_of[b, start:stop] = k
            place[b, start:stop] = torch.arange(len(turn)) + after
            start = stop
    head = torch.arange(prefix).expand(3, batch, -1)
    positions = torch.cat([head, visual.permute(2, 0, 1), place.expand(3, -1, -1)], dim=2)
    group = torch.cat([torch.full((batch, prefix + shown), -2), turn_of], dim=1)
    causal = torch.ones(group.shape[1], group.shape[1], dtype=torch.bool).tril()
    mask = causal & ((group[:, None] == -2) | (group[:, None] == group[:, :, None]))
    return Batch(ids, labels, positions, mask[:, None])


# ------------------------------------------------------------------ lessons


class Lesson(NamedTuple):
    """What one step learns from scenes or from clips. `pixels` or `batch` may be empty."""

    pixels: Tensor  # (b * frames, 96, 96, 3) uint8
    fields: Tensor  # (b, fields, visual tokens shown) int64
    batch: Batch | None
    told: Tensor  # (b,) int64, how each scene is shown; from 0: as symbols, with that field blended


@dataclass(frozen=True)
class Lessons(Dataset[dict[str, Lesson]]):
    """The lessons of a stage by step, made in worker processes. They depend on the seed only.

    Attributes:
        sizes: batch size by kind.
        shown: the number of visual tokens shown to the language model, None for all (with pixels),
            0 for no questions.
        captions: the share of lessons with captions.
        letters, rounds: see `turns_of`. Multiple choice starts after a third of the stage.
        mosaics: the share of pictures that are mosaics, if there are no questions.
        symbols: the share of each batch, from its first scene, that is shown as symbols. Most
            lessons blend these (see `Symbols`) and show some pictures in strange colours or shapes.
    """

    data: dict[str, Drawn]
    sizes: dict[str, int]
    steps: int
    seed: int
    axes: mini.Axes
    shown: int | None
    captions: float = 0.0
    letters: float = 0.0
    rounds: int = 1
    mosaics: float = 0.0
    symbols: float = 0.0

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Lesson]:
        rng = np.random.default_rng((self.seed, step, 7))
        return {k: self._lesson(k, step, n, rng) for k, n in self.sizes.items() if n}

    def _lesson(self, kind: str, step: int, size: int, rng: np.random.Generator) -> Lesson:
        drawn = self.data[kind]
        index = drawn.pick(step, size, self.seed)
        fields, nothing = drawn.fields(index), torch.empty(0)
        if self.shown == 0:
            pixels = drawn.pixels(index)
            if kind == IMAGE and (count := int(self.mosaics * size)):
                pixels[:count], fields[:count] = drawn.mosaics(count, rng)
            return Lesson(pixels, fields, None, nothing)
        captioned = rng.random() < self.captions  # all or none, so that rows have similar lengths
        letters = self.letters * min(1.0, max(0.0, 3 * step / self.steps - 1))
        blends = [""] * size
        told = np.full(size, PIXELS)
        told[: round(self.symbols * size)] = SYMBOLS
        if not captioned and rng.random() < 0.85:
            strange = (told == PIXELS) & (rng.random(size) < 0.6)
            strange[0] = False  # so that one scene shows colours and shapes
            told[strange] = STRANGE
            for k in np.flatnonzero(told != PIXELS):  # clips are asked about shapes alone
                blends[k] = str(rng.choice(list(ASKED))) if kind == IMAGE else "colour"
                if told[k] == SYMBOLS:
                    told[k] = list(FIELDS).index(blends[k])
        rows = [
            turns_of(kind, int(seed), rng, captioned, letters, self.rounds, blended)
            for seed, blended in zip(index, blends, strict=True)
        ]
        positions, after = original_positions(kind, self.axes)
        if self.shown is None:
            kept = torch.arange(len(positions)).expand(size, -1)
            pixels = drawn.pixels(index).unflatten(0, (size, -1))
            for k in np.flatnonzero(told == STRANGE):
                if blends[k] == "colour":
                    pixels[k] = recoloured(pixels[k], rng)
                else:
                    scene = reshaped(make_scene(int(index[k])), rng)
                    pixels[k, 0] = torch.from_numpy(np.array(draw(scene)))
                    fields[k] = torch.from_numpy(cell_labels(scene, mini.GRID))
                fields[k, list(FIELDS).index(blends[k])] = UNKNOWN
            batch = pack(rows, positions[kept], after)
            return Lesson(pixels.flatten(0, 1), fields, batch, torch.from_numpy(told))
        # All grid cells that show something and some blank ones, at their original positions.
        score = (fields[:, 0] > 0) + torch.from_numpy(rng.random(fields[:, 0].shape))
        kept = score.topk(self.shown, dim=1).indices.sort(dim=1).values
        fields = fields.gather(2, kept[:, None].expand(-1, fields.shape[1], -1))
        return Lesson(nothing, fields, pack(rows, positions[kept], after), torch.from_numpy(told))
