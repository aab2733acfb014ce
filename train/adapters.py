"""Adapters and the weights that are trained beside them: saving, loading and merging.

PEFT saves adapters alone, and its `merge_and_unload` needs whole weights, which ZeRO-3 shards.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

BESIDE = "beside_adapters.safetensors"
_PREFIX = "base_model.model."


def is_adapted(model: Any) -> bool:
    """Whether the model is a PeftModel."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def save_beside(model: nn.Module, folder: Path, state: dict[str, Tensor] | None) -> None:
    """Save the trained weights that are not adapters, such as a projector, which PEFT leaves out.

    Args:
        state: the gathered weights under ZeRO-3, else None.
    """
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "lora_" not in n]
    weights: Any = dict(model.named_parameters()) if state is None else state
    beside = {n.removeprefix(_PREFIX): weights[n].detach().cpu().contiguous() for n in trained}
    if beside:
        save_file(beside, folder / BESIDE)


def load_beside(model: nn.Module, folder: Path) -> None:
    """Load what `save_beside` saved, if there is anything."""
    path = folder / BESIDE
    if path.is_file():
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in load_file(path).items():
                parameters[_PREFIX + name].copy_(value)


def merge(model: nn.Module) -> None:
    """Add each adapter to its layer's weights. Under ZeRO-3 one layer is gathered at a time."""
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            with _gathered(list(module.parameters())):
                module.merge()


def _gathered(parameters: list[nn.Parameter]) -> Any:
    if not any(hasattr(p, "ds_id") for p in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)


def merged_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a merged PeftModel under the names that the model has without adapters."""
    return {
        name.removeprefix(_PREFIX).replace(".base_layer.", "."): value
        for name, value in state.items()
        if "lora_" not in name
    }
