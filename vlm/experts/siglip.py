"""SigLIP's vision tower, and SigLIP 2's checkpoints of fixed resolution (transformers)."""

from transformers import SiglipVisionModel

from vlm.experts import hf

SIGLIP = hf.family(
    "siglip",
    SiglipVisionModel,
    run=lambda tower, x: (
        tower(
            x, interpolate_pos_encoding=tuple(x.shape[-2:]) != hf.side(tower.config.image_size)
        ).last_hidden_state
    ),
    layers=lambda tower: tower.encoder.layers,
    **hf.watcher(lambda layer: layer.self_attn),
    resizable=True,
)
