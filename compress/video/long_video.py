"""Questions about long videos, which are decoded, encoded and reduced chunk by chunk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature

from compress.defaults import STREAM_BUDGET
from compress.methods import Method
from compress.ops.windows import deal
from compress.runtime.attach import compress
from compress.runtime.encoded import Encoded
from compress.tokens import VisualTokens
from compress.video.stream import Kept, Stream
from positions import Scheme, Text, plan
from positions import Video as VideoCells
from vlm.families import ADAPTERS, ModelAdapter, adapter_of
from vlm.media import Video, iter_video


@dataclass(frozen=True)
class LongVideo:
    """The kept tokens of a video, for any number of questions.

    kept: the tokens of each view (one for each expert), with projected features.
    grids: (T, h, w) of each view's dense tokens. times: (T,) seconds, float64, None if not known.
    most: the most tokens that were held at once while the video was read.
    """

    kept: tuple[Kept, ...]
    grids: tuple[tuple[int, int, int], ...]
    times: np.ndarray | None
    most: int

    def __len__(self) -> int:
        return sum(map(len, self.kept))

    @property
    def features(self) -> Tensor:
        """(M, D): all tokens in their order in the prompt."""
        return torch.cat([kept.features for kept in self.kept])

    @property
    def dense(self) -> int:
        """Dense tokens of the whole video."""
        return sum(t * h * w for t, h, w in self.grids)


def stream_video(
    model: nn.Module,
    processor: Any,
    video: str | os.PathLike[str] | Iterable[Any],
    method: str | Method = "foveate",
    budget: int = STREAM_BUDGET,
    *,
    fps: float | None = 1.0,
    chunk: int = 8,
    total: int | None = None,
    window: int = 8,
    question: str | None = None,
    generator: torch.Generator | None = None,
    **opening: Any,
) -> LongVideo:
    """Reduce a video of any length to `budget` tokens while it is decoded.

    Each chunk of frames is decoded, encoded, and added to a `Stream`, which distributes the budget.
    Memory does not grow with the length of the video, except for 8 bytes a frame of time stamps.
    Time is linear in the length. The in-LLM part of the method is not used: the budget is the
    number of tokens that enter the LLM. Tokens are merged after the projector.

    model: a `FoveateForConditionalGeneration` or a stock LLaVA, which sees frames as images. With
        several experts, the budget is distributed in proportion to their tokens.
    processor: that of the model. Frames are not cut into tiles.
    video: a path, or the chunks of the video in order, each a `vlm.Video` (as from
        `vlm.media.iter_video`) or an array (F, H, W, 3) uint8.
    fps: for a path, the sampled frames a second; None for all. chunk: for a path, the frames that
        are decoded and encoded at once. total: for chunks, the number of all frames, if known.
    window: frames that are reduced together. question: the text query, for methods that read one.
        opening: how a path is decoded, see `vlm.read_video`.

    Raises UnknownFamily or ValueError for other models, MediaError for bad media, ValueError for
    invalid arguments.
    """
    adapter = adapter_of(model)
    if not adapter.videos_by_frame:
        able = ", ".join(family.name for family in ADAPTERS if family.videos_by_frame)
        raise ValueError(
            f"{type(model).__name__} is of the family {adapter.name!r}, whose videos are not "
            f"encoded frame by frame: expected a model of {able}"
        )
    chunks = iter(video) if not isinstance(video, str | os.PathLike) else None
    if chunks is None:
        chunks = iter_video(video, chunk, fps=fps, **opening)  # type: ignore[arg-type]
    query = None if question is None else _words(model, processor, question)
    options: dict[str, Any] = {"window": window, "text_query": query, "generator": generator}
    Stream(method, budget, total=total, **options)  # checks the arguments before decoding
    streams: list[Stream] = []
    times: list[float] = []
    with torch.no_grad(), compress(model, method, 1.0):
        for piece in chunks:
            frames = np.asarray(getattr(piece, "frames", piece))
            known = total if total is not None else getattr(piece, "total", None)
            if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
                raise ValueError(
                    f"a chunk of frames is {frames.dtype} {frames.shape}: expected uint8 "
                    "(frames, height, width, 3)"
                )
            if len(frames) == 0:
                continue
            views = _encode(adapter, model, processor, frames)
            if not streams:
                shares = deal(budget, [view.grid[1] * view.grid[2] for view in views])
                streams = [Stream(method, share, total=known, **options) for share in shares]
            for stream, view in zip(streams, views, strict=True):
                stream.add(view)
            if isinstance(piece, Video):
                times += piece.timestamps.tolist()
    if not streams:
        raise ValueError("a video without frames: expected one frame or more")
    frames_seen = streams[0].frames
    return LongVideo(
        tuple(stream.result() for stream in streams),
        tuple((frames_seen, *view.grid[1:]) for view in views),
        np.array(times) if len(times) == frames_seen else None,
        sum(stream.most for stream in streams),
    )


def video_prompt(
    model: nn.Module,
    processor: Any,
    text: str,
    videos: list[LongVideo],
    positions: str | Scheme = "compact",
) -> dict[str, Any]:
    """The inputs of `model.generate` for a text about long videos.

    text: with one placeholder for each video, <video> if the model has it, else <image>.
    positions: "compact" numbers the kept tokens without gaps, which keeps an hour within the
        context of a language model. "original" gives them the positions of the dense video, by the
        scheme of each expert. A `positions.Scheme` gives them its positions. Planning takes about
        70 bytes for each dense token.
    Raises ValueError if placeholders and videos differ in number.
    """
    adapter = adapter_of(model)
    kind, token = _placeholder(adapter)
    ids = processor.tokenizer(text, return_tensors="pt")["input_ids"][0]
    at = (ids == token).nonzero().flatten().tolist()
    if len(at) != len(videos):
        word = processor.tokenizer.convert_ids_to_tokens(token)
        raise ValueError(
            f"the text holds {len(at)} placeholders {word} and {len(videos)} videos were given: "
            "expected one placeholder for each, in order"
        )
    cuts = [-1, *at, len(ids)]
    runs = [ids[a + 1 : b] for a, b in pairwise(cuts)]
    parts = [runs[0]]
    for video, run in zip(videos, runs[1:], strict=True):
        parts += [ids.new_full((len(video),), token), run]
    device = adapter.core.get_input_embeddings().weight.device
    given: dict[str, Any] = {"input_ids": torch.cat(parts)[None].to(device)}
    given["attention_mask"] = torch.ones_like(given["input_ids"])
    features = [video.features for video in videos]
    given["mm_encoder_outputs"] = {kind: adapter.encoder_output(features)}
    if positions != "compact":
        position_ids = _positions(adapter, runs, videos, positions)
        given["position_ids"] = position_ids.float()[None].to(device)
    return given


def _placeholder(adapter: ModelAdapter) -> tuple[str, int]:
    """Kind and token id of the placeholder of a video."""
    takes_video = "video" in adapter.kinds and adapter.placeholder("video") >= 0
    kind = "video" if takes_video else "image"
    return kind, adapter.placeholder(kind)


def _positions(
    adapter: ModelAdapter, runs: list[Tensor], videos: list[LongVideo], positions: str | Scheme
) -> Tensor:
    """(S,) float64: planned positions of the tokens of a prompt after the reduction."""
    if isinstance(positions, str) and positions != "original":
        raise ValueError(f"positions is {positions!r}: expected 'compact', 'original' or a Scheme")
    own: list[Scheme | None] = [None] * len(videos[0].grids)
    if positions == "original":
        own = adapter.view_schemes()
    segments: list[Any] = [Text(len(runs[0]))]
    index = [torch.arange(len(runs[0]))]
    start = len(runs[0])
    for video, run in zip(videos, runs[1:], strict=True):
        times = None if video.times is None else tuple(video.times.tolist())
        for kept, grid, scheme in zip(video.kept, video.grids, own, strict=True):
            segments.append(VideoCells(grid, times=times, scheme=scheme))
            t, h, w = kept.places.cpu().unbind(1)
            index.append(start + (t * grid[1] + h) * grid[2] + w)
            start += grid[0] * grid[1] * grid[2]
        segments.append(Text(len(run)))
        index.append(start + torch.arange(len(run)))
        start += len(run)
    planned = plan(segments) if isinstance(positions, str) else plan(segments, positions)
    places = planned.dense_positions[torch.cat(index)]
    if not bool((places == places[:, :1]).all()):
        raise ValueError(f"{positions!r} has several axes: expected a scheme with one")
    return places[:, 0]


def _words(model: Any, processor: Any, question: str) -> Tensor:
    """(Q, D): the embeddings of a question."""
    ids = processor.tokenizer(question, return_tensors="pt", add_special_tokens=False)["input_ids"]
    words = model.get_input_embeddings()
    embeds: Tensor = words(ids[0].to(words.weight.device)).detach()
    return embeds


def _encode(
    adapter: ModelAdapter, model: Any, processor: Any, frames: np.ndarray
) -> list[VisualTokens]:
    """Encode a chunk of frames (F, H, W, 3): one result for each view (each expert)."""
    kind, call = adapter.frames_call(processor, frames)
    given = BatchFeature(call).to(model.device, model.dtype)
    output = getattr(adapter.core, f"get_{kind}_features")(**given, return_dict=True)
    encoded: Encoded = Encoded.of(output)  # type: ignore[assignment]
    return [_view(encoded, number) for number in range(len(encoded.inputs[0].views))]


def _view(encoded: Encoded, number: int) -> VisualTokens:
    """One view of a video, whether it was encoded as one input or as one for each frame."""
    views = [item.views[number] for item in encoded.inputs]
    frames = sum(view.grid[0] for view in views)
    starts = zip(views, encoded.offsets, strict=True)
    features: Tensor = encoded.features  # type: ignore[assignment]
    index = torch.cat([view.indices + start for view, start in starts]).to(features.device)
    fields = {name: values[index][None] for name, values in encoded.fields.items()}
    return VisualTokens(features[index][None], (frames, *views[0].grid[1:]), **fields)
