"""From states of training to the file that is shipped: `vlm/embedded/small/change.safetensors`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from train.small.features import pixels_of, read_blocks
from train.small.learn import SCENES, answers, ask
from train.small.rows import collate
from vlm.embedded.collage import Pictures
from vlm.embedded.small import change

BATCHES = 6  # of training scenes that measure what matters


def export(
    model: Any,
    tokenizer: Any,
    pictures: Pictures,
    states: Sequence[Path],
    path: Path,
    notes: dict[str, str],
) -> None:
    """Write what was learned.

    model: `assemble_parts` of the same parts, untrained, float32; it becomes the trained one.
    states: files of `learn_to_see` and `learn`; of what is in several, the last is taken. The
    projector is stored whole, encoder and language model as the difference to the parts.
    """
    parameters = dict(model.model.named_parameters())
    after: dict[str, Tensor] = {}
    for state in states:
        with safe_open(state, "pt") as file:
            notes = notes | {f"steps of {state.stem}": (file.metadata() or {})["step"]}
            after |= {
                name.removeprefix("weight."): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if name.startswith("weight.")
            }
    before = {
        name: parameters[name].detach().clone() for name in after if not name.startswith("fusion.")
    }
    with torch.no_grad():
        for name, tensor in after.items():
            parameters[name].copy_(tensor)
    matrices = [name for name, tensor in before.items() if tensor.ndim == 2]
    measured = sensitivity(model, tokenizer, pictures, matrices)
    change.write(path, before, after, measured, notes)


def sensitivity(
    model: Any, tokenizer: Any, pictures: Pictures, names: Sequence[str]
) -> change.Sensitivity:
    """Root mean squares of inputs and of output gradients, by the name of a layer's weight.

    Measured on the loss of answers about training scenes, with all visual tokens.
    """
    squares: dict[tuple[str, str], Any] = defaultdict(float)

    def add(name: str, side: str, x: Tensor) -> None:
        squares[name, side] = squares[name, side] + x.detach().flatten(0, -2).square().mean(0)

    def watch(name: str) -> Any:
        def seen(module: Any, args: tuple[Tensor], out: Tensor) -> None:
            add(name, "in", args[0])
            out.register_hook(lambda gradient: add(name, "out", gradient))

        return seen

    model.requires_grad_(False).eval()
    hooks = []
    for name in names:
        layer = model.model.get_submodule(name.removesuffix(".weight"))
        layer.weight.requires_grad_(True)
        hooks.append(layer.register_forward_hook(watch(name)))
    expert = model.model.experts["dino"]
    with read_blocks(expert, frozen=False):
        for batch in range(BATCHES):
            seeds = range(SCENES * batch, SCENES * (batch + 1))
            features = expert(pixels_of(expert, pictures, "train", seeds), scores=False).features
            asked = [ask(pictures, "train", seed, 0) for seed in seeds]
            row = collate(tokenizer, asked, 1, torch.Generator().manual_seed(batch))
            F.cross_entropy(answers(model, features, row), row.wanted).backward()
            model.zero_grad()
    for hook in hooks:
        hook.remove()
    return {
        name: ((squares[name, "in"] / BATCHES).sqrt(), (squares[name, "out"] / BATCHES).sqrt())
        for name in names
    }
