"""Methods, budgets and positions as people write them on a command line."""

from __future__ import annotations

import ast
import math
from dataclasses import fields
from fractions import Fraction

from compress.adaptive import Budget, Coverage, Shared
from compress.calibration import Calibration
from compress.methods import METHODS, WITH_OPTIONS, Method, get_method
from positions import PositionError, Scheme
from positions.__main__ import parse_scheme

SCHEDULES = ("own", "probed")
ADAPTIVE: dict[str, type[Coverage] | type[Shared]] = {"coverage": Coverage, "shared": Shared}
NAMED_POSITIONS = ("original", "median", "compact")


def parse_method(text: str) -> str | Method:
    """A method from "duet", "duet(query='all')" or "Duet(text_query='all')".

    Values are Python literals. Raises ValueError for what is none of these, or for a method or an
    option that is not known.
    """
    if text in METHODS:
        return text
    if text in WITH_OPTIONS:
        raise ValueError(
            f"method {text!r} has no defaults: expected {text}(scorer='folder'), the folder of a "
            "scorer that was trained for this model"
        )
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
    named = METHODS | WITH_OPTIONS
    classes = {**{cls.__name__: cls for cls in named.values()}, **named}
    if name not in classes:
        get_method(name)  # says which are known
    try:
        return classes[name](**options)
    except TypeError as error:
        raise ValueError(f"method {text!r}: {error}") from error


def parse_positions(text: str) -> str | Scheme:
    """ "original", "median", "compact", or the scheme of a short name (see `python -m positions
    --help`).

    Raises PositionError, a ValueError, on any other.
    """
    if text in NAMED_POSITIONS:
        return text
    try:
        return parse_scheme(text)
    except PositionError as error:
        raise PositionError(f"{error}, or {', '.join(map(repr, NAMED_POSITIONS))}") from error


def parse_schedule(text: str) -> str | None:
    """ "own", the method's own schedule, as None; "probed" as it is.

    Raises ValueError on any other.
    """
    if text not in SCHEDULES:
        raise ValueError(f"schedule is {text!r}: expected 'own' or 'probed'")
    return None if text == "own" else text


def parse_calibration(text: str) -> Calibration | None:
    """ "own", what the method asks for, as None; "none"; or terms such as "size+first_layer".

    Raises ValueError on any other.
    """
    terms = [] if text == "none" else text.split("+")
    known = [field.name for field in fields(Calibration)]
    if text == "own":
        return None
    if not set(terms) <= set(known) or len(set(terms)) < len(terms):
        raise ValueError(
            f"calibrate is {text!r}: expected 'own', 'none', or terms among {', '.join(known)}, "
            "such as 'size+first_layer'"
        )
    return Calibration(**{name: name in terms for name in known})


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


def parse_any_budget(text: str) -> Budget:
    """A budget as `parse_budget` reads it, or one of `compress.adaptive`: "coverage:0.95",
    "shared:64". Raises ValueError for anything else."""
    kind, colon, number = text.partition(":")
    if not colon:
        return parse_budget(text)
    if kind == "latency":
        raise ValueError(
            f"budget {text!r}: a latency is measured on one prompt, so it goes with a question "
            "(foveate ask) alone"
        )
    if kind not in ADAPTIVE:
        raise ValueError(f"budget {text!r}: expected a number, 'coverage:0.95' or 'shared:64'")
    return ADAPTIVE[kind](parse_budget(number))


def parse_latency(text: str) -> float | None:
    """The milliseconds of "latency:200" or "latency:200ms"; None for another kind of budget.

    Raises ValueError if they are no number above 0.
    """
    kind, _, number = text.partition(":")
    if kind != "latency":
        return None
    try:
        milliseconds = float(number.removesuffix("ms"))
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds < math.inf:
        raise ValueError(f"budget {text!r}: expected milliseconds above 0, such as 'latency:200ms'")
    return milliseconds


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
