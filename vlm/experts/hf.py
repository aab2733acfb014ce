"""Building, loading and reading settings, shared by the families of transformers encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError
from transformers import CLIPImageProcessor, PreTrainedConfig, PreTrainedModel

from vlm.attention import Call, Segments, split_heads
from vlm.experts.base import Encoder, ExpertError, Family, Pair

# What transformers raises for a checkpoint that it cannot read.
UNREADABLE = (OSError, ValueError, RuntimeError, SafetensorError)

Loaded = tuple[Encoder, dict[str, Any], dict[str, Any]]
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def builder(model: type[PreTrainedModel]) -> Callable[[dict[str, Any]], Encoder]:
    """The function that builds `model` from `config.to_dict()`, with SDPA where it has it."""
    config_class = model.config_class
    if config_class is None:
        raise TypeError(f"{model.__name__} names no configuration class")
    return lambda encoder: model._from_config(config_class.from_dict(encoder))


def loader(model: type[PreTrainedModel]) -> Callable[[str], Loaded]:
    """The function that loads `model` from a local folder in transformers' format."""
    return lambda path: load_pretrained(model, path)


def load_pretrained(model: type[PreTrainedModel], path: str) -> Loaded:
    """An encoder with all its weights from safetensors; weights of other parts are left out.

    path: a local folder, or a name that `from_pretrained` resolves.
    Raises ExpertError if the checkpoint is missing, is of another kind, has no safetensors (pickle
    files are never opened), needs custom code, or lacks weights of the encoder.
    """
    config_class = model.config_class
    try:
        kind = PreTrainedConfig.get_config_dict(path)[0].get("model_type", "")
        # A whole CLIP ("clip") holds a CLIP encoder ("clip_vision_model").
        if config_class is None or not kind or not config_class.model_type.startswith(kind):
            raise ValueError(f"its config.json names the model type {kind!r}")
        loaded: Any = model.from_pretrained(
            path, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except UNREADABLE as error:
        raise ExpertError(f"cannot load {model.__name__} from {path}: {error}") from error
    encoder, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise ExpertError(
            f"{path} lacks {len(missing)} weights of {model.__name__}, the first being "
            f"{missing[0]}: expected a checkpoint of this kind of encoder"
        )
    return encoder, encoder.config.to_dict(), preprocessing(path)


def preprocessing(path: str) -> dict[str, Any]:
    """Mean and standard deviation from a checkpoint's preprocessor_config.json, if there is one."""
    try:
        settings, _ = CLIPImageProcessor.get_image_processor_dict(path)
    except OSError:
        return {}
    names = {"image_mean": "mean", "image_std": "std"}
    return {ours: settings[theirs] for theirs, ours in names.items() if settings.get(theirs)}


def side(value: int | list[int] | tuple[int, ...]) -> Pair:
    """A size that transformers gives as one number or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def native(encoder: dict[str, Any]) -> Pair:
    """The image size in an encoder's configuration."""
    return side(encoder["image_size"])


def patch_grid(encoder: dict[str, Any], size: Pair) -> Pair:
    """Whole patches in `size`."""
    patch = side(encoder["patch_size"])
    return size[0] // patch[0], size[1] // patch[1]


def hidden_size(encoder: Encoder, layer: int | str) -> int:
    """Width of all features of a plain ViT."""
    config: PreTrainedConfig = encoder.config
    return int(config.hidden_size)


def watcher(attention: Callable[[Encoder], Encoder]) -> dict[str, Any]:
    """The fields `watch` and `attention` of a family whose layers have q_proj and k_proj.

    attention: from a layer to its attention module.
    """

    def watch(layer: Encoder) -> dict[str, Encoder]:
        module = attention(layer)
        return {"query": module.q_proj, "key": module.k_proj}

    def scored(layer: Encoder, seen: dict[str, Call]) -> Segments:
        module = attention(layer)
        width = module.head_dim
        heads = seen["query"].output.shape[-1] // width
        query, key = (split_heads(seen[name].output, heads) for name in ("query", "key"))
        return Segments(query, key, width**-0.5)

    return {"watch": watch, "attention": scored}


def family(name: str, model: type[PreTrainedModel], **parts: Any) -> Family:
    """A family of transformers ViTs. `parts` overrides what differs from most of them."""
    usual = {
        "build": builder(model),
        "load": loader(model),
        "native": native,
        "grid": patch_grid,
        "width": hidden_size,
    }
    return Family(name=name, **{**usual, **parts})
