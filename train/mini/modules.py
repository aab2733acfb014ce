"""Modules used only to train the embedded model: read-outs, symbols, the loss of answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.mini.data import PREFIX, UNKNOWN, Batch
from vlm.embedded.scenes import FIELDS
from vlm.model import FoveateForConditionalGeneration

_CONTAINED = ("colour", "shape", "character")
# Kinds of grid cells that have a label (1 item, 2 sign, 3 dot); other fields: all that show one.
_WHERE = {"colour": (1, 3), "shape": (1,), "centre": (1,), "character": (2,), "place": (2,)}
_SLOTS = FIELDS["row"] * FIELDS["column"]
_BLENDED = 0.8  # share of the items of a blended scene


class CellHeads(nn.Module):
    """Linear read-outs of the vision encoder: labels of grid cells, and the content of the CLS."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cells = nn.ModuleDict({f"read_{f}": nn.Linear(width, n) for f, n in FIELDS.items()})
        self.contents = nn.Linear(width, sum(FIELDS[f] for f in _CONTAINED) + FIELDS["colour"])

    def loss(self, hidden: Tensor, fields: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and the accuracy by field.

        hidden: (b, 1 + tokens, width). fields: (b, fields, tokens). A field that is `UNKNOWN` is
        left out, and its picture does not train the content read-out.
        """
        labels = dict(zip(FIELDS, fields.unbind(1), strict=True))
        kind = labels["kind"]
        total, right = hidden.new_zeros(()), {}
        for field, label in labels.items():
            at = kind >= 0 if field == "kind" else kind > 0
            if field in _WHERE:
                at = torch.isin(kind, torch.tensor(_WHERE[field], device=kind.device))
            if not bool(at.any()):  # frames of clips have no signs
                continue
            logits = self.cells[f"read_{field}"](hidden[:, 1:][at]).float()
            total = total + functional.cross_entropy(logits, label[at], ignore_index=UNKNOWN)
            right[field] = (logits.argmax(-1) == label[at]).float().mean()
        known = (fields != UNKNOWN).all((1, 2))
        labels = {field: label[known] for field, label in labels.items()}
        item, dot = labels["kind"] == 1, labels["kind"] == 3
        content = [
            functional.one_hot(labels[f] * (item if f == "colour" else 1), FIELDS[f]).amax(1)
            for f in _CONTAINED
        ]
        content.append(functional.one_hot(labels["colour"] * dot, FIELDS["colour"]).amax(1))
        logits = self.contents(hidden[known, 0]).float()
        wanted = torch.cat(content, dim=1).float()
        return total + 4 * functional.binary_cross_entropy_with_logits(logits, wanted), right


class Symbols(nn.Module):
    """The symbol of a grid cell: the sum of its labels' embeddings, a target for the projector."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.tables = nn.ModuleDict(
            {f"table_{f}": nn.Embedding(n, width) for f, n in FIELDS.items()}
        )
        for weight in self.parameters():
            nn.init.normal_(weight, std=std)

    def forward(self, fields: Tensor, blended: Tensor | None = None) -> Tensor:
        """(b, fields, v) -> (b, v, width).

        blended: (b,) the field whose embedding is replaced, in most items of the scene, by the sum
        of those of two random values, divided by sqrt(2); below 0 for none. Asked about other
        fields, a model learns to tell a colour independently of the shape, and vice versa. A pair
        that is held out for the tests is never shown, but a blend may contain both of its values.
        """
        tables = zip(self.tables.values(), fields.unbind(1), strict=True)
        told = torch.stack([table(column) for table, column in tables]).sum(0)
        for scene, field in enumerate([] if blended is None else blended.tolist()):
            if field >= 0:
                table = list(self.tables.values())[field].weight
                labels = dict(zip(FIELDS, fields[scene], strict=True))
                told[scene] = told[scene] + self._blend(table, labels, fields[scene, field])
        return told

    @staticmethod
    def _blend(table: Tensor, labels: dict[str, Tensor], label: Tensor) -> Tensor:
        """What to add to the symbols of one scene, (v, width), to blend two values in items."""
        two = torch.rand(_SLOTS, len(table) - 1, device=table.device).topk(2).indices + 1
        mixed = table[two].sum(1) / 2**0.5
        chosen = torch.rand(_SLOTS, device=table.device) < _BLENDED
        slot = labels["row"] * FIELDS["column"] + labels["column"]
        at = (labels["kind"] == 1) & chosen[slot]
        return torch.where(at[:, None], mixed[slot] - table[label], 0.0)


def answer_loss(
    model: FoveateForConditionalGeneration, batch: Batch, visual: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy over the tokens of answers, and their accuracy."""
    lm: Any = model.model.language_model
    words = lm.embed_tokens(batch.ids)
    prefix = lm.embed_tokens(torch.tensor(PREFIX, device=words.device))
    prefix = prefix.expand(len(words), -1, -1)
    text: Any = model.config.text_config
    three = text.model_type == "qwen2_5_vl_text"
    hidden = lm(
        inputs_embeds=torch.cat([prefix, visual.to(words), words], dim=1),
        attention_mask=batch.mask,
        position_ids=batch.positions if three else batch.positions[0],
        use_cache=False,
    ).last_hidden_state[:, -batch.ids.shape[1] :]
    wanted = batch.labels != -100
    logits, labels = model.lm_head(hidden[wanted]), batch.labels[wanted]
    right = (logits.argmax(-1) == labels).float().mean()
    return functional.cross_entropy(logits.float(), labels), right
