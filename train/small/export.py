"""From a state of training to the file that is shipped: `vlm/embedded/small/change.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import safe_open

from vlm.embedded.small import change


def export(model: Any, state: Path, path: Path, notes: dict[str, str]) -> None:
    """Write what `learn` changed.

    model: `assemble_parts` of the same parts, untrained. state: of `learn`. The projector is stored
    whole, the language model as the difference to the parts.
    """
    before = {
        name: tensor
        for name, tensor in model.model.named_parameters()
        if name.startswith("language_model.")
    }
    with safe_open(state, "pt") as file:
        known = dict(file.metadata() or {})
        after = {
            name.removeprefix("weight."): file.get_tensor(name)
            for name in file.keys()  # noqa: SIM118
            if name.startswith("weight.")
        }
    change.write(path, before, after, {**notes, "steps": known["step"]})
