"""Learning in bfloat16 with float32 copies of what learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CLIP = 1.0  # of the norm of all gradients


class Masters:
    """Float32 copies of the bfloat16 parameters that learn, and their AdamW.

    model: its other parameters are frozen. rates: the full learning rate of each group of
    parameters, by the start of their names in `model`. fixed: of those, parameters that stay.
    """

    def __init__(
        self, model: Any, rates: Mapping[str, float], fixed: Sequence[Tensor] = ()
    ) -> None:
        stay = set(map(id, fixed))
        model.requires_grad_(False)
        self.learned: dict[str, nn.Parameter] = {}
        groups: list[dict[str, Any]] = []
        for start, rate in rates.items():
            found = {
                name: parameter
                for name, parameter in model.named_parameters()
                if name.startswith(start) and id(parameter) not in stay
            }
            self.learned |= found
            groups.append({"names": list(found), "lr": rate, "rate": rate})
        for parameter in self.learned.values():
            parameter.requires_grad_(True)
        self.master = {n: p.detach().float().clone() for n, p in self.learned.items()}
        for group in groups:
            group["params"] = [self.master[name] for name in group.pop("names")]
        self.optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)

    def step(self, factor: float) -> None:
        """One step at `factor` of the full rates, from the gradients of the parameters."""
        gradients = []
        for name, parameter in self.learned.items():
            gradient: Any = parameter.grad
            gradients.append(gradient.float())
            self.master[name].grad = gradients[-1]
            parameter.grad = None
        norm = nn.utils.get_total_norm(gradients)
        if norm > CLIP:
            nn.utils.clip_grads_with_norm_(list(self.master.values()), CLIP, norm)
        for group in self.optimiser.param_groups:
            group["lr"] = group["rate"] * factor
        self.optimiser.step()
        with torch.no_grad():
            for name, parameter in self.learned.items():
                parameter.copy_(self.master[name])
                self.master[name].grad = None

    def save(self, path: Path, notes: dict[str, str]) -> None:
        """Weights and moments in one file, which replaces the last in one move."""
        state = {f"weight.{name}": tensor for name, tensor in self.master.items()}
        for name, tensor in self.master.items():
            for kind in ("exp_avg", "exp_avg_sq", "step"):
                if kind in self.optimiser.state[tensor]:
                    state[f"{kind}.{name}"] = self.optimiser.state[tensor][kind]
        partial = path.with_suffix(".part")
        save_file(state, partial, notes)
        partial.replace(path)

    @torch.no_grad()
    def load(self, path: Path) -> dict[str, str]:
        """What `save` wrote; returns its notes."""
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            for name, tensor in self.master.items():
                tensor.copy_(file.get_tensor(f"weight.{name}"))
                self.learned[name].copy_(tensor)
                if f"exp_avg.{name}" in names:
                    kinds = ("exp_avg", "exp_avg_sq", "step")
                    moments = {kind: file.get_tensor(f"{kind}.{name}") for kind in kinds}
                    self.optimiser.state[tensor].update(moments)
            return dict(file.metadata() or {})
