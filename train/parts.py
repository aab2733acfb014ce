"""The parts of a model that are trained: freezing, adapters, parameter groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from train.fields import RecipeError
from train.recipe import Lora, Recipe
from train.scoring import NAME

# By parameter name, so that one rule serves every family. Qwen's projector is inside its vision
# encoder, so the projector is looked for first.
_PROJECTOR = re.compile(
    r"(^|\.)(multi_modal_projector|mm_projector|merger|deepstack_merger_list|fusion|connector"
    r"|image_newline)(\.|$)"
)
_VISION_ENCODER = re.compile(r"(^|\.)(vision_tower|visual|vision_model|experts)(\.|$)")
_NO_DECAY = re.compile(r"(bias|norm\w*\.weight|layernorm\d*\.weight|layer_norm\d*\.weight)$", re.I)
_DECODER_LINEAR = r".*language_model\.(?:.*\.)?layers\.\d+\..*"


def part_of(name: str) -> str:
    """The part that a parameter belongs to: "vision_encoder", "projector", "language_model" or
    "scorer"."""
    if f".{NAME}." in f".{name}":
        return "scorer"
    if _PROJECTOR.search(name):
        return "projector"
    return "vision_encoder" if _VISION_ENCODER.search(name) else "language_model"


@dataclass(frozen=True)
class Group:
    """Parameters that share a learning rate and weight decay."""

    part: str
    rate: float
    decay: float
    names: tuple[str, ...]
    count: int


def freeze(model: nn.Module, recipe: Recipe) -> None:
    """Set `requires_grad` as the recipe says. With LoRA, adapters replace the decoder's weights.

    The mode of modules is left alone: Trainer puts the whole model into training mode.
    """
    learning = recipe.learning_rate.learning
    for name, parameter in model.named_parameters():
        part = part_of(name)
        adapter = "lora_" in name
        learns = part in learning and (adapter or recipe.lora is None or part != "language_model")
        parameter.requires_grad_(learns and parameter.is_floating_point())


def add_adapters(model: Any, lora: Lora) -> Any:
    """A PeftModel with low-rank adapters in the decoder layers.

    Raises RecipeError if PEFT is not installed, or if a target names no linear layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise RecipeError("lora needs the package peft: pip install 'foveate[train]'") from error
    targets = set(lora.targets)
    linear = [
        name
        for name, module in model.named_modules()
        if re.fullmatch(_DECODER_LINEAR, name)
        and _is_linear(module)
        and part_of(name) == "language_model"
    ]
    ends = {name.rsplit(".", 1)[-1] for name in linear}
    if missing := targets - ends - {"all"}:
        raise RecipeError(
            f"lora.targets: {', '.join(sorted(missing))} names no linear layer of the decoder; "
            f"expected some of {', '.join(sorted(ends))}, or all"
        )
    adapted = [n for n in linear if "all" in targets or n.rsplit(".", 1)[-1] in targets]
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=adapted
    )
    return get_peft_model(model, config)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ in ("Linear4bit", "Linear8bitLt")


def groups(model: nn.Module, recipe: Recipe) -> list[Group]:
    """The parameter groups: for each trained part, with and without weight decay.

    Raises RecipeError if a part has a learning rate and no parameters.
    """
    made = []
    for part, rate in recipe.learning_rate.learning.items():
        names = [n for n, p in _learning(model) if part_of(n) == part]
        if not names:
            raise RecipeError(f"learning_rate.{part} is {rate:g}, but the model has no such part")
        sizes = {n: _size(p) for n, p in _learning(model)}
        for decays in (True, False):
            members = tuple(n for n in names if bool(_NO_DECAY.search(n)) != decays)
            if members:
                decay = recipe.optimizer.weight_decay if decays else 0.0
                made.append(Group(part, rate, decay, members, sum(sizes[n] for n in members)))
    return made


def optimizer_groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """`groups` in the form of an optimizer: params, lr, weight_decay, name."""
    parameters = dict(_learning(model))
    return [
        {
            "params": [parameters[name] for name in group.names],
            "lr": group.rate,
            "weight_decay": group.decay,
            "name": group.part,
        }
        for group in groups(model, recipe)
    ]


def sizes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """For each part, the number of its parameters and of those that are trained."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        whole, learning = counts.get(part_of(name), (0, 0))
        size = _size(parameter)
        counts[part_of(name)] = (whole + size, learning + size * parameter.requires_grad)
    return counts


def _learning(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((n, p) for n, p in model.named_parameters() if p.requires_grad)


def _size(parameter: Any) -> int:
    # Under ZeRO-3 a parameter is empty outside its module's forward; ds_numel is its full size.
    return int(getattr(parameter, "ds_numel", parameter.numel()))
