"""CLIP's vision encoder (transformers)."""

from transformers import CLIPVisionModel

from vlm.experts import hf

CLIP = hf.family(
    "clip",
    CLIPVisionModel,
    run=lambda encoder, x: (
        encoder(
            x, interpolate_pos_encoding=tuple(x.shape[-2:]) != hf.side(encoder.config.image_size)
        ).last_hidden_state
    ),
    layers=lambda encoder: encoder.encoder.layers,
    prefix=lambda encoder: 1,
    **hf.watcher(lambda layer: layer.self_attn),
    resizable=True,
    defaults=lambda encoder: {"mean": hf.CLIP_MEAN, "std": hf.CLIP_STD, "layer": -2, "fit": "pad"},
)
