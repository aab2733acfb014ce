"""What the plugin checks and sets in vLLM's configuration, before the model is loaded."""

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


def prepare(vllm_config: Any) -> None:
    """Check the settings, and have vLLM ask the model for positions.

    Raises ValueError for settings that cannot be served.
    """
    model_config = vllm_config.model_config
    config, multimodal = model_config.hf_config, model_config.multimodal_config
    settings = ServingSettings.parse(config.foveate)
    _check_engine(vllm_config)
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


def _check_engine(vllm_config: Any) -> None:
    """Raise ValueError for options of vLLM under which images come encoded, or the hooks of the
    vision encoder do not run or see the images of one process, and for those that were not tried.
    """
    options, compilation = (
        vllm_config.model_config.multimodal_config,
        vllm_config.compilation_config,
    )
    if not any(options.get_limit_per_prompt(kind) for kind in ("image", "video")):
        raise ValueError("foveate reduces images, and this engine was started without them")
    several = vllm_config.parallel_config.tensor_parallel_size > 1
    excluded = {
        "--enable-mm-embeds": options.enable_mm_embeds,
        "--video-pruning-rate": options.video_pruning_rate,
        "compile_mm_encoder": compilation.compile_mm_encoder,
        "cudagraph_mm_encoder": compilation.cudagraph_mm_encoder,
        "--mm-encoder-tp-mode data": several and options.mm_encoder_tp_mode == "data",
        "speculative decoding": vllm_config.speculative_config is not None,
    }
    for option, given in excluded.items():
        if given:
            raise ValueError(f"foveate cannot be combined with {option}: leave one of them out")
