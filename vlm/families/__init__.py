"""The ways that vision-language models are built; one file each, found by `config.model_type`."""

from __future__ import annotations

from torch import nn

from vlm.families.base import Family, Grid, MergePoint, ProjectionTap, Tap, UnknownFamily
from vlm.families.llava import Llava

FAMILIES: tuple[type[Family], ...] = (Llava,)


def family_of(model: nn.Module) -> Family:
    """The family of a model, bound to it.

    Raises:
        UnknownFamily: no family serves the model's `config.model_type`.
    """
    kind = getattr(getattr(model, "config", None), "model_type", None)
    for family in FAMILIES:
        if kind in family.model_types and hasattr(model, "model"):
            return family(model)
    known = ", ".join(sorted(name for family in FAMILIES for name in family.model_types))
    raise UnknownFamily(
        f"{type(model).__name__} (model_type {kind!r}) is of no known family; known model types: "
        f"{known}. docs/add-a-family.md says how to add one"
    )


__all__ = [
    "FAMILIES",
    "Family",
    "Grid",
    "Llava",
    "MergePoint",
    "ProjectionTap",
    "Tap",
    "UnknownFamily",
    "family_of",
]
