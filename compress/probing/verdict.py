"""The result of a probe: what each decoder layer loses without visual tokens, and the schedule
that follows from it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_ASSETS_CACHE

from compress.budget import Allocation, Schedule, nearest, resolve_budget
from compress.errors import CompressionError
from compress.methods import Method
from compress.probing.fingerprint import family_of, key_of
from vlm.families import ModelAdapter

TOLERANCE = 0.02
"""Share of the answer tokens that may change where a probe calls visual tokens dispensable."""
RATIOS = (0.5, 0.25, 0.125)
"""Shares of the entering tokens that a probed schedule may leave, besides none at all."""


@dataclass(frozen=True)
class Effect:
    """What one intervention did to the answer of one prompt, for each decoder layer.

    kl: KL(dense || changed) of the next-token distributions, in nats, summed over the answer's
        tokens. agree: answer tokens whose greedy choice stayed the same.
    """

    kl: tuple[float, ...]
    agree: tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """One probed prompt: a digest of its inputs, the tokens of its answer, and both effects."""

    digest: str
    tokens: int
    gone: Effect
    halved: Effect


@dataclass(frozen=True)
class Probe:
    """What `compress.probe` found.

    Args:
        fingerprint: of the model (`compress.probing.fingerprint.key_of`).
        family: type, layers and width of the language model, such as "llama-32x4096".
        model: its name or path, for people.
        depth: decoder layers.
        rows: the prompts. Visual tokens are "gone" if none is left from a layer on, and "halved" if
            every second one is.
        finished: whether all prompts that were asked for are in.
    """

    fingerprint: str
    family: str
    model: str
    depth: int
    rows: tuple[Row, ...] = field(default=(), repr=False)
    finished: bool = True

    # ------------------------------------------------------------ what it says

    @property
    def tokens(self) -> int:
        """Answer tokens that were compared at each layer."""
        return sum(row.tokens for row in self.rows)

    def kl(self, what: str) -> list[float]:
        """Mean KL divergence in nats for each layer; what: "gone" or "halved"."""
        effects = [getattr(row, what).kl for row in self.rows]
        return [sum(values) / self.tokens for values in zip(*effects, strict=True)]

    def agreement(self, what: str) -> list[float]:
        """Share of answer tokens that stay the same, for each layer."""
        effects = [getattr(row, what).agree for row in self.rows]
        return [sum(values) / self.tokens for values in zip(*effects, strict=True)]

    @cached_property
    def horizon(self) -> int:
        """The first layer from which the answers stay the same without visual tokens.

        At it and at every later layer, at most `TOLERANCE` of the answer tokens change. It is at
        least 1, and `depth` if there is no such layer: visual tokens are then never all dropped.
        """
        layer = self.depth
        for share in reversed(self.agreement("gone")[1:]):
            if share < 1 - TOLERANCE:
                break
            layer -= 1
        return layer

    def __str__(self) -> str:
        head = (
            f"{self.model} ({self.family}, {self.depth} layers): {len(self.rows)} prompts, "
            f"{self.tokens} answer tokens"
        )
        lines = [
            head,
            f"{'from layer':>10}{'gone: KL':>12}{'same':>8}{'halved: KL':>14}{'same':>8}",
        ]
        columns = [self.kl("gone"), self.agreement("gone")]
        columns += [self.kl("halved"), self.agreement("halved")]
        for layer, (a, b, c, d) in enumerate(zip(*columns, strict=True)):
            lines.append(f"{layer:>10}{a:>12.4f}{b:>8.1%}{c:>14.4f}{d:>8.1%}")
        if self.horizon < self.depth:
            lines.append(f"Visual tokens can be dropped from layer {self.horizon} on.")
        else:
            lines.append("Visual tokens are read to the last layer: they are never all dropped.")
        return "\n".join(lines)

    def draw(self, path: str | Path) -> None:
        """Draw the verdict to `path` (PNG, PDF or SVG by its suffix). Needs matplotlib."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 6), layout="constrained")
        FigureCanvasAgg(figure)
        above, below = figure.subplots(2, 1, sharex=True)
        layers = range(self.depth)
        for what, colour in (("gone", "#D55E00"), ("halved", "#0072B2")):
            style = {"color": colour, "marker": "o", "markersize": 3, "label": what}
            above.plot(layers, [max(value, 1e-6) for value in self.kl(what)], **style)
            below.plot(layers, [100 * value for value in self.agreement(what)], **style)
        above.set_yscale("log")
        above.set_ylabel("KL of the next token (nats)")
        below.set_ylabel("answer tokens unchanged (%)")
        below.set_xlabel("visual tokens gone or halved from this decoder layer on")
        below.xaxis.get_major_locator().set_params(integer=True)
        for axes in (above, below):
            axes.spines[["top", "right"]].set_visible(False)
            if self.horizon < self.depth:
                axes.axvline(self.horizon, color="#333333", linestyle=":", label="horizon")
        above.set_title(f"{self.model}: {len(self.rows)} prompts, {self.tokens} answer tokens")
        above.legend(frameon=False)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)

    # ------------------------------------------------------------ the schedule

    @cached_property
    def damage(self) -> tuple[tuple[float, ...], float]:
        """What each layer loses, and how fast.

        A layer that sees a share r of the dense tokens is taken to lose w (1 - r)^p. The weights w,
        one a layer, are the steps by which the effect of having none falls from layer to layer;
        the exponent p is such that half the tokens lose what halving lost.
        """
        gone, halved = (_falling(self.kl(what)) for what in ("gone", "halved"))
        steps = [a - b for a, b in zip(gone, [*gone[1:], 0.0], strict=True)]
        exponent = math.log2(max(gone[0], 1e-9) / max(halved[0], 1e-9))
        return tuple(steps), min(max(exponent, 1.0), 6.0)

    def allocate(
        self,
        method: Method,
        dense: int,
        budget: int | float,
        stages: Sequence[int] | None = None,
    ) -> Allocation:
        """The allocation of `budget` under the schedule that loses least by this probe.

        Schedules with up to two pairs are compared; none drops all tokens before the horizon.
        dense, budget: as in `Method.allocate`. stages: the decoder layers before which tokens can
        leave, from 1 on; None if all can.

        Raises CompressionError for a method that does not take a schedule from outside.
        """
        target = resolve_budget(budget, dense)
        if target == dense:
            return Allocation(dense, self.depth, dense)
        self.check(method)
        layers = range(1, self.depth) if stages is None else stages
        ratios = self._best(target / dense, layers)

        def plan(count: int) -> Allocation:
            pairs: Schedule = tuple((layer, int(count * ratio)) for layer, ratio in ratios)
            return Allocation(dense, self.depth, count, pairs)

        return nearest(plan, dense, target)

    @staticmethod
    def check(method: Method) -> None:
        """Raise CompressionError unless any number of the method's tokens may enter the model."""
        own = next(method.plans(4, 2))
        if method.resizes_input or own(1).keep != 1:
            raise CompressionError(
                f"schedule: {method!r} does not choose how many tokens enter the language model, "
                "so it takes no schedule but its own; expected a method that reduces before it"
            )

    def _best(self, share: float, layers: Sequence[int]) -> tuple[tuple[int, float], ...]:
        """Pairs (layer, ratio) with the least damage at a mean share of the dense tokens."""
        weights, exponent = self.damage
        up_to = [0.0, *accumulate(weights)]
        best: tuple[tuple[int, float], ...] = ()
        least = math.inf
        for pairs in self._schedules(layers):
            starts = [0, *(layer for layer, _ in pairs), self.depth]
            ratios = [1.0, *(ratio for _, ratio in pairs)]
            spans = list(zip(pairwise(starts), ratios, strict=True))
            enters = share * self.depth / sum((b - a) * ratio for (a, b), ratio in spans)
            if enters > 1:
                continue
            loss = sum(
                (up_to[b] - up_to[a]) * (1 - enters * ratio) ** exponent for (a, b), ratio in spans
            )
            if loss < least - 1e-12:  # the first of equals, which has the fewest pairs
                best, least = pairs, loss
        return best

    def _schedules(self, layers: Sequence[int]) -> Iterator[tuple[tuple[int, float], ...]]:
        """All schedules of up to two pairs at some layers, shorter ones first."""
        steps = [(layer, ratio) for layer in layers for ratio in RATIOS]
        steps += [(layer, 0.0) for layer in layers if layer >= self.horizon]
        yield ()
        yield from ((step,) for step in steps)
        for first, second in combinations(sorted(steps), 2):
            if first[0] < second[0] and first[1] > second[1]:
                yield first, second

    # ------------------------------------------------------------ files

    def save(self, folder: str | Path | None = None) -> Path:
        """Write it where `Probe.find` looks; returns the file."""
        folder = probes_folder() if folder is None else Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.family}-{self.fingerprint}.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        fresh.replace(path)
        return path

    @staticmethod
    def load(path: str | Path) -> Probe:
        """Read a file that `save` wrote. Raises ValueError if it is not one."""
        try:
            facts = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = tuple(_row(row) for row in facts.pop("rows"))
            probe = Probe(**facts, rows=rows)
            lengths = {len(e.kl) for row in rows for e in (row.gone, row.halved)}
            lengths |= {len(e.agree) for row in rows for e in (row.gone, row.halved)}
            if not lengths <= {probe.depth} or any(row.tokens < 1 for row in rows):
                raise ValueError("numbers of layers differ")
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is no saved probe: {error}") from error
        return probe

    @staticmethod
    def find(family: str, fingerprint: str, folder: str | Path | None = None) -> Probe | None:
        """The saved probe of a model, finished or not; None if there is none."""
        for place in places(folder):
            path = place / f"{family}-{fingerprint}.json"
            if path.is_file():
                return Probe.load(path)
        return None

    @staticmethod
    def known(family: str, folder: str | Path | None = None) -> bool:
        """Whether any model of a family was probed."""
        return any(any(place.glob(f"{family}-*.json")) for place in places(folder))


def probe_of(schedule: str | Probe | None, adapter: ModelAdapter) -> Probe | None:
    """The probe that a `schedule` of `compress` names; None for the method's own schedule.

    Raises ValueError for another word, or if the model's probe was not saved or not finished.
    """
    if schedule is None or isinstance(schedule, Probe):
        return schedule
    if schedule != "probed":
        raise ValueError(f"schedule is {schedule!r}: expected 'probed', a Probe or None")
    found = Probe.find(family_of(adapter), key_of(adapter))
    if found is None or not found.finished:
        state = "has no saved probe" if found is None else "has a probe that was not finished"
        raise ValueError(f"schedule is 'probed', and this model {state}: run compress.probe first")
    return found


def probes_folder() -> Path:
    """Where probes are saved: in the assets cache of huggingface_hub."""
    return Path(HF_ASSETS_CACHE) / "foveate" / "probes"


def places(folder: str | Path | None = None) -> list[Path]:
    """Folders with saved probes: `folder` alone, or the cache and those in this package."""
    if folder is not None:
        return [Path(folder)]
    return [probes_folder(), Path(__file__).parent / "saved"]


def _falling(values: Sequence[float]) -> list[float]:
    """The least sequence above `values` that never rises; no step of it is negative by noise."""
    falling = list(values)
    for at in range(len(falling) - 2, -1, -1):
        falling[at] = max(falling[at], falling[at + 1])
    return falling


def _row(facts: dict[str, Any]) -> Row:
    gone, halved = (
        Effect(tuple(map(float, facts[name]["kl"])), tuple(map(int, facts[name]["agree"])))
        for name in ("gone", "halved")
    )
    return Row(str(facts["digest"]), int(facts["tokens"]), gone, halved)
