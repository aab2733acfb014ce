"""Features, keys and attention of a stock model's vision encoders, read without hooks on layers.

Attention maps come from an attention function of this file; how a family pools and packs is taken
from the stock model itself, its projector replaced by one that hands values on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.tiny import Case


@dataclass
class Seen:
    """One encoded input: rows that the projector is given (R, Dt), tokens (N, D) and their
    DeepStack layers, and fields of VisualTokens by token."""

    rows: Tensor
    tokens: Tensor
    deep: list[Tensor]
    fields: dict[str, Tensor]
    source: Tensor


MAPS: dict[Any, list[tuple[Tensor, Tensor]]] = {}


def _recorded(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    groups = query.shape[1] // key.shape[1]
    own, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scaling = options["scaling"] or query.shape[-1] ** -0.5
    logits = query @ own.transpose(-1, -2) * scaling
    if (cap := options.get("softcap")) is not None:
        logits = cap * torch.tanh(logits / cap)
    if attention_mask is not None:
        logits = logits + attention_mask
    weights = logits.float().softmax(-1)
    MAPS.setdefault(module, []).append((key, weights))
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), weights


def _recorded_by_timm(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)
    MAPS[len(MAPS)] = [(key, weights)]
    return weights @ value


ALL_ATTENTION_FUNCTIONS.register("recorded", _recorded)
ALL_MASK_ATTENTION_FUNCTIONS.register("recorded", eager_mask)


@contextmanager
def recorded(case: Case, model: Any) -> Iterator[None]:
    """Every attention map of the vision side, in `MAPS` by attention module."""
    encoders = [case.core(model).get_submodule(path) for path in case.vision]
    before = [encoder.config._attn_implementation for encoder in encoders]
    MAPS.clear()
    for encoder in encoders:
        encoder.config._attn_implementation = "recorded"
    sdpa = nn.functional.scaled_dot_product_attention
    if case.by_timm:  # whose encoders ask for it by name
        nn.functional.scaled_dot_product_attention = _recorded_by_timm
    try:
        yield
    finally:
        nn.functional.scaled_dot_product_attention = sdpa
        for encoder, name in zip(encoders, before, strict=True):
            encoder.config._attn_implementation = name


def by_row(case: Case, kind: str, layer: int, name: str, rule: str = "auto") -> Tensor:
    """A field of one vision layer, by row of the encoder."""
    first = int(case.has_cls and not case.keeps_cls(kind))
    parts = []
    for key, weights in list(MAPS.values())[layer]:
        if case.cls_last:
            key, weights = key.roll(1, 2), weights.roll((1, 1), (2, 3))
        if name == "keys":
            parts.append(key.mean(1)[:, first:].flatten(0, 1))
        elif case.has_cls and rule != "received":
            parts.append(weights.mean(1)[:, 0, first:].flatten())
        else:
            parts.append(weights.mean(1).mean(1)[:, first:].flatten())
    return torch.cat(parts)


def encode(
    model: Any, case: Case, kind: str, variant: str, seed: int, layer: int | None = None
) -> Seen:
    """One input through the stock vision side."""
    if case.experts:
        return encode_experts(model, case, kind, variant, seed, layer)
    given = case.media(kind, [(variant, seed)])
    core = case.core(model)
    run = getattr(core, f"get_{kind}_features")
    entering: list[Tensor] = []
    projector = core.get_submodule(case.projector)
    handle = projector.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    with recorded(case, model):
        out = run(**given, return_dict=True)
    handle.remove()
    tokens = case.entering(model, flat(case.features(out)))
    deep = [flat(layer) for layer in case.deepstack(out)]

    def packed(values: Tensor) -> Tensor:
        """(R,) by row of the encoder -> (N,) by token, -1 at tokens outside the grid."""
        stub = Stub(case.pooled_as(kind, values), tokens.shape[1])
        stubbed = core.get_submodule(case.projector)
        stubbed.forward = stub
        newline = getattr(core, "image_newline", None)
        if newline is not None:
            newline_value = newline.data.clone()
            newline.data.fill_(-1.0)
        try:
            return flat(case.features(run(**given, return_dict=True)))[:, 0]
        finally:
            del stubbed.forward
            if newline is not None:
                newline.data.copy_(newline_value)

    layer = case.feature_layer if layer is None else layer
    saliency, keys = (by_row(case, kind, layer, name) for name in ("saliency", "keys"))
    fields = {
        "saliency": packed(saliency),
        "keys": torch.stack([packed(column) for column in keys.T], 1),
    }
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in entering if x.is_floating_point()])
    return Seen(rows, tokens, deep, fields, packed(torch.arange(float(len(saliency)))))


def encode_experts(
    model: Any, case: Case, kind: str, variant: str, seed: int, layer: int | None
) -> Seen:
    """One input through several encoders, each of which scores its own tokens."""
    run = getattr(model.model, f"get_{kind}_features")
    with recorded(case, model):
        tokens = flat(run(**case.media(kind, [(variant, seed)])).pooler_output)
    layer = case.feature_layer if layer is None else layer
    keys, saliency = [], []
    for path in case.vision:
        encoder = model.model.get_submodule(path)
        own = [seen for module, seen in MAPS.items() if module in set(encoder.modules())]
        ((key, weights),) = own[layer]
        first = int(hasattr(encoder.embeddings, "class_embedding"))
        asked = weights[:, :, :1] if first else weights
        saliency.append(asked.mean((1, 2))[:, first:, None])
        keys.append(key.mean(1)[:, first:])
    fields = {
        "saliency": case.by_token(kind, variant, saliency)[:, 0],
        "keys": case.by_token(kind, variant, keys),
    }
    return Seen(tokens, tokens, [], fields, torch.arange(len(tokens)))


class Stub:
    """In the place of a projector: gives values in its output's shape."""

    def __init__(self, values: Tensor, width: int) -> None:
        self.values, self.width = values, width

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        values = self.values.reshape(*x.shape[:-2], -1, 1)
        return values.expand(*values.shape[:-1], self.width)


def flat(features: Any) -> Tensor:
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in features])
