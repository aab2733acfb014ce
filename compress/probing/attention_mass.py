"""Where the attention of the last token of a prompt goes, by segment and by place.

Causal masks push mass to early tokens over the layers, and rotary embeddings to near ones (arXiv
2502.01951): what stands in the middle may be read least. Two measures: attention of the last token
in each layer, mean over heads, and its rollout through all layers, each half attention, half
residual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CompressionError
from compress.methods import Method
from compress.runtime.attach import compress
from compress.runtime.context import PrefillState, current_context
from vlm.families import adapter_of

PARTS = ("first token", "text before", "visual", "text after")


@dataclass(frozen=True)
class AttentionMass:
    """Of one prompt, whose W tokens entered the language model.

    layers: (L, W) float64, the last token's attention in each decoder layer; 0 at tokens that had
    left. rollout: (W,) float64. place: (W,) float64, where a visual token stands among all dense
    ones of the prompt, 0 to 1; NaN for text.
    """

    layers: Tensor
    rollout: Tensor
    place: Tensor

    @property
    def rows(self) -> Tensor:
        """(L + 1, W): the layers, then the rollout."""
        return torch.cat([self.layers, self.rollout[None]])

    def parts(self) -> dict[str, Tensor]:
        """(L + 1,) for each of `PARTS`: their shares, which sum to one."""
        visual = ~self.place.isnan()
        first = torch.zeros_like(visual)
        first[0] = not bool(visual[0])
        begun = visual.cumsum(0) > 0
        masks = (first, ~first & ~begun, visual, ~visual & begun)
        return {name: self.rows[:, mask].sum(1) for name, mask in zip(PARTS, masks, strict=True)}

    def facts(self, bins: int = 8) -> dict[str, Any]:
        """The parts and `bins` places as plain lists, as `draw_mass` takes them."""
        parts = {name: shares.tolist() for name, shares in self.parts().items()}
        return {"parts": parts, "places": self.by_place(bins).tolist()}

    def by_place(self, bins: int) -> Tensor:
        """(L + 1, bins): shares of the visual tokens in equal parts of the dense sequence."""
        visual = ~self.place.isnan()
        index = (self.place[visual] * bins).long().clamp(max=bins - 1)
        shares = self.rows.new_zeros(len(self.rows), bins)
        return shares.index_add(1, index, self.rows[:, visual])


@torch.no_grad()
def attention_mass(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    method: str | Method = "uniform",
    budget: int | float = 1.0,
    **options: Any,
) -> AttentionMass:
    """Measure one prompt with visual inputs, by default dense.

    inputs: of one sample. options: of `compress`.

    Raises CompressionError if the language model's attention is not "eager", which alone returns
    its maps, or some layers have none.
    """
    adapter = adapter_of(model)
    implementation = adapter.language_model.config._attn_implementation
    if implementation != "eager":
        raise CompressionError(
            f"attention implementation {implementation!r} returns no attention: expected 'eager' "
            "(model.set_attn_implementation)"
        )
    maps: list[tuple[Tensor, Tensor | None]] = []
    prefills: list[PrefillState] = []

    def note(module: Any, args: Any, output: Any) -> None:
        prefill: Any = current_context().prefill  # type: ignore[union-attr]
        maps.append((output[1][0].double().mean(0), prefill.index))
        prefills.append(prefill)

    if any(not hasattr(layer, "self_attn") for layer in adapter.layers):
        raise CompressionError(
            f"{type(adapter.language_model).__name__} has layers without attention: expected a "
            "model with attention in all"
        )
    with compress(model, method, budget, **options):
        handles = [layer.self_attn.register_forward_hook(note) for layer in adapter.layers]
        try:
            model(**inputs, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    width = prefills[0].entry_layout.mask.shape[1]
    whole = [_at_entry(attention, index, width) for attention, index in maps]
    layers = torch.stack([attention[-1] for attention in whole])
    layers = layers * torch.stack([_left(index, width) for _, index in maps])
    return AttentionMass(layers, rollout(whole), _places(prefills[0], width))


def rollout(maps: Sequence[Tensor]) -> Tensor:
    """(W,) float64: from the last token back through the layers' maps (W, W), each half attention
    and half residual (Abnar and Zuidema 2020)."""
    mass = torch.zeros_like(maps[0][0])
    mass[-1] = 1
    for attention in reversed(maps):
        mass = (mass @ attention + mass) / 2
    return mass


def _left(index: Tensor | None, width: int) -> Tensor:
    """(W,): 1 at the tokens that are left."""
    left = torch.zeros(width, dtype=torch.float64)
    left[slice(None) if index is None else index[0].cpu()] = 1
    return left


def _at_entry(attention: Tensor, index: Tensor | None, width: int) -> Tensor:
    """(W, W): a map of the tokens that are left among all that entered; others keep to
    themselves."""
    attention = attention.cpu()
    if index is None:
        return attention
    whole, own = torch.eye(width, dtype=torch.float64), index[0].cpu()
    whole[own] = 0
    whole[own[:, None], own] = attention
    return whole


def _places(prefill: PrefillState, width: int) -> Tensor:
    """(W,): see `AttentionMass.place`."""
    place = torch.full((width,), torch.nan, dtype=torch.float64)
    counts = [reduction.assign.shape[1] for reduction in prefill.first]
    starts = [sum(counts[:number]) for number in range(len(counts))]
    anchors = [
        reduction.anchor[0].cpu().double() + start
        for reduction, start in zip(prefill.first, starts, strict=True)
    ]
    columns = prefill.entry_layout.columns.cpu()
    place[columns] = (torch.cat(anchors) + 0.5) / sum(counts)
    return place
