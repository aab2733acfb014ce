"""The one interface of all vision encoders: pixels -> features, grid, keys and saliency.

A `Family` describes where the parts of one kind of encoder are. `Expert` is the same for all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.attention import Call, SaliencyRule, SegmentHeads, Segments, watching

Pair = tuple[int, int]
# An encoder or a part of one (an nn.Module), whose attributes its family knows.
Encoder = Any
Layer = int | Literal["last"]


class ExpertError(ValueError):
    """A configuration, checkpoint or pixels do not fit an expert. The message says what does."""


@dataclass(frozen=True)
class ExpertOutput:
    """Features and scores of B images, tokens in raster order.

    features: (B, N, D). grid: (rows, columns), N = rows * columns.
    keys: (B, N, Dk) head-mean keys of the scoring layer, without gradient.
    saliency: (B, N) float32, attention that a token receives in the scoring layer, without
        gradient. Both are None unless scores were requested.
    """

    features: Tensor
    grid: Pair
    keys: Tensor | None = None
    saliency: Tensor | None = None


@dataclass
class ExpertConfig:
    """How one expert is built, and how its pixels are prepared. Saved with the checkpoint.

    name: of the expert in the model, a Python identifier.
    family: one of `vlm.experts.FAMILIES`.
    encoder: the family's configuration of the encoder (for transformers, `config.to_dict()`).
    image_size: (height, width) of its pixels.
    mean, std: of the pixel normalisation, per channel, for pixels in 0..1.
    layer: the features: an index into the encoder's hidden states as in LLaVA's
        `vision_feature_layer` (-1 is the last layer's output before the final norm; 0, the
        embeddings, is not supported), a list of such indices (concatenated), or "last", the output
        of the encoder.
    scoring_layer: index of the layer that keys and saliency are read from.
    saliency: which attention is the saliency of a token, see `vlm.attention.Heads.saliency`. A
        method that asks for "auto" gets this one.
    fit: how an image is brought to `image_size`: "squash" it, "pad" it to the aspect ratio with the
        mean colour (LLaVA-1.5), or scale its shorter side and "crop" the middle (CLIP).
    resample: "bicubic" or "bilinear".
    max_tiles: if above 1, an image is encoded as a whole and then as up to this many tiles of
        `image_size`, arranged to fit its shape best (LLaVA-NeXT, InternVL).
    frozen: whether it is not trained and always in evaluation mode.
    """

    name: str
    family: str
    encoder: dict[str, Any]
    image_size: Pair
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    layer: int | list[int] | Literal["last"] = "last"
    scoring_layer: int = -2
    saliency: SaliencyRule = "auto"
    fit: Literal["squash", "pad", "crop"] = "squash"
    resample: Literal["bicubic", "bilinear"] = "bicubic"
    max_tiles: int = 1
    frozen: bool = True

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", self.name):
            raise ExpertError(f"name={self.name!r}: expected a Python identifier, such as 'clip'")
        # In the form of JSON, where keys are strings and sequences are lists.
        self.encoder = json.loads(json.dumps(self.encoder, default=str))
        self.image_size = (int(self.image_size[0]), int(self.image_size[1]))
        if min(self.image_size) < 1:
            raise ExpertError(f"image_size={self.image_size}: expected (height, width) above 0")
        choices = {
            "saliency": ("auto", "cls", "received"),
            "fit": ("squash", "pad", "crop"),
            "resample": ("bicubic", "bilinear"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ExpertError(f"{name}={getattr(self, name)!r}: expected one of {known}")
        if self.max_tiles < 1:
            raise ExpertError(f"max_tiles={self.max_tiles}: expected 1 (no tiles) or more")

    @classmethod
    def of(cls, value: ExpertConfig | Mapping[str, Any]) -> ExpertConfig:
        """The configuration from a dict, as in the config.json of a checkpoint."""
        if isinstance(value, ExpertConfig):
            return value
        unknown = set(value) - {f.name for f in fields(cls)}
        if unknown:
            renamed = "'tower' is 'encoder' now, in config.json and in the weights' names"
            hint = f" ({renamed})" if "tower" in unknown else ""
            raise ExpertError(f"unknown expert settings {sorted(unknown)}{hint}")
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Family:
    """Describes where the parts of one kind of encoder are.

    build: an encoder from its own configuration, randomly initialised.
    load: an encoder from a local checkpoint, its configuration, and the fields of `ExpertConfig`
        that the checkpoint determines.
    native: the (height, width) of pixels that the encoder was built for.
    grid: the (rows, columns) of tokens that it gives for (height, width) pixels.
    run: the output of the encoder for pixels (B, 3, H, W).
    layers: its layers in order.
    tokens: a layer's output as (B, S, D), the shape that `run` returns.
    width: D of `layer` (an index, or "last").
    prefix: how many of the S tokens come before those of the grid.
    watch: the modules of a layer that scoring watches. attention: queries and keys from the calls
        of these modules. Both are None for encoders without attention, whose keys are the features
        of the scoring layer and whose saliency is the L2 norm of the features.
    resizable: whether the encoder takes pixels of another size than its own.
    defaults: fields of `ExpertConfig` for an encoder of this configuration.
    """

    name: str
    build: Callable[[dict[str, Any]], Encoder]
    load: Callable[[str], tuple[Encoder, dict[str, Any], dict[str, Any]]]
    native: Callable[[dict[str, Any]], Pair]
    grid: Callable[[dict[str, Any], Pair], Pair]
    run: Callable[[Encoder, Tensor], Tensor]
    layers: Callable[[Encoder], Sequence[Encoder]]
    width: Callable[[Encoder, Layer], int]
    prefix: Callable[[Encoder], int] = lambda encoder: 0
    tokens: Callable[[Tensor], Tensor] = lambda output: output
    watch: Callable[[Encoder], dict[str, Encoder]] | None = None
    attention: Callable[[Encoder, dict[str, Call]], Segments] | None = None
    resizable: bool = False
    defaults: Callable[[dict[str, Any]], dict[str, Any]] = lambda encoder: {}

    def __post_init__(self) -> None:
        _KNOWN[self.name] = self

    def __reduce__(self) -> Any:
        # Copied and pickled by name: the functions above need not be picklable.
        return get_family, (self.name,)


_KNOWN: dict[str, Family] = {}


def get_family(name: str) -> Family:
    """The family of that name. Raises ExpertError, which lists the known ones."""
    if name not in _KNOWN:
        raise ExpertError(f"expert family {name!r}: expected one of {', '.join(_KNOWN)}")
    return _KNOWN[name]


class Expert(nn.Module):
    """One vision encoder. `encoder` holds its weights, `config` all its settings."""

    def __init__(
        self, config: ExpertConfig, family: Family, encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.family = family
        native = family.native(config.encoder)
        if not family.resizable and native != config.image_size:
            raise ExpertError(
                f"expert {config.name!r}: image_size={config.image_size}, but this {family.name} "
                f"encoder sees pixels of its own size alone, {native}"
            )
        self.encoder = family.build(config.encoder) if encoder is None else encoder
        layers = len(family.layers(self.encoder))
        for index in self._indices:
            if not (-layers <= index < 0 or 0 < index <= layers):
                raise ExpertError(
                    f"expert {config.name!r}: layer={index}, expected -{layers}..-1 or 1..{layers}"
                )
        if not -layers <= config.scoring_layer < layers:
            raise ExpertError(
                f"expert {config.name!r}: scoring_layer={config.scoring_layer}, expected one of "
                f"{layers} layers"
            )
        if config.saliency == "cls" and not family.prefix(self.encoder):
            raise ExpertError(
                f"expert {config.name!r}: saliency='cls', but this {family.name} encoder has no "
                "class token; expected 'received' or 'auto'"
            )
        self.grid = family.grid(config.encoder, config.image_size)
        self.freeze()

    def freeze(self) -> None:
        """Exclude a frozen encoder from training. Loading weights undoes this."""
        if self.config.frozen:
            self.encoder.requires_grad_(False)
            self.encoder.eval()

    @property
    def _indices(self) -> list[int]:
        layer = self.config.layer
        if isinstance(layer, str):
            return []
        return [layer] if isinstance(layer, int) else list(layer)

    @property
    def width(self) -> int:
        """D of the features."""
        layers: list[Layer] = [*self._indices] or ["last"]
        return sum(self.family.width(self.encoder, layer) for layer in layers)

    def train(self, mode: bool = True) -> Expert:
        """As for any module, but a frozen encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.frozen:
            self.encoder.eval()
        return self

    def forward(self, pixels: Tensor, scores: bool = True) -> ExpertOutput:
        """Features of a batch of images, with keys and saliency of its scoring layer.

        pixels: (B, 3, H, W), resized and normalised as `config` says (the processor does).
        scores: whether to compute keys and saliency.
        Raises ExpertError if the pixels have another shape.
        """
        if pixels.ndim != 4 or pixels.shape[1:] != (3, *self.config.image_size):
            raise ExpertError(
                f"pixels of shape {tuple(pixels.shape)} for expert {self.config.name!r}: expected "
                f"(B, 3, {self.config.image_size[0]}, {self.config.image_size[1]})"
            )
        family, layers = self.family, self.family.layers(self.encoder)
        scoring = layers[self.config.scoring_layer]
        modules = {f"layer {i}": layers[i if i < 0 else i - 1] for i in self._indices}
        if scores:
            modules |= {"scoring": scoring} if family.watch is None else family.watch(scoring)
        dtype = next(p.dtype for p in self.encoder.parameters() if p.is_floating_point())
        grad = torch.is_grad_enabled() and not self.config.frozen
        with torch.set_grad_enabled(grad), watching(modules) as seen:
            last = family.run(self.encoder, pixels.to(dtype))
        prefix = family.prefix(self.encoder)
        parts = [family.tokens(_tensor(seen[f"layer {i}"])) for i in self._indices] or [last]
        features = torch.cat(parts, dim=-1)[:, prefix:]
        if not scores:
            return ExpertOutput(features, self.grid)
        with torch.no_grad():
            if family.attention is None:
                keys = family.tokens(_tensor(seen["scoring"])).detach()
                return ExpertOutput(features, self.grid, keys, keys.float().norm(dim=-1))
            heads = SegmentHeads([family.attention(scoring, seen)], prefix > 0, prefix)
            keys, saliency = heads.keys().detach(), heads.saliency(self.config.saliency)
        shape = features.shape[:2]
        return ExpertOutput(
            features, self.grid, keys.unflatten(0, shape), saliency.unflatten(0, shape)
        )


def _tensor(seen: Call) -> Tensor:
    return seen.output[0] if isinstance(seen.output, tuple) else seen.output
