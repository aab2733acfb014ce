"""The configurations of a sweep: dense, or a method at a budget."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fractions import Fraction
from typing import Any

from compress import Method, get_method
from compress.budget import resolve_budget
from compress.methods import METHODS
from eval.samples import slug


@dataclass(frozen=True)
class Arm:
    """One configuration of a sweep. method None is dense; budget as in `compress`.

    Raises ValueError or TypeError for a method that is not known or a budget that cannot be.
    """

    method: str | Method | None = None
    budget: int | float = 1.0
    positions: str = "home"

    def __post_init__(self) -> None:
        if self.method is not None:
            get_method(self.method)
            resolve_budget(self.budget, 2**31)

    def describe(self) -> dict[str, Any]:
        """The configuration as JSON: the method with all its fields, and the budget."""
        if self.method is None:
            return {"method": None}
        method = repr(get_method(self.method))
        return {"method": method, "budget": self.budget, "positions": self.positions}

    @property
    def title(self) -> str:
        """For tables: "dense", "duet 64", "duet(query='all') 0.11 compact"."""
        if self.method is None:
            return "dense"
        budget = f"{self.budget:.4g}" if isinstance(self.budget, float) else str(self.budget)
        return f"{self._name} {budget}{self._where}"

    @property
    def _name(self) -> str:
        return self.method if isinstance(self.method, str) else _short(self.method)

    @property
    def _where(self) -> str:
        return "" if self.positions == "home" else f" {self.positions}"

    @property
    def line(self) -> str:
        """What arms that differ in their budget alone share."""
        return "dense" if self.method is None else self._name + self._where

    @property
    def folder(self) -> str:
        """A folder name that tells configurations apart."""
        if self.method is None:
            return "dense"
        digest = hashlib.sha256(repr(sorted(self.describe().items())).encode()).hexdigest()[:6]
        return slug(f"{self.title[:40]}-{digest}")


DENSE = Arm()


def _short(method: Method | None) -> str:
    """A method as `parse_method` reads it: its name, and the options that are not the default."""
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
        return DENSE
    method = parse_method(description["method"])
    name = next((n for n in METHODS if get_method(n) == method), None)
    return Arm(name or method, description["budget"], description["positions"])


def parse_method(text: str) -> str | Method:
    """A method from "duet", "duet(query='all')" or "Duet(query='all')".

    Values are Python literals. Raises ValueError for what is none of these, or for a method or an
    option that is not known.
    """
    if text in METHODS:
        return text
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError
        options = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
        name = call.func.id
    except (SyntaxError, ValueError) as error:
        known = ", ".join(sorted(METHODS))
        raise ValueError(
            f"method {text!r}: expected one of {known}, or one with options such as "
            "duet(query='all')"
        ) from error
    classes = {**{cls.__name__: cls for cls in METHODS.values()}, **METHODS}
    if name not in classes:
        get_method(name)  # says which are known
    try:
        return classes[name](**options)
    except TypeError as error:
        raise ValueError(f"method {text!r}: {error}") from error


def parse_budget(text: str) -> int | float:
    """ "64" is a count of tokens; "0.25", "1/9" and "11%" are fractions of the dense count.

    Raises ValueError for anything else.
    """
    try:
        if text.isdecimal():
            return int(text)
        return float(text[:-1]) / 100 if text.endswith("%") else float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"budget {text!r}: expected a count such as 64, or a fraction such as 0.25, 1/9 or 11%"
        ) from error


def split_list(text: str) -> list[str]:
    """Split at the commas that are not within brackets: "duet,random(seed=1)"."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]
