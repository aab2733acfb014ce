"""The decoder layers before which visual tokens can leave, and schedules that keep to them.

Tokens are ranked by attention, which linear layers and convolutions do not have, and which sliding
and chunked layers have for the nearest tokens alone. So a schedule keeps to the layers of full
attention: a pair at another layer moves to the nearest one that can take it, and the budget is met
with the schedule as it then is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, replace

from compress.budget import Allocation, Plan, resolve_budget, solve
from compress.errors import CompressionError
from compress.methods import Method
from compress.probing.verdict import Probe
from vlm.families import ModelAdapter

LOCAL = ("sliding_attention", "chunked_attention")
RECURRENT = ("linear_attention", "conv")


def stage_layers(adapter: ModelAdapter, method: Method, scores: bool) -> tuple[int, ...] | None:
    """The decoder layers before which tokens can leave, ascending from 1; None if all can.

    scores: whether the method reads attention scores or keys of decoder layers.
    """
    kinds, last = adapter.layer_kinds, adapter.last_stage
    anywhere = not scores or set(kinds) == {"full_attention"}
    if anywhere and last == len(kinds) - 1:
        return None
    back = int(method.scored_by == "previous")
    return tuple(n for n in range(1, last + 1) if anywhere or kinds[n - back] == "full_attention")


def check_stages(adapter: ModelAdapter, method: Method, scores: bool) -> None:
    """Raise CompressionError for a method whose in-LLM part this decoder cannot run, or whose user
    named a layer before which it cannot."""
    stages = stage_layers(adapter, method, scores)
    if stages is None:
        return
    kinds = adapter.layer_kinds
    if not stages:
        if method.own_schedule(len(kinds)):
            raise CompressionError(
                f"{method!r} ranks visual tokens by the attention of a decoder layer, and "
                f"{type(adapter.language_model).__name__} has full attention in none before which "
                "tokens can leave: "
                "expected a method that reduces before the language model only, such as "
                "'divprune', or Duet(layers=(), ratios=())"
            )
        return
    back = int(method.scored_by == "previous")
    for layer in _named_layers(method):
        if adapter.last_stage < layer < len(kinds):
            raise CompressionError(
                f"{method!r} would drop visual tokens before decoder layer {layer}, and later "
                f"layers of {type(adapter.language_model).__name__} read the keys of layer "
                f"{adapter.last_stage}: expected layers among {', '.join(map(str, stages))}"
            )
        if 0 < layer < len(kinds) and layer not in stages:
            raise CompressionError(
                f"{method!r} would rank visual tokens by decoder layer {layer - back}, of kind "
                f"{kinds[layer - back]!r}, which has no attention to all of them: expected layers "
                f"among {', '.join(map(str, stages))}, or shares of the depth, which move to the "
                "nearest of these"
            )


def allocate(
    method: Method,
    size: tuple[int, int],
    budget: int | float,
    stages: Sequence[int] | None,
    probe: Probe | None = None,
) -> Allocation:
    """`method.allocate` under a schedule that follows a probe, and keeps to some layers.

    size: tokens of the input, and decoder layers. stages: the layers before which tokens can leave;
    None if all can. probe: None for the method's own schedule.
    """
    own, target = method.allocate(*size, budget), resolve_budget(budget, size[0])
    free = stages is None or all(layer in stages for layer, _ in own.schedule)
    if target == size[0] or (probe is None and free):
        return own
    return solve(changed_plans(method, size, stages, probe), size[0], target)


def changed_plans(
    method: Method, size: tuple[int, int], stages: Sequence[int] | None, probe: Probe | None
) -> Iterator[Plan]:
    """The plans of a method, first those that drop most, with schedules as `allocate` changes them.

    The arguments are those of `allocate`.
    """

    def changed(plan: Plan, end: int) -> Plan:
        def allocation(count: int) -> Allocation:
            made = plan(count) if probe is None else probe.adapt(plan(count), end)
            return made if stages is None else _snapped(made, stages)

        return allocation

    ends = [size[1]]
    if probe is not None:
        # Where dropping all tokens leaves too few for the budget, none is dropped.
        can = range(1, size[1]) if stages is None else stages
        ends = [*[layer for layer in can if layer >= probe.horizon][:1], size[1]]
    return (changed(plan, end) for end in ends for plan in method.plans(*size))


def _snapped(allocation: Allocation, stages: Sequence[int]) -> Allocation:
    """Each pair at the nearest of `stages`, the later of two; of pairs that meet, the last."""
    pairs: dict[int, int] = {}
    for layer, count in allocation.schedule:
        if stages:
            nearest = min(stages, key=lambda stage: (abs(stage - layer), -stage))
            pairs[nearest] = count
    return replace(allocation, schedule=tuple(sorted(pairs.items())))


def _named_layers(method: Method) -> tuple[int, ...]:
    """Decoder layers that the user named by number: options `layer` and `layers` that are not as
    they are by default."""
    named: list[int] = []
    for option in fields(method):
        value = getattr(method, option.name)
        if option.name in ("layer", "layers") and value != option.default:
            values = value if isinstance(value, tuple) else (value,)
            named += [layer for layer in values if isinstance(layer, int)]
    return tuple(named)
