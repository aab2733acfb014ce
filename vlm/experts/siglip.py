"""SigLIP's vision encoder, and SigLIP 2's checkpoints of fixed resolution (transformers)."""

from transformers import SiglipVisionModel

from vlm.experts import hf

SIGLIP = hf.family(
    "siglip",
    SiglipVisionModel,
    run=lambda encoder, x: (
        encoder(
            x, interpolate_pos_encoding=tuple(x.shape[-2:]) != hf.side(encoder.config.image_size)
        ).last_hidden_state
    ),
    layers=lambda encoder: encoder.encoder.layers,
    **hf.watcher(lambda layer: layer.self_attn),
    resizable=True,
)
