"""A slow, obvious reduced forward for one unpadded sample: no hooks, no cache, eager attention.

It is written from the formulas and shares no code with the package beyond the method's own choice
on bare tensors, which `tests/compress/test_methods.py` checks against numpy. What the vision side
saw is taken from a tower that runs an attention function of this file; how a family pools and
packs is taken from the stock model itself, its projector replaced by one that hands values on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compress.methods import Method
from compress.methods.windows import deal
from compress.tokens import VisualTokens
from tests.tiny import IMAGE_TOKEN, VIDEO_TOKEN, Case, Sample

TOKEN = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN}


@dataclass
class Prefix:
    """A reduced prompt: embeddings (S, D), positions (S, A) on A axes, number of the visual input
    or -1 (S,), where the next token stands, and what DeepStack adds after each layer, (S, D)."""

    embeds: Tensor
    positions: Tensor
    image: Tensor
    following: int
    deep: list[Tensor] = field(default_factory=list)


@dataclass
class Seen:
    """One encoded input: rows that the projector is given (R, Dt), tokens (N, D) and their
    DeepStack layers, and fields of VisualTokens by token."""

    rows: Tensor
    tokens: Tensor
    deep: list[Tensor]
    fields: dict[str, Tensor]
    source: Tensor


# ------------------------------------------------------------------ the vision side


_MAPS: dict[Any, list[tuple[Tensor, Tensor]]] = {}


def _recorded(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **options: Any
) -> tuple[Tensor, Tensor]:
    logits = query @ key.transpose(-1, -2) * options["scaling"]
    if attention_mask is not None:
        logits = logits + attention_mask
    weights = logits.float().softmax(-1)
    _MAPS.setdefault(module, []).append((key, weights))
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), weights


ALL_ATTENTION_FUNCTIONS.register("recorded", _recorded)
ALL_MASK_ATTENTION_FUNCTIONS.register("recorded", eager_mask)


@contextmanager
def recorded(case: Case, model: Any) -> Iterator[None]:
    """Every attention map of the vision side, in `_MAPS` by attention module."""
    towers = [model.model.get_submodule(path) for path in case.vision]
    before = [tower.config._attn_implementation for tower in towers]
    _MAPS.clear()
    for tower in towers:
        tower.config._attn_implementation = "recorded"
    try:
        yield
    finally:
        for tower, name in zip(towers, before, strict=True):
            tower.config._attn_implementation = name


def by_row(case: Case, kind: str, layer: int, name: str, rule: str = "auto") -> Tensor:
    """A field of one vision layer, by row of the tower."""
    first = int(case.has_cls and not case.keeps_cls(kind))
    parts = []
    for key, weights in list(_MAPS.values())[layer]:
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
    given = case.media(kind, [(variant, seed)])
    core = model.model
    run = getattr(core, f"get_{kind}_features")
    entering: list[Tensor] = []
    projector = core.get_submodule(case.projector)
    handle = projector.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    with recorded(case, model):
        out = run(**given, return_dict=True)
    handle.remove()
    tokens = flat(out.pooler_output)
    deep = [flat(layer) for layer in getattr(out, "deepstack_features", None) or []]

    def packed(values: Tensor) -> Tensor:
        """(R,) by row of the tower -> (N,) by token, -1 at what is no cell."""
        stub = Stub(case.pooled(values), tokens.shape[1])
        stubbed = core.get_submodule(case.projector)
        stubbed.forward = stub
        newline = getattr(core, "image_newline", None)
        if newline is not None:
            held = newline.data.clone()
            newline.data.fill_(-1.0)
        try:
            return flat(run(**given, return_dict=True).pooler_output)[:, 0]
        finally:
            del stubbed.forward
            if newline is not None:
                newline.data.copy_(held)

    layer = case.feature_layer if layer is None else layer
    saliency, keys = (by_row(case, kind, layer, name) for name in ("saliency", "keys"))
    fields = {
        "saliency": packed(saliency),
        "keys": torch.stack([packed(column) for column in keys.T], 1),
    }
    rows = torch.cat([x.reshape(-1, x.shape[-1]) for x in entering])
    return Seen(rows, tokens, deep, fields, packed(torch.arange(float(len(saliency)))))


class Stub:
    """In the place of a projector: gives values in its output's shape."""

    def __init__(self, values: Tensor, width: int) -> None:
        self.values, self.width = values, width

    def __call__(self, x: Tensor, *_: Any) -> Tensor:
        values = self.values.reshape(*x.shape[:-2], -1, 1)
        return values.expand(*values.shape[:-1], self.width)


def flat(features: Any) -> Tensor:
    return torch.cat([x.reshape(-1, x.shape[-1]) for x in features])


def reduce_input(
    model: Any, case: Case, method: Method, keep: int, seen: Seen, kind: str, variant: str
) -> tuple[Tensor, list[list[int]], list[int]]:
    """Rows for the language model (M, D), the tokens merged in each, and the token of each."""
    if keep == len(seen.tokens):
        every = list(range(keep))
        return seen.tokens, [[i] for i in every], every
    views = case.views(kind, variant)
    cells = [len(slots) for _, slots in views]
    towards = method.space == "tower" and case.pools == 1
    features, members, anchors = [], [], []
    for (grid, slots), count in zip(views, deal(keep, cells), strict=True):
        where = torch.tensor(slots)
        source = seen.source[where].long()
        x = seen.rows[source] if towards else seen.tokens[where]
        fields = {name: value[where][None] for name, value in seen.fields.items()}
        reduction = method.reduce(VisualTokens(x[None], grid, **fields), count)
        rows = reduction.features[0]
        features.append(_project(model, case, rows) if towards else rows)
        members += [where[reduction.members(i)].tolist() for i in range(count)]
        anchors += where[reduction.anchor[0]].tolist()
    return torch.cat(features), members, anchors


def _project(model: Any, case: Case, rows: Tensor) -> Tensor:
    return model.model.get_submodule(case.projector)(rows[None])[0]


# ------------------------------------------------------------------ the prompt


def dense_positions(model: Any, case: Case, sample: Sample) -> tuple[Tensor, int]:
    """(S, A) positions that the stock model gives a sample alone, and the next one's."""
    found: list[Tensor] = []
    lm = language_model(model)

    def look(module: Any, args: Any, kwargs: Any) -> None:
        found.append(kwargs.get("position_ids", args[1] if len(args) > 1 else None))

    handle = lm.rotary_emb.register_forward_pre_hook(look, with_kwargs=True)
    model(**case.inputs([sample]))
    handle.remove()
    got = found[0]
    got = got[:, 0].T if got.ndim == 3 else got[0][:, None]
    return got, int(got.max()) + 1


def language_model(model: Any) -> Any:
    core = model.model
    return getattr(core, "language_model", None) or core.text_model


def reduce_prompt(
    model: Any, case: Case, method: Method, budget: int, sample: Sample
) -> tuple[Prefix, list[Any]]:
    """The reduced prompt, and the allocation of each of its inputs."""
    lm = language_model(model)
    words = model.get_input_embeddings()(sample.ids)
    positions, following = dense_positions(model, case, sample)
    seen = [encode(model, case, *one, layer=method.scoring_layer) for one in sample.shown]
    allocations = [method.allocate(len(s.tokens), len(lm.layers), budget) for s in seen]
    places = _places(case, sample)
    keep = {}
    for number, (one, s, allocation) in enumerate(
        zip(sample.shown, seen, allocations, strict=True)
    ):
        x, members, anchors = reduce_input(model, case, method, allocation.keep, s, one[0], one[1])
        for row, (group, anchor) in enumerate(zip(members, anchors, strict=True)):
            deep = [layer[group].mean(0) for layer in s.deep]
            keep[places[number][anchor]] = (x[row], deep, number)
    owned = {place for every in places for place in every}
    layers = max(len(s.deep) for s in seen)
    embeds, at, image, deep = [], [], [], [[] for _ in range(layers)]
    for place in range(len(sample.ids)):
        if place in owned and place not in keep:
            continue
        x, added, number = keep.get(
            place, (words[place], [torch.zeros_like(words[0])] * layers, -1)
        )
        embeds.append(x)
        at.append(positions[place])
        image.append(number)
        for layer, extra in zip(deep, added, strict=True):
            layer.append(extra)
    prefix = Prefix(
        torch.stack(embeds),
        torch.stack(at),
        torch.tensor(image),
        following,
        [torch.stack(layer) for layer in deep],
    )
    return prefix, allocations


def _places(case: Case, sample: Sample) -> list[list[int]]:
    """Places in the prompt of each input's tokens."""
    found = []
    ids = sample.ids.tolist()
    left = {kind: iter([i for i, x in enumerate(ids) if x == TOKEN[kind]]) for kind in TOKEN}
    for kind, variant, _ in sample.shown:
        count = int((case.tokens(kind, variant) == TOKEN[kind]).sum())
        found.append([next(left[kind]) for _ in range(count)])
    return found


# ------------------------------------------------------------------ the language model


def attention(lm: Any, layer: Any, h: Tensor, positions: Tensor) -> Tensor:
    """Every head's whole causal attention map, (heads, S, S)."""
    block, width = layer.self_attn, layer.self_attn.head_dim
    normed = layer.input_layernorm(h)
    places = positions.T[:, None] if positions.shape[1] > 1 else positions.T
    cos, sin = lm.rotary_emb(h[None], position_ids=places)

    def heads(x: Tensor, norm: str) -> Tensor:
        x = x.unflatten(-1, (-1, width))
        x = (getattr(block, norm)(x) if hasattr(block, norm) else x).transpose(0, 1)
        a, b = x.chunk(2, -1)
        return x * cos[0] + torch.cat([-b, a], -1) * sin[0]

    q, k = heads(block.q_proj(normed), "q_norm"), heads(block.k_proj(normed), "k_norm")
    logits = q @ k.repeat_interleave(q.shape[0] // k.shape[0], 0).transpose(1, 2) * width**-0.5
    above = torch.ones(logits.shape[1:], dtype=torch.bool).triu(1)
    return logits.masked_fill(above, -torch.inf).softmax(-1)


def forward(
    model: Any, prefix: Prefix, stages: Sequence[dict[int, int]], new: Tensor | None = None
) -> tuple[Tensor, list[int]]:
    """Logits (S, V) of the tokens that reach the last layer, and the tokens in each layer.

    stages: for each visual input, decoder layer -> its tokens from there on, by the attention of
    the last prompt token. new: (t,) ids that follow the prompt (they do not change the choice).
    """
    lm = language_model(model)
    h, positions, image = prefix.embeds, prefix.positions, prefix.image
    new = torch.tensor([], dtype=torch.int64) if new is None else new
    h = torch.cat([h, model.get_input_embeddings()(new)])
    later = prefix.following + torch.arange(len(new))
    positions = torch.cat([positions, later[:, None].expand(-1, positions.shape[1])])
    image = torch.cat([image, torch.full((len(new),), -1)])
    deep = [torch.cat([x, torch.zeros(len(new), x.shape[1])]) for x in prefix.deep]
    lengths = []
    for number, layer in enumerate(lm.layers):
        if any(number in one for one in stages):
            asking = len(h) - len(new) - 1
            scores = attention(lm, layer, h, positions)[:, asking].mean(0)
            stay = image < 0
            for one, counts in enumerate(stages):
                mine = (image == one).nonzero().flatten().tolist()
                order = sorted(mine, key=lambda i: (-float(scores[i]), i))
                stay[order[: counts.get(number, len(mine))]] = True
            h, positions, image = h[stay], positions[stay], image[stay]
            deep = [x[stay] for x in deep]
        weight = attention(lm, layer, h, positions)
        value = layer.self_attn.v_proj(layer.input_layernorm(h))
        value = value.unflatten(-1, (-1, layer.self_attn.head_dim)).transpose(0, 1)
        value = value.repeat_interleave(weight.shape[0] // value.shape[0], 0)
        h = h + layer.self_attn.o_proj((weight @ value).transpose(0, 1).flatten(1))
        h = h + layer.mlp(layer.post_attention_layernorm(h))
        if number < len(deep):
            h = h + deep[number]
        lengths.append(len(h))
    return model.lm_head(lm.norm(h)), lengths


def greedy(
    model: Any, prefix: Prefix, stages: Sequence[dict[int, int]], steps: int
) -> tuple[Tensor, Tensor]:
    """Greedy ids (steps,) and the logits (steps, V) that each was chosen from."""
    ids: list[int] = []
    rows = []
    for _ in range(steps):
        logits, _ = forward(model, prefix, stages, torch.tensor(ids, dtype=torch.int64))
        rows.append(logits[-1])
        ids.append(int(logits[-1].argmax()))
    return torch.tensor(ids), torch.stack(rows)
