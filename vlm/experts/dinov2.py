"""DINOv2 (transformers); positions of another image size are interpolated by the tower."""

from transformers import Dinov2Model

from vlm.experts import hf

DINOV2 = hf.family(
    "dinov2",
    Dinov2Model,
    run=lambda tower, x: tower(x).last_hidden_state,
    layers=lambda tower: tower.encoder.layer,
    prefix=lambda tower: 1,
    **hf.watcher(lambda layer: layer.attention),
    resizable=True,
    defaults=lambda tower: {"mean": hf.IMAGENET_MEAN, "std": hf.IMAGENET_STD},
)
