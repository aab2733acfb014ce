"""Model types that no adapter serves, and why."""

from __future__ import annotations

REFUSED = {
    "hunyuan_vl": "positions run on four axes, one of which is an image's number in the batch, so "
    "samples change one another",
    "kimi_k25": "latent attention in the decoder, frames averaged in the encoder",
    "nemotron_h_omni": "most decoder layers are Mamba layers, whose masks are not known here",
    "minicpmv4_7": "an image and its slices lie on one canvas of positions, after which later "
    "turns were seen to be placed otherwise",
    "gemma4_unified": "no vision encoder with attention",
    "gemma3n": "no vision encoder with attention",
    "deepseek_vl_hybrid": "a second encoder (SAM)",
    "qwen2_5_omni": "of the whole model the thinker is reduced: hand over `model.thinker`",
    "qwen3_omni_moe": "of the whole model the thinker is reduced: hand over `model.thinker`",
}
