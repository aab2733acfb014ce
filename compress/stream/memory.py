"""The bounded key/value cache of a stream, and what is known of each token in it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from compress.report.record import cache_bytes
from positions import ChannelTable, Held, rerotate
from positions.channels import inverse_frequencies
from vlm.decoder import CACHE
from vlm.families import ModelAdapter


@dataclass(frozen=True)
class Rows:
    """S cached tokens of one group of decoder layers, in order.

    held: steps and positions. cell: (S,) int64, raster index in the step, -1 for text. draw: (S,)
    float64, a number in [0, 1) drawn for each token. fields: (S, ...) each, 0 at text.
    """

    held: Held
    cell: Tensor
    draw: Tensor
    fields: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.cell)

    @property
    def step(self) -> Tensor:
        """(S,) int64: the step of each token, -1 before the stream."""
        return self.held.step

    def gather(self, index: Tensor) -> Rows:
        """The tokens at `index` (S',) int64."""
        fields = {name: x[index.to(x.device)] for name, x in self.fields.items()}
        return Rows(self.held.gather(index), self.cell[index], self.draw[index], fields)

    def then(self, other: Rows) -> Rows:
        """These tokens, then others."""
        fields = {}
        for name in self.fields | other.fields:
            known = self.fields.get(name, other.fields.get(name))
            shape = known.shape[1:]  # type: ignore[union-attr]
            fields[name] = torch.cat(
                [
                    rows.fields.get(name, known.new_zeros(len(rows), *shape))  # type: ignore
                    for rows in (self, other)
                ]
            )
        cell, draw = torch.cat([self.cell, other.cell]), torch.cat([self.draw, other.draw])
        return Rows(self.held.then(other.held), cell, draw, fields)


class Memory:
    """Keys and values of all decoder layers, shared by copies until one of them grows.

    groups: the group of each decoder layer; layers of a group hold the same tokens, and all groups
    hold the same number. raw: whether keys are held before rotation.
    """

    def __init__(self, adapter: ModelAdapter, groups: Sequence[int], raw: bool = False) -> None:
        self.adapter, self.groups, self.raw = adapter, tuple(groups), raw
        self.cache: Any = DynamicCache(config=adapter.language_model.config)
        self.rows: list[Rows] = []
        self._channels = ChannelTable.of(adapter.rotary)

    def __len__(self) -> int:
        return len(self.rows[0]) if self.rows else 0

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and recurrent states."""
        states = [x for layer in self.cache.layers for x in states_of(layer).values()]
        return cache_bytes(self.cache) + sum(x.numel() * x.element_size() for x in states)

    @property
    def attending(self) -> list[int]:
        """Decoder layers that hold keys."""
        kinds = self.adapter.layer_kinds
        return [layer for layer, kind in enumerate(kinds) if kind == "full_attention"]

    def fork(self) -> Memory:
        """A copy that can grow and be cut without changing this one."""
        other = copy.copy(self)
        other.rows = list(self.rows)
        other.cache = copy.copy(self.cache)
        # A layer that holds keys replaces its tensors; recurrent states are written in place.
        other.cache.layers = [
            copy.deepcopy(layer) if hasattr(layer, "recurrent_states") else copy.copy(layer)
            for layer in self.cache.layers
        ]
        return other

    def settle(self, positions: Sequence[Tensor]) -> None:
        """Of raw keys: set the positions (S, 3) of each group at which a forward rotates them."""
        self.rows = [
            replace(rows, held=rows.held.moved(now))
            for rows, now in zip(self.rows, positions, strict=True)
        ]

    def rotated(self) -> Memory:
        """A fork with rotated keys, also where this memory's are raw."""
        other = self.fork()
        other.raw = False
        for layer in self.attending if self.raw else ():
            now = self.rows[self.groups[layer]].held.now
            held = other.cache.layers[layer]
            held.keys = self._turn(held.keys, torch.zeros_like(now), now)
        return other

    @torch.no_grad()
    def extend(
        self,
        embeds: Tensor,
        rows: Sequence[Rows],
        deepstack: tuple[Sequence[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Run new tokens through the language model and hold them; returns (1, n, D), normed.

        embeds: (1, n, D). rows: of the new tokens, for each group, at equal positions. deepstack:
        (v, D) for each of the first layers, and the visual tokens (n,) bool.
        """
        working = self.rotated() if self.raw and self.rows else self
        new, now = embeds.shape[1], rows[0].held.now
        places = now[:, 0][None] if rows[0].held.one_axis else now.T[:, None]
        given: dict[str, Any] = {}
        if deepstack is not None and deepstack[0]:
            given = {
                "visual_pos_masks": deepstack[1][None].to(embeds.device),
                "deepstack_visual_embeds": list(deepstack[0]),
            }
        mask = torch.ones(1, len(self) + new, dtype=torch.int64, device=embeds.device)
        output = self.adapter.language_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=places.float().to(embeds.device),
            **{CACHE: working.cache},
            use_cache=True,
            **given,
        )
        if self.raw:
            self._take_new(working, new, now)
        self.rows = [a.then(b) for a, b in zip(self.rows, rows, strict=False)] or [
            rows[0] for _ in range(max(self.groups) + 1)
        ]
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _take_new(self, working: Memory, new: int, now: Tensor) -> None:
        """Hold the newest keys and values of a rotated fork, before rotation."""
        for layer, other in enumerate(working.cache.layers):
            own = self.cache.layers[layer]
            if layer not in self.attending:
                self.cache.layers[layer] = other
                continue
            raw = self._turn(other.keys[..., -new:, :], now, torch.zeros_like(now))
            if working is self:  # the first tokens
                own.keys = raw
            else:
                own.update(raw, other.values[..., -new:, :])

    def keep(self, indices: Sequence[Tensor]) -> None:
        """Hold only the tokens at `indices` (S',) int64 of each group, and evict the others."""
        self.rows = [rows.gather(index) for rows, index in zip(self.rows, indices, strict=True)]
        for layer in self.attending:
            held = self.cache.layers[layer]
            index = indices[self.groups[layer]].to(held.keys.device)
            held.keys, held.values = held.keys[:, :, index], held.values[:, :, index]

    def append(self, other: Memory, first: int) -> None:
        """Hold the tokens of another memory too, from its token number `first` on."""
        for layer in self.attending:
            keys, values = (getattr(other.cache.layers[layer], n) for n in ("keys", "values"))
            self.cache.layers[layer].update(keys[..., first:, :], values[..., first:, :])
        self.rows = [
            a.then(b.gather(torch.arange(first, len(b))))
            for a, b in zip(self.rows, other.rows, strict=True)
        ]

    def move(self, positions: Sequence[Tensor]) -> None:
        """Rotate held keys to new positions (S, 3) of each group."""
        for layer in self.attending:
            group, held = self.groups[layer], self.cache.layers[layer]
            held.keys = self._turn(held.keys, self.rows[group].held.now, positions[group])
        self.rows = [
            replace(rows, held=rows.held.moved(now))
            for rows, now in zip(self.rows, positions, strict=True)
        ]

    def _turn(self, keys: Tensor, old: Tensor, new: Tensor) -> Tensor:
        """Keys rotated from old to new positions (S, 3); those that do not move stay as they are,
        bit for bit."""
        inv_freq = inverse_frequencies(self.adapter.rotary)
        moving = (old != new).any(1)
        if not bool(moving.any()):
            return keys
        turned = rerotate(keys, old[:, None], new[:, None], inv_freq, self._channels)
        return torch.where(moving.to(keys.device)[:, None], turned, keys)


def states_of(layer: Any) -> dict[str, Tensor]:
    """Recurrent states of a cache layer by name, each of a fixed size."""
    found: dict[str, Tensor] = {}
    for name in ("conv_states", "recurrent_states"):
        states = getattr(layer, name, None) or {}
        pairs = states.items() if isinstance(states, dict) else enumerate(states)
        found |= {f"{name}.{n}": x for n, x in pairs if isinstance(x, Tensor)}
    return found
