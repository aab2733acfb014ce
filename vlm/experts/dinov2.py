"""DINOv2 (transformers); positions of another image size are interpolated by the encoder."""

from transformers import Dinov2Model

from vlm.experts import hf

DINOV2 = hf.family(
    "dinov2",
    Dinov2Model,
    run=lambda encoder, x: encoder(x).last_hidden_state,
    layers=lambda encoder: encoder.encoder.layer,
    prefix=lambda encoder: 1,
    **hf.watcher(lambda layer: layer.attention),
    resizable=True,
    defaults=lambda encoder: {"mean": hf.IMAGENET_MEAN, "std": hf.IMAGENET_STD},
)
