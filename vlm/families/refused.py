"""Model types that no adapter serves, and why."""

from __future__ import annotations

REFUSED = {
    "hunyuan_vl": "positions run on four axes, where plans have three; the fourth is an image's "
    "number, counted over the whole batch, so that samples change one another in the stock model",
    "kimi_k25": "the decoder makes keys and queries of a latent, from which scores are not read, "
    "and the encoder averages frames; reducing before the decoder alone was not tried",
    "nemotron_h_omni": "the decoder has no rotary embedding, through which positions are planned, "
    "and each of its layers is a Mamba mixer, attention or an MLP alone",
    "minicpmv4_7": "an image and its slices lie on one canvas of positions, after which later "
    "turns were seen to be placed otherwise",
    "gemma4_unified": "no vision encoder with attention",
    "gemma3n": "no vision encoder with attention",
    "deepseek_vl_hybrid": "a second encoder (SAM)",
    "qwen2_5_omni": "of the whole model the thinker is reduced: hand over `model.thinker`",
    "qwen3_omni_moe": "of the whole model the thinker is reduced: hand over `model.thinker`",
}
