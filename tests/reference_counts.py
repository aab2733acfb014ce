"""How many tokens of a sample `tests/reference.py` leaves in each decoder layer."""

from __future__ import annotations

from compress.methods import Method


def counts_of(
    method: Method,
    budget: int | float,
    dense: list[int],
    depth: int,
    leading: int,
    stages: tuple[int, ...],
) -> list[tuple[int, ...]]:
    """Tokens of each visual input of one sample in each decoder layer.

    stages: the layers before which tokens can leave.

    Each input has the allocation of its own size; one with fewer tokens than a budget that is a
    count keeps all. leading: inputs that stand before any text. The last of these keeps at least
    one token in every layer, since that token predicts the first word, or the answer.
    """
    counts = [
        _allocated(method, n, depth, min(budget, n) if isinstance(budget, int) else budget, stages)
        for n in dense
    ]
    if leading:
        counts[leading - 1] = tuple(max(count, 1) for count in counts[leading - 1])
    return counts


def _allocated(
    method: Method, dense: int, depth: int, budget: int | float, stages: tuple[int, ...]
) -> tuple[int, ...]:
    """Tokens in each layer, each pair of a schedule at the nearest layer that can take it."""
    own = method.allocate(dense, depth, budget)
    if all(layer in stages for layer, _ in own.schedule):
        return own.counts
    target, best = budget if isinstance(budget, int) else budget * dense, None
    for plan in method.plans(dense, depth):
        counts = []
        for entering in range(1, dense + 1):
            planned = plan(entering)
            left = [planned.keep] * depth
            for layer, count in planned.schedule:
                near = min(abs(stage - layer) for stage in stages)
                stage = layer + near if layer + near in stages else layer - near
                left[stage:] = [count] * (depth - stage)
            counts.append(tuple(left))
        one = min(counts, key=lambda c: (abs(sum(c) / depth - target), sum(c)))
        if sum(counts[0]) <= target * depth <= sum(counts[-1]):
            return one
        if best is None or abs(sum(one) - target * depth) < abs(sum(best) - target * depth):
            best = one
    assert best is not None
    return best
