"""Training a scorer of visual tokens: differentiable selection, with all else frozen.

As in VisionSelector (arXiv 2510.16598): a top-k that gradients pass, at a temperature that falls,
and the hard selection at the end. A token that is selected by half is seen by half: the logarithm
of its share is added to the attention logits of its key in every layer, so that at 0 the token is
as if it were pruned, and the others stand at their original positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import TrainerCallback

from compress.methods.scorer import Scorer
from train.fields import RecipeError
from train.recipe import ScorerSettings
from vlm.families import adapter_of

NAME = "foveate_scorer"
HIDDEN = -1e4  # added to the logits of a key that is not selected
LEAST = -30.0  # of the logarithm of a share


def log_shares(scores: Tensor, count: int, temperature: float) -> Tensor:
    """(N,) -> (N,): log of sigmoid((score - t) / temperature), t such that the shares sum to
    `count`, 0 < count < N.

    t is found by bisection; its gradient is that of the equation which it solves.
    """
    with torch.no_grad():
        low, high = scores.min() - 40 * temperature, scores.max() + 40 * temperature
        for _ in range(60):
            middle = (low + high) / 2
            above = ((scores - middle) / temperature).sigmoid().sum() > count
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        share = ((scores - low) / temperature).sigmoid()
        weight = share * (1 - share)
        weight = weight / weight.sum().clamp(min=1e-12)
    threshold = low + (weight * (scores - scores.detach())).sum()
    return functional.logsigmoid((scores - threshold) / temperature)


class SoftSelection(TrainerCallback):
    """A scorer on a model, which hides visual tokens from attention as it scores them.

    The scorer becomes a module of the model, so that the trainer finds its parameters. Each step
    draws one of the budgets, the same on every process.

    Raises RecipeError for a model whose decoder layers do not all attend to what came before.
    """

    def __init__(self, model: nn.Module, settings: ScorerSettings, seed: int) -> None:
        adapter = adapter_of(model)
        if set(adapter.layer_kinds) != {"full_attention"} or adapter.has_blocks:
            raise RecipeError(
                f"scorer: decoder layers of family {adapter.name!r} are of several kinds, or "
                "attend to later tokens, and a scorer learns from plain causal attention"
            )
        self._settings, self._seed = settings, seed
        self._tokens = [adapter.placeholder(kind) for kind in adapter.kinds]
        self._temperature, self._hard = settings.temperature[0], False
        self._share = settings.budgets[0]
        self._ids: Tensor | None = None
        self.scorer = Scorer(adapter.language_model.config.hidden_size, settings.hidden)
        self._model = model
        model.add_module(NAME, self.scorer)
        self._handles = [
            adapter.core.register_forward_pre_hook(self._see, with_kwargs=True),
            adapter.language_model.register_forward_pre_hook(self._hide, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Take hooks and scorer off the model."""
        for handle in self._handles:
            handle.remove()
        del self._model._modules[NAME]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the budget of a step, and set its temperature."""
        done = state.global_step / max(state.max_steps, 1)
        soft = 1 - self._settings.hard
        first, last = self._settings.temperature
        self._hard = done >= soft
        self._temperature = first * (last / first) ** (min(done / soft, 1.0) if soft else 1.0)
        draw = np.random.default_rng((self._seed, state.global_step))
        self._share = self._settings.budgets[draw.integers(len(self._settings.budgets))]

    def _see(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self._ids = args[0] if args else kwargs.get("input_ids")

    def _hide(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        embeds, mask = kwargs["inputs_embeds"], kwargs.get("attention_mask")
        rows, width = embeds.shape[:2]
        keys = embeds.new_zeros(rows, width, dtype=torch.float32)
        ids: Any = self._ids
        for row, columns in self._inputs(ids):
            shares = self._log_shares(embeds[row, columns].detach())
            keys = keys.index_put((torch.full_like(columns, row), columns), shares)
        seen = torch.ones(width, width, dtype=torch.bool, device=embeds.device).tril()
        if mask is not None:
            seen = seen & mask.bool()[:, None]
            seen = seen | torch.eye(width, dtype=torch.bool, device=embeds.device)
        least = torch.finfo(embeds.dtype).min
        bias = keys[:, None].expand(-1, width, -1).masked_fill(~seen, least)
        return args, kwargs | {"attention_mask": bias[:, None].to(embeds.dtype)}

    def _inputs(self, ids: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Row and columns of each run of visual tokens."""
        visual = torch.isin(ids, ids.new_tensor(self._tokens))
        for row, own in enumerate(visual):
            columns = own.nonzero().flatten()
            breaks = ((columns.diff() > 1).nonzero().flatten() + 1).tolist()
            for part in columns.tensor_split(breaks):
                if len(part) > 1:
                    yield row, part

    def _log_shares(self, features: Tensor) -> Tensor:
        """(N,): what is added for the tokens of one input."""
        count = min(max(1, round(self._share * len(features))), len(features) - 1)
        scores = self.scorer(features[None])[0]
        shares = log_shares(scores, count, self._temperature).clamp(min=LEAST)
        if not self._hard:
            return shares
        order = scores.detach().sort(descending=True, stable=True).indices
        chosen = torch.full_like(shares, HIDDEN).index_fill(0, order[:count], 0.0)
        return chosen + shares - shares.detach()
