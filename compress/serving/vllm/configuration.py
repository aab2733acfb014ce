"""What the plugin checks and sets in vLLM's configuration of a model, before it is loaded."""

from __future__ import annotations

from typing import Any

from compress.serving.vllm.settings import ServingSettings

# Rotary embeddings whose table can be made longer without changing its entries.
EXTENSIBLE = ("default", "llama3")


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
    if hasattr(config, "video_token_id"):
        from vllm.config.multimodal import VideoDummyOptions

        multimodal.limit_per_prompt["video"] = VideoDummyOptions(count=0)
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
    # The switch of vLLM's hook for positions of pruned inputs. The number means nothing here.
    multimodal.video_pruning_rate = 0.5
