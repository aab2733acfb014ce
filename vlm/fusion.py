"""From the experts' features to the language model's tokens (after MouSi, arXiv 2401.17221).

The features of each expert become one *block* of tokens. The blocks of a visual input follow one
another, each with its own position scheme. MouSi's code was not released. The fusion follows
section 3 of the paper, except that features are joined by square windows of the grid, not by runs
of the raster, so that a token covers one region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel
from transformers.activations import ACT2FN

import positions
from positions import Image, Scheme, Sequential, Text, Video, plan

Pair = tuple[int, int]


class FusionError(ValueError):
    """A fusion that cannot be built, or inputs that do not fit it."""


@dataclass
class FusionConfig:
    """How features of several experts become tokens. Saved with the checkpoint.

    kind: "mlp": a first layer for each expert, a second that all share (with one expert and no
        windows, LLaVA-1.5's projector). "qformer": learned queries for each expert attend to its
        projected features in a Q-Former that all share (BLIP-2, arXiv 2301.12597, section 3.1).
    width: of the hidden layer (the Q-Former); by default the language model's.
    activation, bias: of the MLP.
    window: grid cells on a side of the square that becomes one token ("mlp"), by expert
        (default 1). A grid that it does not divide is extended by its last row or column.
    queries: tokens of each expert ("qformer"). layers, heads: of the Q-Former.
    scheme: of an expert's block, by expert: {"type": the name of a class in `positions`, ...its
        fields}. By default, tokens are numbered as text is.
    drop: the probability in training that an expert's block of an image is set to zero. At least
        one block of each image stays.
    """

    kind: Literal["mlp", "qformer"] = "mlp"
    width: int | None = None
    activation: str = "gelu"
    bias: bool = True
    window: dict[str, int] = field(default_factory=dict)
    queries: int = 64
    layers: int = 2
    heads: int = 8
    scheme: dict[str, dict[str, Any]] = field(default_factory=dict)
    drop: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "qformer"):
            raise FusionError(f"kind={self.kind!r}: expected 'mlp' or 'qformer'")
        if self.activation not in ACT2FN:
            raise FusionError(f"activation={self.activation!r}: transformers has none of that name")
        if not 0 <= self.drop < 1:
            raise FusionError(f"drop={self.drop}: expected a chance from 0 to below 1")
        for name, size in {**self.window, "queries": self.queries}.items():
            if not isinstance(size, int) or size < 1:
                raise FusionError(f"window or number of {name!r} is {size!r}: expected 1 or more")
        for name in self.scheme:
            self.scheme_of(name)

    @classmethod
    def of(cls, value: FusionConfig | Mapping[str, Any] | None) -> FusionConfig:
        """The configuration from a dict, as in the config.json of a checkpoint."""
        if isinstance(value, FusionConfig):
            return value
        unknown = set(value or {}) - {f.name for f in fields(cls)}
        if unknown:
            raise FusionError(f"unknown fusion settings {sorted(unknown)}")
        return cls(**(value or {}))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def grid(self, expert: str, raster: Pair) -> Pair:
        """The (rows, columns) of tokens for (rows, columns) of features."""
        if self.kind == "qformer":
            return 1, self.queries
        size = self.window.get(expert, 1)
        return -(-raster[0] // size), -(-raster[1] // size)

    def scheme_of(self, expert: str) -> Scheme | None:
        """The position scheme of the blocks of an expert. None numbers them as text."""
        settings = dict(self.scheme.get(expert) or {})
        if not settings:
            return None
        name = settings.pop("type", None)
        known = [n for n in positions.__all__ if hasattr(getattr(positions, n), "place")]
        if name not in known or name == "Scheme":
            known.remove("Scheme")
            raise FusionError(f"scheme of {expert!r} is {name!r}: expected one of {known}")
        try:
            scheme: Scheme = getattr(positions, name)(**settings)
        except TypeError as error:
            raise FusionError(f"scheme of {expert!r}: {error}") from error
        return scheme


@dataclass(frozen=True)
class Block:
    """The tokens that one visual input has from one expert, in raster order.

    grid: (steps, rows, columns) of tokens; steps is 1 except for videos.
    times: of a video, the time stamp of every step in seconds.
    """

    expert: str
    grid: tuple[int, int, int]
    times: tuple[float, ...] | None = None
    video: bool = False

    @property
    def tokens(self) -> int:
        """The number of tokens."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    def segment(self, scheme: Scheme | None) -> Image | Video:
        """The block as a segment for `positions.plan`."""
        if self.video:
            return Video(self.grid, times=self.times, scheme=scheme, expert=self.expert)
        return Image(self.grid[1:], scheme=scheme, expert=self.expert)


def image_blocks(grids: Mapping[str, Pair], tiles: Mapping[str, Pair]) -> tuple[Block, ...]:
    """The blocks of one image.

    grids: the tokens of one view, by expert. tiles: the arrangement of tiles, by expert. If it
    is larger than (1, 1), the whole image is followed by its tiles, joined to one grid.
    """
    blocks = []
    for name, (rows, columns) in grids.items():
        blocks.append(Block(name, (1, rows, columns)))
        down, across = tiles.get(name, (1, 1))
        if down * across > 1:
            blocks.append(Block(name, (1, down * rows, across * columns)))
    return tuple(blocks)


def video_blocks(
    grids: Mapping[str, Pair], frames: int, times: tuple[float, ...] | None = None
) -> tuple[Block, ...]:
    """The blocks of one video: all frames from the first expert, then from the next."""
    return tuple(Block(name, (frames, *grid), times, True) for name, grid in grids.items())


def windows(x: Tensor, grid: Pair, size: int) -> Tensor:
    """Features by square windows of their grid: (B, N, D) -> (B, windows, size * size, D).

    Windows and the features within them are in raster order. The last row and column are repeated
    where `size` does not divide the grid.
    """
    rows, columns = grid
    down, across = -rows % size, -columns % size
    x = x.unflatten(1, grid)
    if down or across:
        x = x[:, torch.arange(rows + down).clamp(max=rows - 1)]
        x = x[:, :, torch.arange(columns + across).clamp(max=columns - 1)]
    x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
    return x.transpose(2, 3).flatten(1, 2).flatten(2, 3)


class Fusion(nn.Module):
    """The trained part between experts and language model.

    widths: D of each expert's features, by name, in the order of the blocks.
    out: the language model's width.
    generator: for the draws of `config.drop`; None for the global one.
    """

    generator: torch.Generator | None = None

    def __init__(self, config: FusionConfig, widths: Mapping[str, int], out: int) -> None:
        super().__init__()
        for name in [*config.window, *config.scheme]:
            if name not in widths:
                raise FusionError(f"window or scheme of {name!r}: expected one of {list(widths)}")
        self.config = config
        hidden = config.width or out
        if config.kind == "mlp":
            self.first = nn.ModuleDict(
                {
                    name: nn.Linear(width * config.window.get(name, 1) ** 2, hidden, config.bias)
                    for name, width in widths.items()
                }
            )
            self.activation = ACT2FN[config.activation]
        else:
            if hidden % config.heads:
                raise FusionError(f"heads={config.heads} do not divide the width {hidden}")
            self.first = nn.ModuleDict({n: nn.Linear(w, hidden) for n, w in widths.items()})
            self.queries = nn.ParameterDict(
                {name: nn.Parameter(torch.randn(config.queries, hidden) * 0.02) for name in widths}
            )
            self.qformer = Blip2QFormerModel._from_config(
                Blip2QFormerConfig(
                    hidden_size=hidden,
                    encoder_hidden_size=hidden,
                    intermediate_size=4 * hidden,
                    num_hidden_layers=config.layers,
                    num_attention_heads=config.heads,
                    cross_attention_frequency=1,
                    hidden_dropout_prob=0.0,
                    attention_probs_dropout_prob=0.0,
                )
            )
        self.second = nn.Linear(hidden, out, config.bias)

    def forward(self, expert: str, features: Tensor, grid: Pair) -> Tensor:
        """(B, N, D) features of `expert`, with N = rows * columns, to (B, tokens, out)."""
        first: nn.Module = self.first[expert]
        # By `parameters`: under ZeRO-3 the attribute itself would gather the weight.
        features = features.to(next(self.second.parameters()).dtype)
        if self.config.kind == "mlp":
            parts = windows(features, grid, self.config.window.get(expert, 1))
            return self.second(self.activation(first(parts.flatten(2))))
        queries = self.queries[expert].expand(len(features), -1, -1)
        return self.second(
            self.qformer(query_embeds=queries, encoder_hidden_states=first(features))[0]
        )

    def per_token(self, expert: str, x: Tensor | None, grid: Pair) -> Tensor | None:
        """Keys (B, N, Dk) or saliency (B, N) of features as means over the window of each token.

        None for a Q-Former, whose tokens have no window.
        """
        if x is None or self.config.kind == "qformer":
            return None
        features = x if x.ndim == 3 else x[..., None]
        mean = windows(features, grid, self.config.window.get(expert, 1)).mean(2)
        return mean if x.ndim == 3 else mean[..., 0]

    def draw(self, inputs: int) -> Tensor:
        """(inputs, experts) bool: which blocks stay in this training step."""
        shape = (inputs, len(self.first))
        if not self.training or self.config.drop == 0:
            return torch.ones(shape, dtype=torch.bool)
        chance = torch.rand(shape, generator=self.generator)
        # The block with the highest draw always stays.
        return (chance >= self.config.drop) | F.one_hot(chance.argmax(1), shape[1]).bool()


def report(blocks: tuple[Block, ...], config: FusionConfig) -> list[dict[str, Any]]:
    """For each block: expert, grid of tokens, number of tokens, and number of positions."""
    rows = []
    for block in blocks:
        scheme = config.scheme_of(block.expert)
        rows.append(
            {
                "expert": block.expert,
                "grid": block.grid,
                "tokens": block.tokens,
                "scheme": repr(scheme or Sequential()),
                # After one token of text, as schemes that look back expect.
                "positions": plan([Text(1), block.segment(scheme)]).next_position - 1,
            }
        )
    return rows
