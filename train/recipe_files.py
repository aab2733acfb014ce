"""Recipes as files: YAML, overrides, and the files that ship with the package."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from train.fields import RecipeError, build, nearest
from train.recipe import Recipe

FOLDER = Path(__file__).parent


def load_recipe(name: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file.

    Args:
        name: a path, or the name of a file in train/recipes ("finetune"). A recipe with the key
            `extends: NAME` starts from that recipe and overrides keys of it.
        overrides: assignments such as "optimizer.batch=64".

    Raises RecipeError if the file does not exist or is not YAML, or for an unknown key or a wrong
    value.
    """
    path = find(name, "recipes", ".yaml")
    given = _read(path, ())
    for override in overrides:
        apply(given, override)
    try:
        return build(Recipe, given)
    except RecipeError as error:
        keys = tuple(override.partition("=")[0] for override in overrides)
        if keys and str(error).startswith(keys):  # not a mistake in the file
            raise
        raise RecipeError(f"{path}: {error}") from error


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(given, dict):
        raise RecipeError(f"{path}: expected keys with values, got {type(given).__name__}")
    base = given.pop("extends", None)
    if base is None:
        return given
    beside = path.parent / f"{base}.yaml"
    other = beside if beside.is_file() else find(str(base), "recipes", ".yaml")
    if other in (path, *above):
        raise RecipeError(f"{path}: extends {base!r}, which extends this recipe")
    return _merged(_read(other, (path, *above)), given)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def apply(given: dict[str, Any], override: str) -> None:
    """Set the dotted key of "key=value" in a nested mapping; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise RecipeError(f"{override!r}: expected key=value, such as optimizer.batch=64")
    *path, last = key.split(".")
    at = given
    for name in path:
        if at.get(name) is None:
            at[name] = {}
        if not isinstance(at[name], dict):
            raise RecipeError(f"{override!r}: {name} is {at[name]!r} and has no keys")
        at = at[name]
    try:
        at[last] = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise RecipeError(f"{override!r}: the value is not YAML: {error}") from error


def find(name: str | Path, folder: str, suffix: str) -> Path:
    """A file by path, or by name in train/`folder`. Raises RecipeError with a suggestion."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = FOLDER / folder / f"{path.name.removesuffix(suffix)}{suffix}"
    if path.parent.name in ("", folder) and shipped.is_file():
        return shipped
    names = sorted(file.stem for file in (FOLDER / folder).glob(f"*{suffix}"))
    hint = nearest(path.name.removesuffix(suffix), names)
    raise RecipeError(
        f"{name}: there is no such file, and none of that name in train/{folder}; {hint}"
    )


def to_yaml(recipe: Recipe) -> str:
    """The recipe with all defaults, as YAML that `load_recipe` reads."""
    return yaml.safe_dump(as_dict(recipe), sort_keys=False, allow_unicode=True)


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain dictionaries, lists and values."""
    return _plain(dataclasses.asdict(recipe))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses duplicate keys, of which YAML would silently keep the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                mark = node.value[number][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", mark)
        return super().construct_mapping(node, deep)
