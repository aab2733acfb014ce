"""The reduction and the positions that a recipe asks for, attached to a model in training."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from compress import Calibration, Compression, compress
from compress.adaptive import Budget
from compress.methods import METHODS, Method, Random
from compress.parse import parse_calibration, parse_positions, parse_schedule
from positions import PPE, PositionError, Scheme
from train.fields import RecipeError, nearest
from train.recipe import CompressSettings, Recipe


class Reducer:
    """A compression that follows the steps of a run.

    Random draws (of methods, of V2PE's increments, of the budget) depend on the seed, the step and,
    except for the budget, the process. A resumed run draws the same again.
    """

    def __init__(self, model: Any, recipe: Recipe, rank: int) -> None:
        self._seed, self._rank = recipe.seed, rank
        self._budgets: tuple[Budget, ...] = recipe.compress.budgets if recipe.compress else (1.0,)
        self._generator = torch.Generator()
        method = make_method(recipe.compress) if recipe.compress else Random()
        self.compression: Compression = compress(
            model,
            method,
            self._budgets[0],
            positions=make_positions(recipe.positions),
            slots=PPE(recipe.slots, recipe.slot_layout),
            schedule=parse_schedule(recipe.compress.schedule) if recipe.compress else None,
            calibrate=make_calibration(recipe.compress) if recipe.compress else None,
            generator=self._generator,
        )
        self.begin(0)

    def begin(self, step: int) -> None:
        """Seed the draws of a step, and draw its budget."""
        self._draw(step)
        rng = np.random.default_rng((self._seed, step))
        self._set(self._budgets[rng.integers(len(self._budgets))])

    def settle(self) -> None:
        """For validation: the same draws each time, and the first budget."""
        self._draw(0)
        self._set(self._budgets[0])

    def _draw(self, step: int) -> None:
        state = np.random.SeedSequence((self._seed, step, self._rank)).generate_state(2)
        self._generator.manual_seed(int(state[0]) << 32 | int(state[1]))

    def _set(self, budget: Budget) -> None:
        if budget != self.compression.settings.budget:
            self.compression.set_budget(budget)


def wanted(recipe: Recipe) -> bool:
    """Whether the recipe asks for a reduction or for positions other than the stock ones."""
    return recipe.compress is not None or recipe.positions != "original"


def make_method(reduction: CompressSettings) -> Method:
    """The method with its options. Raises RecipeError, which names what is unknown."""
    if reduction.method not in METHODS:
        raise RecipeError(
            f"compress.method is {reduction.method!r}; {nearest(reduction.method, sorted(METHODS))}"
        )
    kind = METHODS[reduction.method]
    known = [field.name for field in dataclasses.fields(kind)]
    for key in reduction.options:
        if key not in known:
            raise RecipeError(
                f"compress.options.{key}: {reduction.method} has no such option; "
                f"{nearest(key, known)}"
            )
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in reduction.options.items()}
    try:
        return kind(**options)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"compress.options: {error}") from error


def make_calibration(reduction: CompressSettings) -> Calibration | None:
    """The terms added to attention logits. Raises RecipeError, which names those that are known."""
    try:
        return parse_calibration(reduction.calibrate)
    except ValueError as error:
        raise RecipeError(f"compress.{error}") from error


def make_positions(name: str) -> str | Scheme:
    """ "original", "compact", or the scheme of a short name. Raises RecipeError on any other."""
    try:
        return parse_positions(name)
    except PositionError as error:
        raise RecipeError(f"positions: {error}") from error
