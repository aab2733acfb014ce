"""What the plugin checks and sets in vLLM's configuration of a model, before it is loaded."""

from __future__ import annotations

from typing import Any

from vllm.config import MultiModalConfig

from compress.serving.vllm.settings import ServingSettings

# Rotary embeddings whose table can be made longer without changing its entries.
EXTENSIBLE = ("default", "llama3")


class PlacedMultiModalConfig(MultiModalConfig):
    """Has vLLM ask the model for positions once an image is encoded, and prune no videos itself."""

    def is_multimodal_pruning_enabled(self) -> bool:
        return True


def prepare(model_config: Any) -> None:
    """Check the settings, and have vLLM ask the model for positions.

    Raises ValueError for settings that cannot be served.
    """
    config, multimodal = model_config.hf_config, model_config.multimodal_config
    settings = ServingSettings.parse(config.foveate)
    if multimodal is None:
        raise ValueError("foveate reduces images, and this engine was started without them")
    if multimodal.video_pruning_rate:
        raise ValueError("foveate and --video-pruning-rate exclude each other: choose one")
    if multimodal.enable_mm_embeds:
        raise ValueError(
            "foveate reduces images as they are encoded; --enable-mm-embeds brings encoded ones"
        )
    if settings.positions == "compact":
        return
    if not model_config.uses_mrope:
        rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
        if rope.get("rope_type", "default") not in EXTENSIBLE:
            raise ValueError(
                f"foveate: positions='original' needs a rotary embedding of type "
                f"{' or '.join(EXTENSIBLE)}, and this model's is {rope.get('rope_type')!r}: choose "
                "positions='compact'"
            )
        config.mrope_section = [1, 1, 1]
    multimodal.__class__ = PlacedMultiModalConfig
