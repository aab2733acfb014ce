"""Qwen3.5: Qwen3-VL's encoder without DeepStack, and linear attention in most decoder layers."""

from __future__ import annotations

from vlm.families.qwen3_vl import Qwen3VL


class Qwen3_5(Qwen3VL):  # noqa: N801 - as the model is called
    """`Qwen3_5ForConditionalGeneration` and its mixture of experts.

    A linear layer carries a state from token to token, which decays once a token that is left.
    Tokens leave before layers of full attention, and stay in raster order.
    """

    name = "qwen3_5"
    model_types = frozenset({"qwen3_5", "qwen3_5_moe"})
    packs = False  # the state would run on from one sample to the next
