"""The configuration of a Foveate model: language model, experts, fusion."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from vlm.experts import ExpertConfig, ExpertError, get_family
from vlm.fusion import Block, FusionConfig, Pair, image_blocks, report


class FoveateConfig(PreTrainedConfig):
    """The configuration of a model, saved with its checkpoint.

    text_config: of the language model, any causal LM of transformers, with its own RoPE scaling.
    experts: one `vlm.experts.ExpertConfig` (or its dict) each, in the order of the token blocks.
    fusion: a `vlm.fusion.FusionConfig` (or its dict).
    image_token_id, video_token_id: the placeholders, which must be in the vocabulary.
    lm_head_bias, logit_scale, logit_softcap: what the head of the language model has besides one
        matrix: a bias, a factor, a soft cap tanh(x / cap) * cap. `assemble` reads them off it.
    """

    model_type = "foveate"
    attribute_map = {"image_token_index": "image_token_id"}  # noqa: RUF012
    sub_configs_defaults = {  # noqa: RUF012
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama")
    }

    text_config: dict[str, Any] | PreTrainedConfig | None = None
    experts: list[Any] | None = None
    fusion: Any = None
    image_token_id: int = 32000
    video_token_id: int | None = None
    lm_head_bias: bool = False
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        experts = [ExpertConfig.of(expert) for expert in self.experts or []]
        names = [expert.name for expert in experts]
        if len(set(names)) < len(names):
            raise ExpertError(f"experts are named {names}: expected each name once")
        # Plain dicts, so that the configuration can be written to JSON and read back.
        self.experts = [expert.to_dict() for expert in experts]
        self.fusion = FusionConfig.of(self.fusion).to_dict()
        super().__post_init__(**kwargs)
        text = self.text_config
        if isinstance(text, PreTrainedConfig) and getattr(text, "tie_word_embeddings", False):
            self.tie_word_embeddings = True

    @property
    def expert_configs(self) -> list[ExpertConfig]:
        """The experts' configurations as objects."""
        return [ExpertConfig.of(expert) for expert in self.experts or []]

    @property
    def fusion_settings(self) -> FusionConfig:
        """The fusion's configuration as an object."""
        return FusionConfig.of(self.fusion)

    def token_grids(self) -> dict[str, Pair]:
        """The (rows, columns) of tokens of one view of a picture, by expert."""
        fusion = self.fusion_settings
        return {
            expert.name: fusion.grid(
                expert.name, get_family(expert.family).grid(expert.encoder, expert.image_size)
            )
            for expert in self.expert_configs
        }

    def report(self, blocks: tuple[Block, ...] | None = None) -> list[dict[str, Any]]:
        """Tokens and positions of each expert's blocks, by default of an image without tiles."""
        return report(blocks or image_blocks(self.token_grids(), {}), self.fusion_settings)
