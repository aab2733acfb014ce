"""The adapter of a model family: where the parts are that a compression reads and writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from positions import Scheme
from vlm import decoder
from vlm.attention import AttentionReader
from vlm.families.rotation import rotate_halves
from vlm.inputs import FrameLayout, Grid, VisualInput


class UnknownFamily(ValueError):  # noqa: N818 - read as a sentence in a traceback
    """The model is not built in a way that Foveate knows."""


class ModelAdapter(ABC):
    """The parts of one model. Each subclass knows one model family.

    The model's core has `get_image_features`, and `get_video_features` if it takes videos. Their
    output holds the features that the language model receives in `pooler_output`, as for every
    model of transformers >= 5.20. An adapter holds the model and no state of a forward, so threads
    can share one.

    name: the family's name.
    model_types: the values of `config.model_type` that it serves.
    kinds: "image" and "video", those that the core encodes, in the order in which it does.
    refuses: why inputs of other kinds are refused, by kind.
    frames_are_images: whether the processor gives a video to the model as images, one a frame.
    media: arguments of `forward` that bring visual inputs.
    one_run_one_input: whether the tiles of an image are inputs of their own to the vision encoder,
        and stand in the prompt without text between them.
    has_blocks: whether some tokens attend to later ones (see `attention_blocks`).
    block_kinds: the kinds of decoder layers in which they do; None for all.
    blocks_cross_windows: whether they do beyond a layer's window, too.
    along: keyword arguments of the decoder and of its layers that run along the tokens.
    injects: arguments of the decoder: where visual tokens are, and what is added to them on the
        way: after the first layers, or by the layer before which it is.
    enters_empty: whether visual tokens enter as zeros, and are what is added to them first.
    packs: whether several samples can stand in one row in training.
    resizes: whether the vision encoder takes smaller pictures (see `resized`).
    prunes_patches: whether the vision encoder takes some cells of a picture (see `some_cells`).
    videos_by_frame: whether a long video can be encoded frame by frame (see `frames_call`).
    """

    name: ClassVar[str]
    model_types: ClassVar[frozenset[str]]
    kinds: ClassVar[tuple[str, ...]] = ("image",)
    refuses: ClassVar[Mapping[str, str]] = MappingProxyType({})
    frames_are_images: ClassVar[bool] = False
    media: ClassVar[tuple[str, ...]] = ("pixel_values", "pixel_values_videos", "mm_encoder_outputs")
    one_run_one_input: ClassVar[bool] = False
    has_blocks: ClassVar[bool] = False
    block_kinds: ClassVar[frozenset[str] | None] = None
    blocks_cross_windows: ClassVar[bool] = True
    along: ClassVar[tuple[str, ...]] = ()
    injects: ClassVar[tuple[str, str]] = ("visual_pos_masks", "deepstack_visual_embeds")
    enters_empty: ClassVar[bool] = False
    packs: ClassVar[bool] = True
    resizes: bool = False
    prunes_patches: ClassVar[bool] = False
    videos_by_frame: ClassVar[bool] = False

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    # -- the language model ------------------------------------------------------------

    @classmethod
    def serves(cls, model: Any) -> bool:
        """Whether a transformers model is one of this family, with its head."""
        kind = getattr(getattr(model, "config", None), "model_type", None)
        return kind in cls.model_types and hasattr(model, "model")

    @property
    def core(self) -> Any:
        """The model below the head: it joins text and visual features."""
        return self.model.model

    @property
    def config(self) -> Any:
        """The configuration of the whole model."""
        return self.core.config

    @property
    def language_model(self) -> Any:
        """The decoder, called by the core with `inputs_embeds`."""
        return self.core.language_model

    @property
    def layers(self) -> Sequence[Any]:
        """The decoder layers, in order."""
        return self.language_model.layers

    @property
    def norm(self) -> nn.Module:
        """The decoder's final norm."""
        return self.language_model.norm

    @property
    def rotary(self) -> nn.Module:
        """The decoder's rotary embedding."""
        return self.language_model.rotary_emb

    @property
    def deltas(self) -> Tensor | None:
        """(B, 1): what the model adds to the text positions of later turns, under M-RoPE."""
        return getattr(self.core, "rope_deltas", None)

    def placeholder(self, kind: str) -> int:
        """The token id that stands for visual tokens of a kind."""
        return int(getattr(self.config, f"{kind}_token_id"))

    @cached_property
    def layer_kinds(self) -> tuple[str, ...]:
        """The kind of each decoder layer (see `vlm.decoder`).

        Read once: every decoded token asks.
        """
        return decoder.layer_kinds(self.language_model.config, len(self.layers))

    def reach(self, kind: str) -> int | None:
        """How many positions a layer of a kind sees; None where attention is not local."""
        return decoder.reach(self.language_model.config, kind)

    @property
    def last_stage(self) -> int:
        """The last decoder layer before which tokens can leave (see `vlm.decoder.last_stage`)."""
        return decoder.last_stage(self.language_model.config, len(self.layers))

    def blocks_in(self, kind: str, blocks: Tensor | None) -> Tensor | None:
        """The blocks that decoder layers of a kind follow: `blocks`, or None."""
        return blocks if self.block_kinds is None or kind in self.block_kinds else None

    def attention_blocks(self, ids: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        """(B, S) int64: the block of each token of a prompt, -1 for none. Tokens of one block
        attend to each other in both directions. None where attention is causal throughout.

        ids: (B, S) int64 token ids. media: keyword arguments of the core's `forward`.
        """
        return None

    def attention_norm(self, layer: Any) -> nn.Module:
        """The norm before the attention of a decoder layer."""
        norm: nn.Module = layer.input_layernorm
        return norm

    def head_norms(self, attention: Any) -> tuple[nn.Module | None, nn.Module | None]:
        """The norms over a head of queries and of keys, before rotation; None without."""
        return getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)

    def logit_cap(self, attention: Any) -> float | None:
        """The value towards which a decoder layer's attention logits are bent; None if they are
        not (Gemma 2)."""
        return getattr(attention, "attn_logit_softcapping", None)

    def rotate(self, attention: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys (B, H, S, D) as the attention of a decoder layer rotates them.

        cos, sin: (B, S, <= D).
        """
        return rotate_halves(x, cos, sin)

    def cos_sin(self, rotary: Any) -> tuple[Tensor, Tensor]:
        """cos and sin, (B or 1, S, <= D), from what decoder layers get as `position_embeddings`."""
        cos, sin = rotary
        return cos, sin

    def query_scale(self, attention: Any, places: Tensor) -> Tensor | None:
        """What a decoder layer multiplies queries by, (B, Q) float32, beside its scaling; None
        where it does not (Llama 4).

        places: (B, Q) int64, each query's place among the tokens that the layer was given.
        """
        return None

    def chunk_positions(self, ids: Tensor, mask: Tensor, media: Mapping[str, Any]) -> Tensor | None:
        """The positions that the stock model gives a prompt of these tokens alone, from 0.

        A later turn adds them to the position after the cached tokens.

        ids: (B, S) int64 token ids.
        mask: (B, S) bool, False at padding.
        media: keyword arguments of the core's `forward`.

        Returns (B, S, 3) float64 on the device of `ids`, 0 at padding; None if the model has one
        position axis, or if the stock model would place these tokens as text.
        """
        return None

    def token_types(self, ids: Tensor, visual: Tensor, said: Tensor) -> dict[str, Tensor]:
        """What the model takes along the tokens of a batch in training, (B, S) int64 by name, as
        the family's processor makes it, such as `token_type_ids`.

        ids: (B, S) int64. visual: (B, S) int64, 1 at images, 2 at videos. said: (B, S) bool,
        tokens with labels.
        """
        return {}

    # -- the vision side ---------------------------------------------------------------

    @property
    def image_tokens(self) -> int | None:
        """Tokens of every image if all images have the same number, else None."""
        return None

    @property
    @abstractmethod
    def vision_encoder(self) -> nn.Module:
        """The vision encoder of images (for timing)."""

    @abstractmethod
    def vision_layers(self, kind: str) -> Sequence[Any]:
        """The layers of the vision encoder of inputs of `kind`, in order."""

    @abstractmethod
    def reader(self, layer: Any) -> AttentionReader:
        """A new reader of one of `vision_layers`."""

    def feature_layer(self, kind: str) -> int:
        """The vision layer whose output the projector gets, from the front; of several, the one
        that is named last."""
        depth = len(self.vision_layers(kind))
        given = getattr(self.config, "vision_feature_layer", None)
        return depth - 1 if given is None else layer_of(given, depth)

    def scoring_layer(self, kind: str, index: int | None) -> int:
        """The vision layer that serves as `index`, from the front.

        index: None is `feature_layer`, a negative one counts from the back; one that does not
            exist gives the nearest that does.
        """
        depth = len(self.vision_layers(kind))
        if index is None:
            return self.feature_layer(kind)
        return min(max(index + depth if index < 0 else index, 0), depth - 1)

    def projector_input(self, kind: str) -> nn.Module | None:
        """The module whose input holds one row for each visual token, before projection.

        None if the projector pools rows, so that merging follows it.
        """
        return None

    @abstractmethod
    def inputs(self, kind: str, call: Mapping[str, Any]) -> list[VisualInput]:
        """The visual inputs of one call of `get_{kind}_features`, in order.

        call: the arguments by name.
        """

    def pool(self, inputs: Sequence[VisualInput], rows: Tensor) -> Tensor:
        """What the projector's pooling and packing make of values given for each row.

        inputs: of one call, in order; or any one of them.
        rows: (R, ...), one for each row of the vision encoder's output, of all inputs in order.

        Returns (T, ...) for the tokens of all inputs in order, 0 at separators.
        """
        sources, start = [], 0
        for item in inputs:
            if item.source is None:
                raise NotImplementedError(f"{type(self).__name__} pools rows and does not say how")
            sources.append(torch.where(item.source < 0, -1, item.source + start))
            start += item.rows
        source = torch.cat(sources)
        if torch.equal(source, torch.arange(start)):
            return rows
        separators = bool((source < 0).any())
        source = source.to(rows.device, non_blocking=True)
        tokens = rows[source.clamp(min=0)]
        if not separators:
            return tokens
        return tokens.masked_fill((source < 0).view(-1, *[1] * (rows.ndim - 1)), 0)

    def resized(self, side: int, block_of: Tensor) -> AbstractContextManager[None]:
        """While it lasts, the vision encoder sees pictures of side x side patches; each of its rows
        is given to all tokens of its block.

        block_of: (N,) int64, the block of each token of the dense grid.

        Only if `resizes` is true: inputs are square pictures of one resolution.
        """
        raise NotImplementedError(f"{self.name} has no pictures of another size")

    def cells(self, pixels: Tensor) -> Tensor:
        """(N, C): the pixels of each token of all inputs, from the rows (R, C') of the processor.

        Only if `prunes_patches` is true.
        """
        raise NotImplementedError(f"{self.name} has no packed patches")

    def some_cells(self, kept: Tensor) -> AbstractContextManager[None]:
        """While it lasts, the vision encoder runs on the patches of some tokens; the features of
        the others are zeros.

        kept: (N,) bool, the tokens of all inputs of one call.

        Only if `prunes_patches` is true.
        """
        raise NotImplementedError(f"{self.name} has no packed patches")

    @abstractmethod
    def blank(self, kind: str) -> dict[str, Any]:
        """Arguments of `get_{kind}_features` for one empty input, as small as the model takes:
        tensors, or dicts of them by expert.

        Under ZeRO-3 every process must run the same modules, also one whose batch has no images.
        """

    def features_of(self, output: Any) -> Sequence[Tensor] | None:
        """What a reduction looks at in the output of `get_{kind}_features`: for each input, or
        for all, (..., D). None where the call gave something else."""
        features: Sequence[Tensor] | None = getattr(output, "pooler_output", None)
        return features

    def received(self, output: Any) -> list[Tensor]:
        """All that the language model gets of the output of `get_{kind}_features`."""
        layers = getattr(output, "deepstack_features", None) or []
        return [x for part in (self.features_of(output) or [], *layers) for x in part]

    # -- long videos and streams -------------------------------------------------------

    @property
    def frame_layout(self) -> FrameLayout | None:
        """How the frames of a stream stand in a prompt; None if the family takes no streams."""
        return None

    def frame_words(self, seconds: float) -> tuple[str, str]:
        """The text before and after a step of a stream at a time, where the layout is `stamped`."""
        return "", ""

    def frames_call(self, processor: Any, frames: np.ndarray) -> tuple[str, dict[str, Any]]:
        """How a piece of a long video is encoded: a kind, and arguments of `get_{kind}_features`.

        The inputs of that call have the same views, one view for each expert, and the frames follow
        one another in each: one input of F frames, or F inputs of one.

        processor: the model's own. frames: (F, H, W, 3) uint8.

        Raises NotImplementedError unless `videos_by_frame`, or there is a `frame_layout`.
        """
        raise NotImplementedError(f"{self.name} does not encode videos frame by frame")

    def encoder_output(self, features: Sequence[Tensor]) -> Any:
        """What `forward` takes in `mm_encoder_outputs` for visual inputs of these features.

        features: one (M, D) tensor an input, as the language model receives them.
        """
        output: Any = BaseModelOutputWithPooling
        return output(pooler_output=list(features))

    def view_schemes(self) -> list[Scheme | None]:
        """The position scheme of each view of a frame; None is text's own."""
        return [None]


def layer_of(index: int | Sequence[int], depth: int) -> int:
    """From an index into hidden states, or the last of several, to a layer from the front.

    hidden_states[i] is the output of layer i - 1 counted from the front, of layer i from the back.
    """
    last = index if isinstance(index, int) else index[-1]
    return last + depth if last < 0 else max(last - 1, 0)


def by_grid(
    inputs: Sequence[VisualInput], rows: Tensor, pool: Callable[[Tensor, Grid], Tensor]
) -> Tensor:
    """Run `pool` on the rows of each run of neighbouring inputs that share a grid, and join.

    pool: from rows (n * r, ...) of n inputs and their grid to tokens (n * N, ...).
    """
    runs: list[tuple[Grid, int]] = []
    for item in inputs:
        if runs and runs[-1][0] == item.grid:
            runs[-1] = (item.grid, runs[-1][1] + item.rows)
        else:
            runs.append((item.grid, item.rows))
    parts = rows.split([count for _, count in runs])
    tokens = [pool(part, grid) for part, (grid, _) in zip(parts, runs, strict=True)]
    return tokens[0] if len(tokens) == 1 else torch.cat(tokens)
