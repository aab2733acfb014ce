"""A slow, obvious reduced forward for one unpadded sample: no hooks, no cache, eager attention.

The stock decoder layers run one by one on the tokens that are left (`tests/reference_layers.py`).
No code is shared with the package beyond the method's own choice on bare tensors, which
`tests/compress/methods/test_methods.py` checks against numpy. What the vision side saw is read by
`tests/reference_vision.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from compress.calibration import Calibration
from compress.methods import Method
from compress.ops.windows import deal
from compress.tokens import LayerTokens, VisualTokens
from tests.reference_counts import counts_of
from tests.reference_layers import (
    LayerRun,
    Shared,
    Terms,
    Tokens,
    kinds_of,
    language_model,
    run_layer,
)
from tests.reference_vision import Seen, encode
from tests.tiny import IMAGE_TOKEN, PAD, VIDEO_TOKEN, Case, Sample

TOKEN = {"image": IMAGE_TOKEN, "video": VIDEO_TOKEN}


@dataclass
class Prefix:
    """A reduced prompt, where the next token stands, the tokens that it had, the method, for each
    visual input its tokens in each decoder layer and its grid, and what attention gets added."""

    tokens: Tokens
    following: int
    dense: int
    method: Method
    counts: list[tuple[int, ...]]
    grids: list[tuple[int, int, int]]
    terms: Terms
    case: Case


def reduce_input(
    model: Any,
    case: Case,
    method: Method,
    keep: int,
    seen: Seen,
    kind: str,
    variant: str,
    text: Tensor | None = None,
) -> tuple[Tensor, list[list[int]], list[int]]:
    """Rows for the language model (M, D), the tokens merged in each, and the token of each.

    text: (Q, D) embeddings of the text after the first visual input, for methods that read it.
    """
    if keep == len(seen.tokens):
        all_kept = list(range(keep))
        return seen.tokens, [[i] for i in all_kept], all_kept
    views = case.views(kind, variant)
    counts = [len(slots) for _, slots in views]
    towards = method.features_from == "pre_projector" and case.merges_before(kind)
    features, members, anchors = [], [], []
    for (grid, slots), count in zip(views, deal(keep, counts), strict=True):
        where = torch.tensor(slots)
        source = seen.source[where].long()
        x = seen.rows[source] if towards else seen.tokens[where]
        fields = {name: value[where][None] for name, value in seen.fields.items()}
        if text is not None and "text_query" in method.needs | method.wants:
            mask = torch.ones(1, len(text), dtype=torch.bool)
            fields |= {"text_query": text[None], "text_query_mask": mask}
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
    if case.experts:
        return case.positions(sample)
    seen: list[Tensor] = []
    lm = language_model(model)

    def look(module: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs.get("position_ids", args[1] if len(args) > 1 else None))

    handle = lm.rotary_emb.register_forward_pre_hook(look, with_kwargs=True)
    model(**case.inputs([sample]))
    handle.remove()
    got = seen[0]
    got = got[:, 0].T if got.ndim == 3 else got[0][:, None]
    return got, int(got.max()) + 1


def reduce_prompt(
    model: Any,
    case: Case,
    method: Method,
    budget: int | float,
    sample: Sample,
    calibrate: Calibration | None = None,
    median: bool = False,
) -> Prefix:
    """The prompt as it enters the language model.

    median: whether a merged token stands at the median of its members' positions.
    """
    lm = language_model(model)
    words = case.words(model, sample.ids)
    positions, following = dense_positions(model, case, sample)
    seen = [
        encode(model, case, *visual_input, layer=method.scoring_layer)
        for visual_input in sample.shown
    ]
    places = _places(case, sample)
    visual = {place for input_places in places for place in input_places}
    first_word = next((i for i in range(len(sample.ids)) if i not in visual), len(sample.ids))
    leading = sum(max(input_places) < first_word for input_places in places)
    depth = len(lm.layers)
    back = int(method.scored_by == "previous")
    kinds, last = kinds_of(lm), case.last_stage or depth - 1
    scores = method.in_llm_needs & {"scores", "keys", "text_keys"}
    stages = tuple(
        n for n in range(1, last + 1) if not scores or kinds[n - back] == "full_attention"
    )
    dense = [len(s.tokens) for s in seen]
    counts = counts_of(method, budget, dense, depth, leading, stages)
    layers = max(len(s.deep) for s in seen)
    nothing = [torch.zeros_like(words[0])] * layers
    # Each token: where it stands, the place whose position it has, embedding, DeepStack layers,
    # input, dense token, tokens merged in it. A method that hands its tokens on in an order of its
    # own (released DUET) puts them into the places of all, from first to last.
    owned = {place for input_places in places for place in input_places}
    rows: list[Any] = [
        (place, place, words[place], nothing, -1, -1, 1)
        for place in range(len(sample.ids))
        if place not in owned
    ]
    end = min(max(input_places) for input_places in places)
    moved: dict[int, Tensor] = {}
    query = words[[place for place, *_ in rows if place > end]]
    for number, ((kind, variant, _), s) in enumerate(zip(sample.shown, seen, strict=True)):
        keep = counts[number][0]
        x, members, anchors = reduce_input(model, case, method, keep, s, kind, variant, query)
        if case.recurrent:  # a state is carried from token to token: their order matters
            order = sorted(range(len(anchors)), key=lambda i: anchors[i])
            x, members = x[order], [members[i] for i in order]
            anchors = [anchors[i] for i in order]
        own = [places[number][anchor] for anchor in anchors]
        for at, group in zip(own, members, strict=True):
            if median and len(group) < len(s.tokens):
                ranked = positions[[places[number][i] for i in group]].sort(dim=0).values
                moved[at] = ranked[(len(group) - 1) // 2]
        for row, (stands, group, anchor) in enumerate(
            zip(sorted(own), members, anchors, strict=True)
        ):
            deep = [layer[group].mean(0) for layer in s.deep]
            rows.append((stands, own[row], x[row], deep, number, anchor, len(group)))
    rows.sort(key=lambda row: row[0])
    at, own_at, embeds, deep, image, index, size = zip(*rows, strict=True)
    image = torch.tensor(image)
    after = (image < 0) & (torch.tensor(at) > end)
    tokens = Tokens(
        torch.stack(embeds),
        torch.stack([moved.get(place, positions[place]) for place in own_at]),
        image,
        torch.tensor(index),
        torch.tensor(size),
        after,
        torch.zeros_like(after),
        torch.tensor(own_at),
        _blocks(case, sample)[list(own_at)],
        torch.where(image < 0, sample.ids[list(own_at)], PAD),
        case.two_way == "sliding",
        [torch.stack([features[n] for features in deep]) for n in range(layers)],
    )
    rule = method.query_rows
    if rule == "all":
        tokens.asking = after.clone()
    elif rule == "salient" and bool(after.any()):
        marked = method.salient_rows(tokens.h[after][None], tokens.h[image >= 0][None])[0]
        tokens.asking[after.nonzero().flatten()[marked]] = True
    if not bool(tokens.asking.any()):
        tokens.asking[-1] = True
    grids = []
    for (kind, variant, _), s in zip(sample.shown, seen, strict=True):
        views = case.views(kind, variant)
        whole = len(views) == 1 and len(views[0][1]) == len(s.tokens)
        grids.append(views[0][0] if whole else (1, 1, len(s.tokens)))
    terms = Terms(method.proportional_attention is not False)
    if calibrate is not None:
        entering = tuple(each[0] for each in counts)
        asked = (calibrate.size, calibrate.first_layer, calibrate.distance)
        terms = Terms(*asked, len(sample.ids), tuple(dense), entering)
    return Prefix(tokens, following, len(sample.ids), method, counts, grids, terms, case)


def _blocks(case: Case, sample: Sample) -> Tensor:
    """(S,): the number of the run of image tokens that each token is in, or -1; all -1 where
    attention is causal, all 0 where the whole prompt is a block."""
    blocks, number = [], -1
    if case.two_way == "prompt":
        return torch.zeros_like(sample.ids)
    if case.two_way == "images":
        return torch.where(torch.isin(sample.ids, torch.tensor(case.marks)), 0, -1)
    media = {"image": {IMAGE_TOKEN}, "sliding": {IMAGE_TOKEN, VIDEO_TOKEN}}.get(case.two_way, set())
    ids = sample.ids.tolist()
    for place, token in enumerate(ids):
        image = token in media
        number += int(image and (place == 0 or ids[place - 1] not in media))
        blocks.append(number if image else -1)
    return torch.tensor(blocks)


def _places(case: Case, sample: Sample) -> list[list[int]]:
    """Places in the prompt of each input's tokens."""
    places_of_inputs = []
    ids = sample.ids.tolist()
    left = {kind: iter([i for i, x in enumerate(ids) if x == TOKEN[kind]]) for kind in TOKEN}
    for kind, variant, _ in sample.shown:
        count = int((case.tokens(kind, variant) == TOKEN[kind]).sum())
        places_of_inputs.append([next(left[kind]) for _ in range(count)])
    return places_of_inputs


# ------------------------------------------------------------------ the language model


def forward(model: Any, prefix: Prefix, new: Tensor | None = None) -> tuple[Tensor, list[int]]:
    """Logits (S, V) of the tokens that reach the last layer, and the tokens in each layer.

    new: (t,) ids that follow the prompt (they do not change what is chosen).
    """
    lm = language_model(model)
    new = torch.tensor([], dtype=torch.int64) if new is None else new
    new = prefix.case.as_words(new)
    tokens = _with(prefix, new, model.get_input_embeddings()(new))
    shared = Shared.of(model, tokens, prefix.dense)
    multiplier = getattr(lm, "embedding_multiplier", 1.0)  # of Granite, whose features come later
    tokens = replace(
        tokens, h=torch.where(tokens.image[:, None] < 0, tokens.h * multiplier, tokens.h)
    )
    terms, lengths = prefix.terms, []
    entered = tokens
    for number in range(len(lm.layers)):
        counts = [layer_counts[number] for layer_counts in prefix.counts]
        here = [int((tokens.image == image).sum()) for image in range(len(counts))]
        if counts != here:
            previous = prefix.method.scored_by == "previous"
            scorer, seen = (number - 1, entered) if previous else (number, tokens)
            run = run_layer(model, scorer, seen, terms, shared)
            tokens = _stage(prefix, tokens, counts, run, number, tokens.h - entered.h)
        entered = tokens
        h = run_layer(model, number, tokens, terms, shared).hidden
        if number < len(tokens.deep):
            h = h + tokens.deep[number]
        tokens = replace(tokens, h=h)
        lengths.append(len(h))
    norm = lm.embedding_norm if hasattr(lm, "embedding_norm") else lm.norm
    logits = model.get_output_embeddings()(norm(tokens.h))
    logits = logits / getattr(lm.config, "logits_scaling", 1.0)
    cap = getattr(lm.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap), lengths


def _with(prefix: Prefix, ids: Tensor, new: Tensor) -> Tokens:
    """The prompt's tokens and those that follow them: ids (t,) and embeddings (t, D)."""
    tokens, count = prefix.tokens, len(new)
    later = prefix.following + torch.arange(count)
    none, no = torch.full((count,), -1), torch.zeros(count, dtype=torch.bool)
    return Tokens(
        torch.cat([tokens.h, new]),
        torch.cat([tokens.positions, later[:, None].expand(-1, tokens.positions.shape[1])]),
        torch.cat([tokens.image, none]),
        torch.cat([tokens.index, none]),
        torch.cat([tokens.size, torch.ones_like(none)]),
        torch.cat([tokens.after, no]),
        torch.cat([tokens.asking, no]),
        torch.cat([tokens.place, prefix.dense + torch.arange(count)]),
        torch.cat([tokens.block, none]),
        torch.cat([tokens.ids, ids]),
        tokens.local_blocks,
        [torch.cat([x, torch.zeros_like(new)]) for x in tokens.deep],
    )


def _rank(
    rule: str, tokens: Tokens, own: Tensor, scorer: LayerRun, layer: int, change: Tensor
) -> Tensor:
    """(n,): what ranks the tokens of one input, which are `own` of all."""
    if rule == "random":
        return torch.rand(len(own), generator=torch.Generator().manual_seed(layer))
    if rule == "change":
        return change[own].square().sum(1).sqrt()
    rows = scorer.weights.mean(0)
    asked = rows[tokens.asking].mean(0)[own]
    following = [i for i in tokens.after.nonzero().flatten().tolist() if i > int(own.max())]
    if rule == "attention" or not following:
        return asked
    p, q = (x.double() / x.double().sum() for x in (asked, rows[following[0]][own]))
    return (p * ((p + 1e-10) / (q + 1e-10)).log()).float()


def _stage(
    prefix: Prefix, tokens: Tokens, counts: list[int], scorer: LayerRun, layer: int, change: Tensor
) -> Tokens:
    """The tokens that are left after each input was reduced to its count.

    change: (S, D), of the hidden states since the layer before.
    """
    flat_keys = scorer.keys.transpose(0, 1).flatten(1)
    stay = (tokens.image < 0).nonzero().flatten().tolist()
    source = {}
    h, size, deep = tokens.h.clone(), tokens.size.clone(), [x.clone() for x in tokens.deep]
    for image, count in enumerate(counts):
        own_rows = (tokens.image == image).nonzero().flatten()
        if not len(own_rows):
            continue
        given = LayerTokens(
            tokens.h[own_rows][None],
            tokens.size[own_rows][None],
            tokens.index[own_rows][None],
            prefix.grids[image],
            scores=_rank(prefix.method.score, tokens, own_rows, scorer, layer, change)[None],
            keys=flat_keys[own_rows][None],
            text=tokens.h[tokens.after][None],
            text_keys=flat_keys[tokens.after][None],
            text_mask=torch.ones(1, int(tokens.after.sum()), dtype=torch.bool),
        )
        reduction = prefix.method.reduce_in_llm(given, count)
        places = own_rows[reduction.anchor[0]]
        for row, (place, stands) in enumerate(
            zip(places.sort().values.tolist(), places.tolist(), strict=True)
        ):
            group = own_rows[reduction.members(row)]
            share = tokens.size[group][:, None] / tokens.size[group].sum()
            stay.append(place)
            source[place] = stands
            h[place] = reduction.features[0, row]
            size[place] = reduction.size[0, row]
            for new, old in zip(deep, tokens.deep, strict=True):
                new[place] = (old[group] * share).sum(0)
    stay.sort()
    out = tokens.take(torch.tensor([source.get(place, place) for place in stay]))
    kept = torch.tensor(stay)
    asking = out.asking.clone()
    if not bool(asking.any()):
        # A visual token that ranked was dropped: the last token that is left before it ranks.
        before = (kept <= tokens.asking.nonzero().max()).nonzero().flatten()
        asking[before[-1] if len(before) else 0] = True
    return replace(out, h=h[kept], size=size[kept], asking=asking, deep=[x[kept] for x in deep])


def greedy(model: Any, prefix: Prefix, steps: int) -> tuple[Tensor, Tensor]:
    """Greedy ids (steps,) and the logits (steps, V) that each was chosen from."""
    ids: list[int] = []
    rows = []
    for _ in range(steps):
        logits, _ = forward(model, prefix, torch.tensor(ids, dtype=torch.int64))
        rows.append(logits[-1])
        ids.append(int(logits[-1].argmax()))
    return torch.tensor(ids), torch.stack(rows)
