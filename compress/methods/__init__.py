"""The methods, each a dataclass in a file of its own; by name through `get_method`."""

from __future__ import annotations

from typing import Any

from compress.methods.base import Method
from compress.methods.cascade import Cascade
from compress.methods.cdpruner import CDPruner
from compress.methods.chatunivi import ChatUniVi
from compress.methods.dart import DART
from compress.methods.divprune import DivPrune
from compress.methods.downsample import Downsample
from compress.methods.duet import Duet
from compress.methods.fastv import FastV
from compress.methods.fastvid import FastVID
from compress.methods.flashvid import FlashVID
from compress.methods.foveate import Foveate
from compress.methods.foveate_gains import gains_of
from compress.methods.holov import HoloV
from compress.methods.idselection import IDSelection
from compress.methods.learned import Learned
from compress.methods.mmr import MMR
from compress.methods.mmtok import MMTok
from compress.methods.pixelprune import PixelPrune
from compress.methods.pool import Pool
from compress.methods.prumerge import PruMerge
from compress.methods.prunesid import PruneSID
from compress.methods.pyramiddrop import PyramidDrop
from compress.methods.random import Random
from compress.methods.scope import Scope
from compress.methods.sparsevlm import SparseVLM
from compress.methods.tome import ToMe
from compress.methods.uniform import Uniform
from compress.methods.vcast import VCast
from compress.methods.vidcom2 import VidCom2
from compress.methods.visionzip import VisionZip
from compress.methods.vispruner import VisPruner
from compress.methods.vscan import VScan

METHODS: dict[str, type[Method]] = {
    cls.__name__.lower(): cls
    for cls in (
        Cascade,
        CDPruner,
        ChatUniVi,
        DART,
        DivPrune,
        Downsample,
        Duet,
        FastV,
        FastVID,
        FlashVID,
        Foveate,
        HoloV,
        IDSelection,
        MMR,
        MMTok,
        PixelPrune,
        Pool,
        PruMerge,
        PruneSID,
        PyramidDrop,
        Random,
        Scope,
        SparseVLM,
        ToMe,
        Uniform,
        VCast,
        VidCom2,
        VisPruner,
        VisionZip,
        VScan,
    )
}


# Methods without defaults: each needs an option.
WITH_OPTIONS: dict[str, type[Method]] = {"learned": Learned}


def list_methods() -> list[str]:
    """Names of methods that run as they are, sorted. `get_method` knows "learned", too, which needs
    a scorer."""
    return sorted(METHODS)


def get_method(method: str | Method, **options: Any) -> Method:
    """A method by name with its default configuration but for `options`, or the instance given.

    Raises ValueError for an unknown name (listing the known ones), TypeError for anything else, and
    for options that the method does not have or that come with an instance.
    """
    if isinstance(method, Method):
        if options:
            raise TypeError(
                f"{', '.join(options)}: options go with a name, and {method!r} has its own"
            )
        return method
    if not isinstance(method, str):
        raise TypeError(f"method must be a name or a Method instance, got {method!r}")
    if method in WITH_OPTIONS:
        return WITH_OPTIONS[method](**options)
    if method not in METHODS:
        known = ", ".join(list_methods())
        raise ValueError(f"method is {method!r}; known methods: {known}")
    return METHODS[method](**options)


__all__ = ["METHODS", "WITH_OPTIONS", "Learned", "Method", "gains_of", "get_method", "list_methods"]
__all__ += [cls.__name__ for cls in METHODS.values()]
