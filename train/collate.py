"""From samples to a batch: padding on the right, packing, and visual inputs on every process.

Under ZeRO-3 the weights of a module are gathered by all processes together, each time it runs: a
process whose samples are all text would skip the vision side, and the others would wait for it.
So a batch that lacks a kind of media that the data have gets one blank input of that kind, whose
tokens follow all text of the shortest row. Nothing before them attends to them and no label is on
them: the loss is the same to the bit, the modules run on every process in the same order (those
that a compression calls in the decoder too), and gradients of the vision side are there, and zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from train.encode import IGNORED

ALONG_TOKENS = ("input_ids", "labels", "mm_token_type_ids", "position_ids")
KIND_KEYS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True)
class Collator:
    """Features of samples (`train.encode.Encoder`) to the arguments of a forward.

    pad: the id of padding. blanks: for each kind of media that the data have, the features of one
        blank input (its tokens alone). accepts: arguments of the model's forward. packing: lay
        samples one after another in rows of at most `window` tokens; one_row: all in one row,
        as FlashAttention wants it. places: of a model under M-RoPE, the (3, S) positions of one
        sample, which it cannot tell from a packed row.
    """

    pad: int
    blanks: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepts: frozenset[str] = frozenset({"input_ids", "labels", "attention_mask"})
    packing: bool = False
    window: int = 2048
    one_row: bool = False
    places: Callable[[dict[str, Any]], Tensor] | None = None

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Returns `input_ids`, `labels` (B, S) and either `attention_mask` (B, S) or, packed,
        `position_ids` (B, S) that begin anew with each sample, under M-RoPE (4, B, S) with these
        in front; the media of all samples, joined;
        and `about`, what the run counts: faults, tokens cut, text and visual tokens, samples.
        """
        rows = [[dict(sample)] for sample in samples]
        about = {
            "faults": [fault for sample in samples for fault in sample["faults"]],
            "cut": [sample["cut"] for sample in samples if sample["cut"]],
            "samples": len(samples),
            "text": int(sum((s["mm_token_type_ids"] == 0).sum() for s in samples)),
            "visual": int(sum((s["mm_token_type_ids"] != 0).sum() for s in samples)),
        }
        if self.packing:
            rows = self._packed(rows)
        for kind, blank in self.blanks.items():
            if not any(KIND_KEYS[kind] in sample for sample in samples):
                _shortest(rows)[-1] = _followed(_shortest(rows)[-1], blank)
        batch = self._padded(rows)
        ordered = [sample for row in rows for sample in row]
        for name in sorted({name for sample in ordered for name in sample} & self.accepts):
            if name not in ALONG_TOKENS:
                batch[name] = _joined([s[name] for s in ordered if name in s])
        return batch | {"about": about}

    def _packed(self, rows: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """First fit, longest first; in a row samples keep the order in which they came."""
        if self.one_row:
            return [[sample for row in rows for sample in row]]
        bins: list[list[int]] = []
        lengths = [_length(row) for row in rows]
        for index in sorted(range(len(rows)), key=lambda i: (-lengths[i], i)):
            for members in bins:
                if sum(lengths[m] for m in members) + lengths[index] <= self.window:
                    members.append(index)
                    break
            else:
                bins.append([index])
        return [[rows[i][0] for i in sorted(members)] for members in sorted(bins)]

    def _padded(self, rows: list[list[dict[str, Any]]]) -> dict[str, Any]:
        width = max(_length(row) for row in rows)
        shape = (len(rows), width)
        # Padding counts on from 0 like a sample of its own, so that it is one to packing too.
        batch = {
            "input_ids": torch.full(shape, self.pad),
            "labels": torch.full(shape, IGNORED),
            "mm_token_type_ids": torch.zeros(shape, dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "position_ids": torch.zeros(shape, dtype=torch.int64),
        }
        axes = torch.zeros(3, *shape, dtype=torch.int64)
        for number, row in enumerate(rows):
            at = 0
            for sample in row:
                here = slice(at, at := at + len(sample["input_ids"]))
                for name in ("input_ids", "labels", "mm_token_type_ids"):
                    batch[name][number, here] = sample[name]
                batch["labels"][number, here.start] = IGNORED
                batch["position_ids"][number, here] = torch.arange(here.stop - here.start)
                if self.packing and self.places is not None:
                    axes[:, number, here] = self.places(sample)
            batch["attention_mask"][number, :at] = 1
            batch["position_ids"][number, at:] = torch.arange(width - at)
        if self.packing:
            del batch["attention_mask"]
            if self.places is not None:
                text = batch["position_ids"][None]
                batch["position_ids"] = torch.cat([text, axes])
        else:
            del batch["position_ids"]
        always = ("input_ids", "labels", "attention_mask", "position_ids")
        return {k: v for k, v in batch.items() if k in always or k in self.accepts}


def blank_input(features: dict[str, Any]) -> dict[str, Any]:
    """What a blank input adds to a sample, from the features of a sample that holds one.

    The text around its visual tokens is left out, but for what the model itself writes between
    them (ids inside the run of visual tokens).
    """
    places = features["mm_token_type_ids"].nonzero().flatten()
    run = slice(int(places[0]), int(places[-1]) + 1)
    kept = {name: features[name][run] for name in ("input_ids", "mm_token_type_ids")}
    kept["labels"] = torch.full_like(kept["input_ids"], IGNORED)
    return kept | {k: v for k, v in features.items() if k not in (*kept, "cut", "faults")}


def _joined(parts: list[Any]) -> Any:
    """One tensor of all; several experts have one each, by name."""
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return torch.cat(parts)


def _length(row: list[dict[str, Any]]) -> int:
    return sum(len(sample["input_ids"]) for sample in row)


def _shortest(rows: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return min(rows, key=_length)


def _followed(sample: dict[str, Any], blank: dict[str, Any]) -> dict[str, Any]:
    joined: dict[str, Any] = sample | blank
    for name in ("input_ids", "labels", "mm_token_type_ids"):
        joined[name] = torch.cat([sample[name], blank[name]])
    return joined
