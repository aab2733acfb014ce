"""What a user asks of the plugin: `--hf-overrides '{"foveate": {...}}'`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from compress.defaults import METHOD
from compress.methods import METHODS, Method

KEEP = "foveate_keep"
"""The key of `mm_processor_kwargs` that gives one request a smaller `keep`, and the field of an
image or video with what it keeps: () int64 or float64."""
POSITIONS = ("original", "compact")


@dataclass(frozen=True)
class ServingSettings:
    """The settings of one engine.

    method: whose pre-LLM part runs.
    keep: visual tokens of an image that enter the language model: a count (int), or a share of its
        dense tokens (float in (0, 1]).
    positions: "original" or "compact".
    """

    method: Method
    keep: int | float
    positions: str = "original"

    @classmethod
    def parse(cls, given: object) -> ServingSettings:
        """Settings from the value of the key `foveate`.

        Its keys are `method`, `keep`, `positions` and the options of the method.

        Raises ValueError, naming the key, for anything that is unknown or cannot be served.
        """
        if not isinstance(given, Mapping):
            raise ValueError(
                f'foveate is {given!r}; expected an object such as {{"method": "duet", "keep": 64}}'
            )
        options = dict(given)
        if "keep" not in options:
            raise ValueError(
                "foveate has no 'keep': the visual tokens of an image that enter the language "
                "model, as a count such as 64 or a share such as 0.25"
            )
        keep = check_keep(options.pop("keep"), "foveate: keep")
        positions = options.pop("positions", "original")
        if positions not in POSITIONS:
            raise ValueError(f"foveate: positions is {positions!r}; expected one of {POSITIONS}")
        method = _method(options.pop("method", METHOD), options)
        _check_method(method)
        return cls(method, keep, positions)

    def count(self, dense: int, keep: int | float | None = None) -> int:
        """Tokens that are left of `dense`; all of them if `keep` is larger.

        keep: of one request, default the engine's.
        """
        keep = self.keep if keep is None else keep
        if isinstance(keep, int):
            return min(keep, dense)
        # As `compress` allocates a budget: the nearest count, the lower of two equally near.
        return max(1, math.ceil(keep * dense - 0.5))

    def request_keep(self, arguments: Mapping[str, Any], dense: int) -> int | float:
        """The `keep` of a request, for an image of `dense` tokens.

        arguments: its `mm_processor_kwargs`.

        Raises ValueError if it keeps more than the engine does, whose memory is set aside for that.
        """
        if KEEP not in arguments:
            return self.keep
        keep = check_keep(arguments[KEEP], KEEP)
        wanted, most = self.count(dense, keep), self.count(dense)
        if wanted > most:
            raise ValueError(
                f"{KEEP} is {keep!r}, which keeps {wanted} of an image's {dense} tokens; "
                f"this engine was started with keep {self.keep!r}, at most {most}"
            )
        return keep


def check_keep(keep: object, name: str) -> int | float:
    """Raise ValueError unless `keep` is a positive count or a share in (0, 1]."""
    if isinstance(keep, int) and not isinstance(keep, bool) and keep >= 1:
        return keep
    if isinstance(keep, float) and 0 < keep <= 1:
        return keep
    raise ValueError(
        f"{name} is {keep!r}; expected a count of tokens (an integer, at least 1) or a share of "
        "the image's tokens (a fraction in (0, 1])"
    )


def _method(name: object, options: Mapping[str, Any]) -> Method:
    if not isinstance(name, str) or name not in METHODS:
        raise ValueError(f"foveate: method is {name!r}; known methods: {', '.join(METHODS)}")
    kind = METHODS[name]
    known = [field.name for field in fields(kind)]
    for key in options:
        if key not in known:
            raise ValueError(
                f"foveate: unknown key {key!r}; expected 'method', 'keep', 'positions' or an "
                f"option of {name}: {', '.join(known) or 'it has none'}"
            )
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise ValueError(f"foveate: {error}") from error


def _check_method(method: Method) -> None:
    """Raise ValueError for a method that has nothing to do before the language model, or that
    reaches into vision encoder or attention where vLLM's cannot be reached."""
    name = type(method).__name__.lower()
    if method.in_llm_only or next(method.plans(100, 4))(10).keep == 100:
        raise ValueError(
            f"foveate: {name} reduces between decoder layers only, which vLLM has no room for: "
            "all layers share one table of cache blocks. Choose a method that reduces before the "
            "language model"
        )
    if method.resizes_input or method.prunes_patches:
        raise ValueError(
            f"foveate: {name} gives the vision encoder less than the image, which vLLM's does not "
            "take. Give the processor smaller images instead, by --mm-processor-kwargs"
        )
    if method.proportional_attention:
        raise ValueError(
            f"foveate: {name} with proportional_attention adds log(size) to attention logits, "
            "which vLLM's attention does not take. Set proportional_attention to false"
        )
