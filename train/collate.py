"""From samples to a batch: padding on the right, packing, and visual inputs on every process.

Under ZeRO-3 all processes gather the weights of a module together, each time that it runs. A
process with text-only samples would skip the vision encoder, and the others would wait for it
forever. So a batch without a kind of media that the data contain gets one blank input of that kind,
after the text of the shortest row. No earlier token attends to it and it has no labels. The loss is
bit-equal, all processes run the same modules in the same order, and the vision encoder gets
gradients of zero.
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
    """Makes the arguments of a forward out of the features of samples (`train.encode.Encoder`).

    Args:
        pad: the id of padding.
        blanks: the features of one blank input (its tokens alone) for each kind of media that the
            data contain.
        accepts: the names of the arguments of the model's forward.
        packing: put several samples into one row of at most `window` tokens.
        one_row: put all samples into one row, as FlashAttention requires.
        places: for a model with M-RoPE, a function from a sample's features to its positions
            (3, S), which the model cannot compute from a packed row.
        token_types: from ids, kinds of tokens, and whether they have labels, (B, S) each, to what
            the model takes along the tokens, by name (`ModelAdapter.token_types`).
    """

    pad: int
    blanks: dict[str, dict[str, Any]] = field(default_factory=dict)
    accepts: frozenset[str] = frozenset({"input_ids", "labels", "attention_mask"})
    packing: bool = False
    window: int = 2048
    one_row: bool = False
    places: Callable[[dict[str, Any]], Tensor] | None = None
    token_types: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]] | None = None

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some samples.

        Returns `input_ids` and `labels` (B, S); `attention_mask` (B, S) or, with packing,
        `position_ids` (B, S) that restart with each sample, or (4, B, S) under M-RoPE with these
        as the first row; the concatenated media of all samples; and `about`, the counts that the
        run reports: faults, tokens cut, samples, text tokens, visual tokens.
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
            if name not in (*ALONG_TOKENS, *batch):
                batch[name] = _joined([s[name] for s in ordered if name in s])
        return batch | {"about": about}

    def _packed(self, rows: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        """Rows by first-fit decreasing. Within a row, samples keep their order."""
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
        # Positions of padding start at 0, so that with packing it counts as a sample of its own.
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
        if self.token_types is not None:
            kinds, said = batch["mm_token_type_ids"], batch["labels"] != IGNORED
            batch |= self.token_types(batch["input_ids"], kinds, said)
        always = ("input_ids", "labels", "attention_mask", "position_ids")
        return {k: v for k, v in batch.items() if k in always or k in self.accepts}


def blank_input(features: dict[str, Any]) -> dict[str, Any]:
    """The part of a sample's features that belongs to its one visual input.

    This is everything from the first visual token to the last, with the ids that the processor
    writes between them. The text around them is left out.
    """
    places = features["mm_token_type_ids"].nonzero().flatten()
    run = slice(int(places[0]), int(places[-1]) + 1)
    kept = {name: features[name][run] for name in ("input_ids", "mm_token_type_ids")}
    kept["labels"] = torch.full_like(kept["input_ids"], IGNORED)
    return kept | {k: v for k, v in features.items() if k not in (*kept, "cut", "faults")}


def _joined(parts: list[Any]) -> Any:
    """The concatenated tensors. Inputs of several experts are dictionaries with one tensor each."""
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
