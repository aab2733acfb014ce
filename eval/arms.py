"""The configurations of a sweep: dense, or a method at a budget."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from compress import Method, get_method
from compress.adaptive import Adaptive, Budget
from compress.budget import resolve_budget
from compress.methods import METHODS
from compress.parse import (
    parse_any_budget,
    parse_calibration,
    parse_method,
    parse_positions,
    parse_schedule,
)
from eval.samples import slug
from positions.channels import SlotLayout


@dataclass(frozen=True)
class Arm:
    """One configuration of a sweep.

    Args:
        method: a method or its name, or None for dense.
        budget: as in `compress`.
        positions: "original", "median", "compact" or the short name of a scheme, such as "v2pe:1/4"
            (see `python -m positions --help`).
        slots, layout: the number of positions that a merged token carries, and how they share the
            rotary channels (see `positions.PPE`).
        schedule: "own" for the method's schedule in the language model, or "probed" (see
            `compress.probe`).
        calibrate: "own" for what the method asks for, "none", or terms of `compress.Calibration`
            such as "size+first_layer".
        keep_phase: as in `compress`.
        served: what a model at an endpoint is called, whose server reduces; `method` is None then.

    Raises ValueError or TypeError for an unknown method or scheme, or an impossible budget.
    """

    method: str | Method | None = None
    budget: Budget = 1.0
    positions: str = "original"
    slots: int = 1
    layout: SlotLayout = "contiguous"
    schedule: str = "own"
    calibrate: str = "own"
    keep_phase: float = 0.0
    served: str | None = None

    def __post_init__(self) -> None:
        if self.method is not None:
            get_method(self.method)
            if not isinstance(self.budget, Adaptive):
                resolve_budget(self.budget, 2**31)
        parse_positions(self.positions)
        parse_schedule(self.schedule)
        parse_calibration(self.calibrate)
        if not 0 <= self.keep_phase < 0.5:
            raise ValueError(f"keep_phase is {self.keep_phase!r}: expected a number in [0, 0.5)")

    def describe(self) -> dict[str, Any]:
        """The configuration as JSON values, with all fields of the method."""
        if self.method is None:
            return {"method": None} | ({} if self.served is None else {"served": self.served})
        method = repr(get_method(self.method))
        budget = str(self.budget) if isinstance(self.budget, Adaptive) else self.budget
        settings = {"method": method, "budget": budget, "positions": self.positions}
        if self.slots > 1:
            settings |= {"slots": self.slots, "layout": self.layout}
        asked = {"schedule": self.schedule, "calibrate": self.calibrate}
        settings |= {name: value for name, value in asked.items() if value != "own"}
        return settings | ({"keep_phase": self.keep_phase} if self.keep_phase else {})

    @property
    def title(self) -> str:
        """For tables: "dense", "duet 64", "duet(query='all') 0.11 compact"."""
        if self.method is None:
            return self.line
        number = self.budget.amount if isinstance(self.budget, Adaptive) else self.budget
        kind = f"{self.budget.kind}:" if isinstance(self.budget, Adaptive) else ""
        budget = f"{number:.4g}" if isinstance(number, float) else str(number)
        return f"{self._name} {kind}{budget}{self._where}"

    @property
    def amount(self) -> float:
        """The number in the budget: a count, or a share."""
        if isinstance(self.budget, Adaptive):
            return float(self.budget.amount)
        return float(self.budget)

    @property
    def _name(self) -> str:
        return self.method if isinstance(self.method, str) else _short(self.method)

    @property
    def _where(self) -> str:
        where = "" if self.schedule == "own" else f" {self.schedule}"
        where += "" if self.calibrate == "own" else f" {self.calibrate}"
        where += f" phase:{self.keep_phase:.4g}" if self.keep_phase else ""
        where += "" if self.positions == "original" else f" {self.positions}"
        return where if self.slots == 1 else f"{where} x{self.slots} {self.layout}"

    @property
    def line(self) -> str:
        """The title without the budget: the name of a line in plots."""
        if self.method is None:
            return self.served or "dense"
        kind = f" {self.budget.kind}" if isinstance(self.budget, Adaptive) else ""
        return self._name + self._where + kind

    @property
    def folder(self) -> str:
        """A folder name, different for each configuration."""
        if self == DENSE:
            return "dense"
        digest = hashlib.sha256(repr(sorted(self.describe().items())).encode()).hexdigest()[:6]
        return slug(f"{self.title[:40]}-{digest}")


DENSE = Arm()


def _short(method: Method | None) -> str:
    """A method in the form of `parse_method`: its name and the options that are not defaults."""
    known = next((name for name, cls in METHODS.items() if cls is type(method)), None)
    if method is None or known is None:
        return repr(method)
    plain = get_method(known)
    options = [
        f"{f.name}={getattr(method, f.name)!r}"
        for f in fields(method)
        if getattr(method, f.name) != getattr(plain, f.name)
    ]
    return f"{known}({', '.join(options)})" if options else known


def restore(description: Mapping[str, Any]) -> Arm:
    """The arm that `Arm.describe` described."""
    if description["method"] is None:
        return Arm(served=description.get("served"))
    method = parse_method(description["method"])
    name = next((n for n in METHODS if get_method(n) == method), None)
    named = ("slots", "layout", "schedule", "calibrate", "keep_phase")
    more = {name: description[name] for name in named if name in description}
    budget = description["budget"]
    budget = parse_any_budget(budget) if isinstance(budget, str) else budget
    return Arm(name or method, budget, description["positions"], **more)
