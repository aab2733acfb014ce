"""CLIP's vision tower (transformers)."""

from transformers import CLIPVisionModel

from vlm.experts import hf

CLIP = hf.family(
    "clip",
    CLIPVisionModel,
    run=lambda tower, x: (
        tower(
            x, interpolate_pos_encoding=tuple(x.shape[-2:]) != hf.side(tower.config.image_size)
        ).last_hidden_state
    ),
    layers=lambda tower: tower.encoder.layers,
    prefix=lambda tower: 1,
    **hf.watcher(lambda layer: layer.self_attn),
    resizable=True,
    defaults=lambda tower: {"mean": hf.CLIP_MEAN, "std": hf.CLIP_STD, "layer": -2, "fit": "pad"},
)
