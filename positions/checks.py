"""Warnings about a plan on a given model and dtype.

The bounds on the RoPE base are those of Liu 2026 (arXiv 2602.10959), applied to each axis with its
slowest frequency; the paper derives them for one axis. They are soft: LLaMA-2 exceeds the depth
bound at its own context length and works.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from positions.channels import ChannelTable
from positions.errors import PositionError
from positions.layout import Text
from positions.placement import Placement
from positions.schemes import FINEST

AXES = ("t", "h", "w")
# The position from which float32 angles have an error over 0.01 (p * 2^-24 at frequency 1).
FLOAT32_ANGLES = 0.01 * 2**24
# The share of attention that the slowest channel should keep over the span, per layer and in all.
KEPT = 0.5


@dataclass(frozen=True)
class Host:
    """The rotary embedding that a model's configuration describes."""

    window: int
    base: float
    layers: int
    channels: ChannelTable
    inv_freq: Tensor

    @classmethod
    def of(cls, config: Any) -> Host:
        """Read a transformers configuration, of the whole model or of its language model."""
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        rope = getattr(text, "rope_parameters", None)
        if not rope:
            raise PositionError(
                f"{type(config).__name__} has no rope_parameters: expected a model with a rotary "
                "embedding"
            )
        if "rope_theta" not in rope:  # one set per layer type
            rope = rope.get("full_attention") or next(iter(rope.values()))
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        width = int(head * rope.get("partial_rotary_factor", 1.0))
        kind = rope.get("rope_type", "default")
        inv_freq = float(rope["rope_theta"]) ** -(
            torch.arange(0, width, 2, dtype=torch.float64) / width
        )
        if kind != "default":
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

            inv_freq = ROPE_INIT_FUNCTIONS[kind](text, torch.device("cpu"))[0].double()
        return cls(
            text.max_position_embeddings,
            float(rope["rope_theta"]),
            text.num_hidden_layers,
            _channels(text.model_type, rope, len(inv_freq)),
            inv_freq,
        )


def _channels(model_type: str, rope: Any, count: int) -> ChannelTable:
    """The channel table of a configuration."""
    interleaved = bool(rope.get("mrope_interleaved")) or model_type.startswith("qwen3")
    sections = rope.get("mrope_section")
    if sections is None and re.match(r"qwen\d(_\d)?_vl", model_type):
        sections = [24, 20, 20] if interleaved else [16, 24, 24]  # what these models default to
    if sections is None or sum(sections) != count:
        return ChannelTable.flat(count)
    return ChannelTable.interleaved(sections) if interleaved else ChannelTable.chunked(sections)


def check(plan: Placement, config: Any, dtype: torch.dtype = torch.bfloat16) -> list[str]:
    """Return warnings about `plan` on this model, most serious first; possibly none.

    Args:
        config: a transformers configuration.
        dtype: the dtype that the model runs in.

    Raises:
        PositionError: the configuration has no rotary embedding.
    """
    if not len(plan):
        return []
    host = Host.of(config)
    return [
        *_attachable(plan, host),
        *_order(plan),
        *_window(plan, host),
        *_precision(plan, host, dtype),
        *_base(plan, host),
        *_packing(plan),
    ]


def _attachable(plan: Placement, host: Host) -> list[str]:
    warnings = []
    if host.channels.axes == 1 and bool((plan.positions != plan.positions[..., :1]).any()):
        warnings.append(
            "the plan has different t, h and w, and this model has one rotary axis: it cannot be "
            "attached; choose a 1-D scheme"
        )
    slots = plan.positions.shape[1]
    if slots > 1:
        try:
            host.channels.with_slots(slots)
        except PositionError as error:
            warnings.append(f"the plan cannot be attached: {error}")
    return warnings


def _order(plan: Placement) -> list[str]:
    warnings = []
    highest = plan.positions.amax((1, 2))
    before = highest.cummax(0).values[:-1]
    text = torch.tensor([isinstance(segment, Text) for segment in plan.segments])
    alone = len({segment.stream for segment in plan.segments}) == 1
    behind = text[plan.segment_of[1:]] & (highest[1:] <= before)
    if alone and bool(behind.any()):
        first = int(behind.nonzero()[0])
        warnings.append(
            f"text token {first + 1} stands at {float(highest[first + 1]):g}, not past "
            f"{float(before[first]):g} where tokens before it stand: the order of the two is lost"
        )
    if alone and plan.next_position <= float(highest.max()):
        warnings.append(
            f"the next token stands at {plan.next_position:g}, behind the prompt's end at "
            f"{float(highest.max()):g}"
        )
    same = (plan.positions[1:] == plan.positions[:-1]).flatten(1).all(1)
    if bool(same.any()):
        warnings.append(
            f"{int(same.sum())} tokens share the position of the token before them: only the "
            "causal mask and the content tell them apart"
        )
    return warnings


def _window(plan: Placement, host: Host) -> list[str]:
    past = int((plan.positions.amax((1, 2)) >= host.window).sum())
    if past or plan.next_position >= host.window:
        return [
            f"positions reach {max(float(plan.positions.max()), plan.next_position):g} and the "
            f"model's window ends at {host.window - 1}: {past} of {len(plan)} tokens stand past it"
        ]
    return []


def _steps(plan: Placement) -> Tensor:
    """Distinct positive steps between neighbouring tokens' positions, ascending."""
    steps = plan.positions[:, 0].diff(dim=0).abs()
    return steps[steps > 0].unique()


def _precision(plan: Placement, host: Host, dtype: torch.dtype) -> list[str]:
    warnings = []
    steps = _steps(plan)
    step = float(steps[0]) if len(steps) else 1.0
    if step < FINEST.get(dtype, 0.0):
        bits = torch.finfo(dtype).eps / 2
        moving = int((host.inv_freq * step > bits).sum())
        warnings.append(
            f"steps of {step:g} are under the resolution of cos and sin in {_name(dtype)}: "
            f"{moving} of {len(host.inv_freq)} rotary pairs tell neighbours apart; use steps of "
            f"{FINEST[dtype]:g} or more, or a finer dtype"
        )
    end = float(plan.positions.abs().max())
    rounded = int((plan.positions.float().double() != plan.positions).flatten(1).any(1).sum())
    if rounded:
        warnings.append(
            f"{rounded} positions are too fine for float32 (steps of {step:g} are exact up to "
            f"{step * 2**24:g}): never hand them to the model as they are; the planned rotary "
            "embedding gives this sequence float64 angles"
        )
    elif end > FLOAT32_ANGLES:
        warnings.append(
            f"positions reach {end:g}, where the stock float32 angles are up to "
            f"{end * 2.0**-24:.2g} off; build the position table with exact=True"
        )
    inputs = [
        float(plan.dense_positions[low + 1, 2] - plan.dense_positions[low, 2])
        for low, item in zip(plan.bounds.tolist(), plan.segments, strict=False)
        if not isinstance(item, Text) and item.shape[2] > 1
    ]
    mixed = sorted({value for value in inputs if math.isfinite(value)})
    if len(mixed) > 1:
        warnings.append(
            f"visual inputs have steps of {', '.join(f'{value:g}' for value in mixed)} in one "
            "sequence: distances mean different things in each (arXiv 2511.19778)"
        )
    return warnings


def _base(plan: Placement, host: Host) -> list[str]:
    warnings = []
    for axis in range(host.channels.axes):
        on_axis = plan.positions[..., axis]
        span = float(on_axis.max() - on_axis.min())
        slowest = float(host.inv_freq[host.channels.axis == axis].min())
        name = f"axis {AXES[axis]}" if host.channels.axes > 1 else "the plan"
        limits = (
            (2 * math.pi, "repeat: positions that far apart look alike"),
            (math.acos(KEPT), f"turn by more than arccos {KEPT:g} (soft bound on the base)"),
            (
                math.acos(KEPT ** (1 / host.layers)),
                f"keep less than {KEPT:g} over {host.layers} layers (soft bound on the base)",
            ),
        )
        for angle, effect in limits:
            if slowest > 0 and span > angle / slowest:
                warnings.append(
                    f"{name} spans {span:g} positions; past {angle / slowest:g} its slowest rotary "
                    f"channels {effect}"
                )
                break
    if host.base > 1 / torch.finfo(torch.float32).eps:
        warnings.append(
            f"the RoPE base {host.base:g} is over 1 / float32 resolution (8.39e6): the slowest "
            "channels do not resolve single steps"
        )
    return warnings


def _packing(plan: Placement) -> list[str]:
    steps = plan.positions[:, 0, 0].diff()
    jumps = (steps != 1).nonzero()
    if not len(jumps):
        return []
    return [
        "handed over as plain position_ids without a 2-D attention mask, token "
        f"{int(jumps[0]) + 1} and others would be taken for the start of another packed sequence: "
        "hand over indices and attach the plan at the rotary embedding"
    ]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
