"""Dataclasses from mappings: every key checked, the nearest right name on a typo."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

T = TypeVar("T")


class RecipeError(ValueError):
    """A key or value of a recipe that cannot be, and what would be right."""


def build(kind: type[T], given: Any, where: str = "") -> T:
    """An instance of the dataclass `kind` from a mapping, nested dataclasses included.

    where: the dotted name of this mapping in the recipe, for messages.
    Raises RecipeError for an unknown key (naming the nearest known one) or a value of a wrong type.
    """
    if not isinstance(given, Mapping):
        raise RecipeError(f"{where or 'the recipe'} is {given!r}: expected keys with values")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in given:
        if key not in known:
            hint = nearest(str(key), known)
            raise RecipeError(f"{_join(where, str(key))}: there is no such key; {hint}")
    values = {key: convert(value, hints[key], _join(where, key)) for key, value in given.items()}
    try:
        return kind(**values)
    except RecipeError:
        raise
    except ValueError as error:
        raise RecipeError(f"{where}: {error}" if where else str(error)) from error


def nearest(word: str, known: Sequence[object]) -> str:
    """What to say about a word that is not among those known."""
    near = difflib.get_close_matches(word, [str(one) for one in known], 1, 0.6)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(map(str, known))}"


def convert(value: Any, hint: Any, name: str) -> Any:
    """`value` as the type `hint`, or RecipeError. YAML's "1e-3" (a string there) is a number."""
    if hint is Any:
        return value
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _any_of(value, arguments, name)
    if origin is typing.Literal:
        if value not in arguments:
            raise RecipeError(f"{name} is {value!r}; {nearest(str(value), arguments)}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(hint, value, name)  # type: ignore[arg-type]
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(convert(item, arguments[0], name) for item in items)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise RecipeError(f"{name} is {value!r}: expected keys with values")
        return {
            str(k): convert(item, arguments[1], _join(name, str(k))) for k, item in value.items()
        }
    return _plain(value, hint, name)


def _any_of(value: Any, options: Sequence[Any], name: str) -> Any:
    if value is None and types.NoneType in options:
        return None
    real = [option for option in options if option is not types.NoneType]
    exact = [o for o in real if isinstance(o, type) and type(value) is o]
    problem: RecipeError | None = None
    for option in exact or real:
        try:
            return convert(value, option, name)
        except RecipeError as error:
            problem = error
    if len(real) == 1 and problem is not None:
        raise problem
    raise RecipeError(f"{name} is {value!r}: expected {' or '.join(map(_words, options))}")


def _plain(value: Any, hint: Any, name: str) -> Any:
    if hint is float and isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise RecipeError(f"{name} is {value!r}: expected a finite number")
        return float(value)
    # A bool is an int to Python, and not to a reader of recipes.
    if not (type(value) is int if hint is int else isinstance(value, hint)):
        raise RecipeError(f"{name} is {value!r}: expected {_words(hint)}")
    return value


def _words(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    if hint is types.NoneType:
        return "null"
    if get_origin(hint) is tuple:
        return "a list"
    if get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "keys with values"
    return names.get(hint, str(hint))


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
