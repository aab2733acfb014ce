"""A vLLM plugin: the pre-LLM part of a method, between the vision encoder and the language model.

    vllm serve llava-hf/llava-1.5-7b-hf --hf-overrides '{"foveate": {"method": "duet", "keep": 64}}'

vLLM calls `register` in each of its processes. Without the key `foveate` in the model's
configuration, vLLM behaves as if the plugin were not installed. docs/serving.md says more.
"""

from __future__ import annotations

from typing import Any

VERSIONS = ((0, 31), (0, 33))
"""vLLM from the first, and before the second."""

# vLLM's name of an architecture, and the class of `models` that replaces it.
ARCHITECTURES = {
    "LlavaForConditionalGeneration": "ReducedLlava",
    "LlavaNextForConditionalGeneration": "ReducedLlavaNext",
    "InternVLForConditionalGeneration": "ReducedInternVL",
    "Qwen2VLForConditionalGeneration": "ReducedQwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "ReducedQwen25VL",
    "Qwen3VLForConditionalGeneration": "ReducedQwen3VL",
}


def register() -> None:
    """Entry point `vllm.general_plugins`. May be called several times in a process."""
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    for architecture, name in ARCHITECTURES.items():
        if _refusal(architecture) is None:
            ModelRegistry.register_model(architecture, f"compress.serving.vllm.models:{name}")
    # Others too: settings for a model that is not served are refused, not passed over.
    for architecture in ModelRegistry.get_supported_archs():
        before = MODELS_CONFIG_MAP.get(architecture)
        if not getattr(before, "foveate", False):
            MODELS_CONFIG_MAP[architecture] = _config_hook(architecture, before)


def _config_hook(architecture: str, before: Any) -> Any:
    """A configuration hook that checks the settings, after the one that vLLM has itself."""
    from vllm.model_executor.models.config import VerifyAndUpdateConfig

    base: Any = before or VerifyAndUpdateConfig

    class FoveateConfig(base):
        foveate = True

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            base.verify_and_update_config(vllm_config)
            if getattr(vllm_config.model_config.hf_config, "foveate", None) is not None:
                if (refusal := _refusal(architecture)) is not None:
                    raise ValueError(refusal)
                from compress.serving.vllm.configuration import prepare

                prepare(vllm_config)

    return FoveateConfig


def _refusal(architecture: str) -> str | None:
    """Why a model cannot be served with the installed version of vLLM; None if it can."""
    from vllm.version import __version__, __version_tuple__

    if not VERSIONS[0] <= __version_tuple__[:2] < VERSIONS[1]:
        low, high = (".".join(map(str, part)) for part in VERSIONS)
        return f"foveate is written for vLLM >= {low}, < {high}; found {__version__}"
    if architecture not in ARCHITECTURES:
        return (
            f"foveate does not serve {architecture}: expected one of {', '.join(ARCHITECTURES)}, "
            "or a model without the key 'foveate'"
        )
    return None
