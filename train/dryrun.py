"""A description of a run: the whole recipe, parameter groups, tokens and memory a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from compress import get_method
from compress.adaptive import Adaptive
from train.dataset import split
from train.parts import add_adapters, freeze, groups, sizes
from train.preflight import check_recipe
from train.recipe import Recipe
from train.recipe_files import to_yaml
from train.reduction import make_method
from train.run import make_encoder
from train.scoring import SoftSelection
from vlm.families import adapter_of

GIB = 2**30


def dry_run(recipe: Recipe, world: int = 1) -> str:
    """Describe a run on `world` processes. Reads the model's configuration, but no weights.

    Raises what a run raises before it loads the model.
    """
    accumulation, settings = check_recipe(recipe, world)
    name = str(recipe.model)
    with torch.device("meta"):
        base: Any = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(name))
    model = base
    if recipe.lora is not None:
        model = add_adapters(base, recipe.lora)
    if recipe.scorer is not None:
        with torch.device("meta"):
            SoftSelection(model, recipe.scorer, recipe.seed)
    freeze(model, recipe)
    encoder = make_encoder(recipe, AutoProcessor.from_pretrained(name))
    dense = int((encoder.blank("image")["mm_token_type_ids"] != 0).sum())
    lines = [to_yaml(recipe).rstrip(), "", _batch(recipe, world, accumulation), "", "parameters"]
    for part, (whole, learning) in sizes(model).items():
        lines.append(f"  {part:<16}{whole:>16,}  trained {learning:>16,}")
    lines.append("groups")
    for group in groups(model, recipe):
        lines.append(
            f"  {group.part:<16}{group.count:>16,}  rate {group.rate:g}, decay {group.decay:g}"
        )
    depth = len(adapter_of(base).layers)
    kept = _kept(recipe, dense, depth)
    lines += ["", f"visual tokens an image: {dense} dense, {kept:g} on average over {depth} layers"]
    reduced = unreduced = float(recipe.data.window)
    if recipe.data.files:
        reduced, unreduced, text = _tokens(recipe, encoder, dense, kept)
        lines.append(text)
    stage = (settings or {}).get("zero_optimization", {}).get("stage", 0)
    lines += ["", *_memory(recipe, model, base, world, stage, reduced, unreduced)]
    return "\n".join(lines)


def _batch(recipe: Recipe, world: int, accumulation: int) -> str:
    return (
        f"a step: {world} processes x {recipe.optimizer.micro_batch} samples x {accumulation} "
        f"forwards = {recipe.optimizer.batch} samples"
    )


def _kept(recipe: Recipe, dense: int, depth: int) -> float:
    """Visual tokens an image, averaged over layers and the recipe's budgets; one that looks at the
    images counts as all of them, which is the most that it can be."""
    if recipe.compress is None:
        return float(dense)
    method = get_method(make_method(recipe.compress))
    budgets = [1.0 if isinstance(b, Adaptive) else b for b in recipe.compress.budgets]
    averages = [method.allocate(dense, depth, budget).average for budget in budgets]
    return float(np.mean(averages))


def _tokens(recipe: Recipe, encoder: Any, an_image: int, kept: float) -> tuple[float, float, str]:
    """Mean tokens a sample, reduced and dense, and a line about the data.

    an_image: dense visual tokens of an image; kept: those left after reduction.
    """
    training, validation = split(recipe.data, recipe.seed)
    frames = 1 if encoder.sees_video else recipe.data.frames
    inputs = training.media @ np.array([1, frames])
    text = training.tokens(0, 0).mean()
    dense, reduced = text + an_image * inputs.mean(), text + kept * inputs.mean()
    batch = recipe.optimizer.batch
    steps = recipe.optimizer.steps or round(recipe.optimizer.epochs * -(-len(training) // batch))
    line = (
        f"data: {len(training)} samples, {len(validation) if validation else 0} held out, "
        f"{len(training.faults)} bad; {steps} steps\n"
        f"tokens a step (text estimated from its length): {batch * dense:,.0f} dense, "
        f"{batch * reduced:,.0f} reduced"
    )
    return reduced, dense, line


def _memory(
    recipe: Recipe, model: Any, base: Any, world: int, stage: int, reduced: float, dense: float
) -> list[str]:
    """Estimated bytes on each device: model states, sharded by ZeRO, and activations."""
    whole = sum(p.numel() for p in model.parameters())
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    half = 2 if recipe.precision == "bf16" else 4
    deepspeed = recipe.deepspeed is not None
    bytes_per_weight: float = half if deepspeed or recipe.lora else 4
    if recipe.lora is not None and recipe.lora.quantize:
        bytes_per_weight = 0.55  # 4 bits and their scales
    config = adapter_of(base).language_model.config
    hidden, depth = config.hidden_size, config.num_hidden_layers
    micro = recipe.optimizer.micro_batch
    tokens, logits = (
        micro * min(reduced, recipe.data.window),
        micro * min(dense, recipe.data.window),
    )
    # One layer's intermediates are about 34 bytes a token and hidden unit at 16 bits (Korthikanti
    # et al., arXiv 2205.05198, section 4.1), less the attention map that fused kernels leave out.
    layer = 17 * half * tokens * hidden
    layers = depth * tokens * hidden * half + layer if recipe.checkpointing else depth * layer
    rows = {
        "weights": bytes_per_weight * whole / (world if stage == 3 else 1),
        "gradients": half * learning / (world if stage >= 2 else 1),
        "optimizer": (12 if deepspeed and half == 2 else 8) * learning / (world if stage else 1),
        "activations": layers,
        "logits": logits * config.vocab_size * (half + 4),
    }
    lines = ["memory on each device (estimated; offload not counted)"]
    lines += [f"  {name:<16}{size / GIB:>10.2f} GiB" for name, size in rows.items()]
    return [*lines, f"  {'sum':<16}{sum(rows.values()) / GIB:>10.2f} GiB"]
