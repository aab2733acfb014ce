"""The result of a probe: what each decoder layer loses without visual tokens, and the schedule
that follows from it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_ASSETS_CACHE

from compress.budget import Allocation
from compress.errors import UnprobedWarning
from compress.methods import Method
from compress.probing.fingerprint import family_of, key_of
from vlm.families import ModelAdapter

TOLERANCE = 0.02
"""Share of the answer tokens that may change where a probe calls visual tokens dispensable."""


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
        return self._settled("gone")

    @cached_property
    def ready(self) -> int:
        """The same for half of the visual tokens: in-LLM pruning begins there or later."""
        return self._settled("halved")

    def _settled(self, what: str) -> int:
        layer = self.depth
        for share in reversed(self.agreement(what)[1:]):
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
        if self.ready < self.depth:
            lines.append(f"Visual tokens can be halved from layer {self.ready} on.")
        if self.horizon < self.depth:
            lines.append(f"Visual tokens can be dropped from layer {self.horizon} on.")
        else:
            lines.append("Visual tokens are read to the last layer: they are never all dropped.")
        return "\n".join(lines)

    def curves(self) -> dict[str, Any]:
        """What `draw_curves` draws, as plain values."""
        whats = ("gone", "halved")
        return {
            "title": f"{self.model}: {len(self.rows)} prompts, {self.tokens} answer tokens",
            "horizon": self.horizon,
            "kl": {what: self.kl(what) for what in whats},
            "agreement": {what: self.agreement(what) for what in whats},
        }

    def draw(self, path: str | Path) -> None:
        """Draw the verdict to `path` (PNG, PDF or SVG by its suffix). Needs matplotlib."""
        draw_curves(self.curves(), path)

    # ------------------------------------------------------------ the schedule

    def adapt(self, allocation: Allocation, end: int) -> Allocation:
        """An allocation whose schedule follows this probe.

        Steps before `ready` move there. No visual token is left from layer `end` on, which is the
        horizon or later, and steps from there on are left out; `depth` if none is dropped.
        """
        pairs: dict[int, int] = {}
        for layer, count in allocation.schedule:
            pairs[max(layer, self.ready)] = count
        pairs = {layer: count for layer, count in pairs.items() if layer < end}
        if end < self.depth:
            pairs[end] = 0
        return replace(allocation, schedule=tuple(sorted(pairs.items())))

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


def draw_curves(curves: Mapping[str, Any], path: str | Path) -> None:
    """Draw what `Probe.curves` gives to `path`. Needs matplotlib."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    for what, colour in (("gone", "#D55E00"), ("halved", "#0072B2")):
        style = {"color": colour, "marker": "o", "markersize": 3, "label": what}
        above.plot([max(value, 1e-6) for value in curves["kl"][what]], **style)
        below.plot([100 * value for value in curves["agreement"][what]], **style)
    above.set_yscale("log")
    above.set_ylabel("KL of the next token (nats)")
    below.set_ylabel("answer tokens unchanged (%)")
    below.set_xlabel("visual tokens gone or halved from this decoder layer on")
    below.xaxis.get_major_locator().set_params(integer=True)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        if curves["horizon"] < len(curves["kl"]["gone"]):
            axes.axvline(curves["horizon"], color="#333333", linestyle=":", label="horizon")
    above.set_title(curves["title"])
    above.legend(frameon=False)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


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


def _row(facts: dict[str, Any]) -> Row:
    gone, halved = (
        Effect(tuple(map(float, facts[name]["kl"])), tuple(map(int, facts[name]["agree"])))
        for name in ("gone", "halved")
    )
    return Row(str(facts["digest"]), int(facts["tokens"]), gone, halved)


def warn_unprobed(method: Method, depth: int, family: str, stacklevel: int) -> None:
    """Warn if a method prunes in the language model by its own schedule, and no model of the family
    was ever probed. stacklevel: as in `warnings.warn`, from the caller on."""
    pairs = method.own_schedule(depth)
    if pairs and not Probe.known(family):
        warnings.warn(
            f"{type(method).__name__} prunes visual tokens in the language model from "
            f"decoder layer {pairs[0][0]} on, and no model of this kind ({family}) was "
            "ever probed: its later layers may still read them. compress.probe(model, processor) "
            "measures which layers do, and schedule='probed' follows it",
            UnprobedWarning,
            stacklevel=stacklevel,
        )
