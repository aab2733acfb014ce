"""Error sentences for recipes: what pydantic finds wrong, by key, with what would be right."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "too_short": "a list of {min_length}",
    "too_long": "a list of {max_length}",
    "dict_type": "keys with values",
    "dataclass_type": "keys with values",
    "greater_than_equal": "{ge:g} or more",
    "greater_than": "a positive number",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number up to {le:g}",
}


class RecipeError(ValueError):
    """A recipe cannot be used. The message names the key, its value and what would be right."""


def build(kind: type[T], values: Any) -> T:
    """An instance of the pydantic dataclass `kind`, nested ones included, from a mapping.

    Raises RecipeError for the first thing that is wrong. Unknown keys come first, as the rest often
    follows from them; the message suggests the closest known key.
    """
    try:
        return TypeAdapter(kind).validate_python(values)
    except ValidationError as error:
        raise RecipeError(_sentence(kind, values, error)) from error


def nearest(word: str, known: Sequence[object]) -> str:
    """A suggestion for an unknown word: the closest known one, or the list of all."""
    close = difflib.get_close_matches(word, [str(candidate) for candidate in known], 1, 0.6)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(map(str, known))}"


def as_number(value: Any) -> Any:
    """A number written as text: YAML reads "1e-3", without a point, as text."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value


def as_tuple(value: Any) -> Any:
    """A single value as a tuple of one."""
    return value if isinstance(value, list | tuple) else (value,)


def _sentence(kind: type, values: Any, error: ValidationError) -> str:
    problems = error.errors(include_url=False)
    unknown = ("unexpected_keyword_argument", "invalid_key")
    problem: Any = next((p for p in problems if p["type"] in unknown), problems[0])
    location, what = problem["loc"], problem["type"]
    if what in unknown:
        hint = nearest(str(location[-1]), _keys(kind, location[:-1]))
        return f"{_join(location)}: there is no such key; {hint}"
    if what == "missing":
        return f"{_join(location)} is missing: expected {', '.join(_keys(kind, location))}"
    if what == "value_error":
        name = _join(location)
        return f"{name}: {problem['ctx']['error']}" if name else str(problem["ctx"]["error"])
    name, value = _named(values, location)
    if what == "literal_error":
        options = re.findall("'([^']*)'", problem["ctx"]["expected"])
        return f"{name} is {value!r}; {nearest(str(value), options)}"
    # A union gives an error for each of its types, and deeper ones for the type that fits best.
    same = [p for p in problems if _named(values, p["loc"])[0] == name]
    depth = max(len(p["loc"]) for p in same)
    same = [p for p in same if len(p["loc"]) == depth]
    wanted = [_EXPECTED.get(p["type"], p["msg"]).format(**p.get("ctx", {})) for p in same]
    return f"{name or 'the recipe'} is {value!r}: expected {' or '.join(dict.fromkeys(wanted))}"


def _named(values: Any, location: Sequence[Any]) -> tuple[str, Any]:
    """The dotted key of an error and the value there, without types of unions and list indices."""
    keys = []
    for part in location:
        if isinstance(values, Mapping) and part in values:
            keys.append(part)
        elif not (isinstance(values, list | tuple) and isinstance(part, int)):
            break
        values = values[part]
    return _join(keys), values


def _keys(kind: Any, location: Sequence[Any]) -> list[str]:
    """The keys of the dataclass that a location leads to."""
    for name in location:
        hint = typing.get_type_hints(kind)[name]
        kind = next(t for t in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(t))
    return [field.name for field in dataclasses.fields(kind)]


def _join(location: Sequence[Any]) -> str:
    return ".".join(map(str, location))
