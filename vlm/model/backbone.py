"""Experts, fusion and language model, called as stock LLaVA is.

`model.language_model`, `lm_head`, `get_image_features`, `get_placeholder_mask` and
`mm_encoder_outputs` have the places and meanings of transformers' LlavaForConditionalGeneration, so
code that attaches hooks to a LLaVA works on this model too.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, Cache, PreTrainedConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils.generic import can_return_tuple

from positions import Plan
from vlm.decoder import CACHE, cache_of
from vlm.experts import FeatureCache, build_expert
from vlm.fusion import Block, Fusion
from vlm.model import positions as planning
from vlm.model.configuration import FoveateConfig
from vlm.model.features import (
    FoveateFeatures,
    FoveateModelOutput,
    Pixels,
    Tiles,
    blocks_of_images,
    blocks_of_videos,
    by_expert,
    encode,
    in_order,
)
from vlm.model.loading import load_strictly

MmOutputs = dict[str, Any]


class FoveatePreTrainedModel(PreTrainedModel):
    """Loading and saving; see `FoveateForConditionalGeneration`."""

    config: FoveateConfig
    config_class = FoveateConfig
    base_model_prefix = "model"
    input_modalities = ["image", "video", "text"]  # noqa: RUF012
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *args: Any, **kwargs: Any
    ) -> Any:
        """As for any transformers model, but only from safetensors, and only if all weights fit.

        strict: (keyword) False to accept missing and unexpected weights with a warning.
        Raises CheckpointError for missing, unexpected or misshapen weights, pickle files, custom
        code in the checkpoint, and checkpoints of other models.
        """
        return load_strictly(super().from_pretrained, pretrained_model_name_or_path, args, kwargs)


class FoveateModel(FoveatePreTrainedModel):
    """Experts, fusion and language model, without the language model's head.

    feature_cache: a `FeatureCache` for the frozen experts, if features are to be kept on disk.
    visual_scores: whether features come with keys and saliency by default.
    """

    feature_cache: FeatureCache | None = None
    visual_scores: bool = False

    def __init__(self, config: FoveateConfig) -> None:
        super().__init__(config)
        experts = {expert.name: build_expert(expert) for expert in config.expert_configs}
        if not experts:
            raise ValueError("config.experts is empty: expected one vision encoder or more")
        if not isinstance(config.text_config, PreTrainedConfig):
            raise TypeError("config.text_config: expected the configuration of a language model")
        self.experts = nn.ModuleDict(experts)
        self.fusion = Fusion(
            config.fusion_settings,
            {name: expert.width for name, expert in experts.items()},
            config.text_config.hidden_size,
        )
        self.language_model = AutoModel.from_config(config.text_config)
        self.grids = {n: self.fusion.config.grid(n, expert.grid) for n, expert in experts.items()}
        if config.fusion_settings.scheme and not hasattr(self.language_model, "rotary_emb"):
            raise ValueError(
                f"{type(self.language_model).__name__} has no rotary embedding, so fusion.scheme "
                "cannot place its visual tokens: expected a language model with one, or no schemes"
            )
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @property
    def vision_tower(self) -> nn.Module:
        """The encoder of the only expert, under the name that stock LLaVA gives it."""
        if len(self.experts) != 1:
            raise AttributeError(f"there are {len(self.experts)} experts, see model.experts")
        expert: Any = next(iter(self.experts.values()))
        encoder: nn.Module = expert.encoder
        return encoder

    @property
    def multi_modal_projector(self) -> nn.Module:
        """The fusion, under the name that stock LLaVA gives its projector."""
        return self.fusion

    # --- pixels to tokens ---

    def get_image_features(
        self,
        pixel_values: Pixels,
        image_tiles: Tiles = None,
        visual_scores: bool | None = None,
        **kwargs: Any,
    ) -> FoveateFeatures:
        """Tokens of images.

        pixel_values: (views, 3, H, W) for each expert, by name (a bare tensor for one expert); the
            views of an image are the whole, then its tiles, if any, in raster order.
        image_tiles: (images, 2) int64 (down, across), by expert; one view an image by default.
        visual_scores: whether to return saliency and keys too (default `self.visual_scores`).
        """
        pixels = by_expert("pixel_values", pixel_values, list(self.experts))
        inputs = blocks_of_images(self.grids, pixels, image_tiles)
        return self._features(pixels, inputs, visual_scores)

    def get_video_features(
        self,
        pixel_values_videos: Pixels,
        video_frames: Tensor | None = None,
        video_times: Tensor | None = None,
        visual_scores: bool | None = None,
        **kwargs: Any,
    ) -> FoveateFeatures:
        """Tokens of videos: those of all frames from the first expert, then from the next.

        pixel_values_videos: (frames of all videos, 3, H, W), by expert.
        video_frames: (videos,) int64, frames of each; by default all are one video.
        video_times: (frames of all videos,) seconds.
        """
        pixels = by_expert("pixel_values_videos", pixel_values_videos, list(self.experts))
        inputs = blocks_of_videos(self.grids, pixels, video_frames, video_times)
        return self._features(pixels, inputs, visual_scores)

    def _features(
        self, pixels: dict[str, Tensor], inputs: list[tuple[Block, ...]], scores: bool | None
    ) -> FoveateFeatures:
        scores = self.visual_scores if scores is None else scores
        if self.feature_cache is not None and is_deepspeed_zero3_enabled():
            # A rank with cached features would skip calls that the other ranks wait for.
            raise ValueError("feature_cache cannot be used under ZeRO-3: expected stage 2 or none")
        views = encode(self.experts, self.fusion, pixels, scores, self.feature_cache)
        return in_order(views, self.grids, inputs, self.fusion.draw(len(inputs)))

    # --- tokens to words ---

    def get_placeholder_mask(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        image_features: Tensor,
        token_id: int | None = None,
    ) -> Tensor:
        """The mask of placeholders, (B, S, 1) bool. Checks that they are as many as the tokens.

        image_features: (tokens of all visual inputs, D). token_id: the image placeholder's by
        default. Raises ValueError if the numbers differ.
        """
        token_id = self.config.image_token_id if token_id is None else token_id
        if input_ids is None:
            raise ValueError("visual inputs need input_ids, whose placeholders say where they go")
        mask = input_ids == token_id
        count = int(mask.sum())
        if count != image_features.shape[0]:
            raise ValueError(
                f"input_ids hold {count} placeholders of token {token_id} and the visual inputs "
                f"have {image_features.shape[0]} tokens: expected equal numbers, as the processor "
                "makes them"
            )
        return mask[..., None].to(inputs_embeds.device)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Pixels | None = None,
        image_tiles: Tiles = None,
        pixel_values_videos: Pixels | None = None,
        video_frames: Tensor | None = None,
        video_times: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        mm_encoder_outputs: MmOutputs | None = None,
        **kwargs: Any,
    ) -> FoveateModelOutput:
        """As transformers' LlavaModel; see `get_image_features` for the visual inputs."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected input_ids or inputs_embeds, one of the two")
        outputs = dict(mm_encoder_outputs or {})
        if outputs and not (pixel_values is None and pixel_values_videos is None):
            raise ValueError("expected pixels or mm_encoder_outputs, one of the two")
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if not (pixel_values is None and pixel_values_videos is None):
            outputs = self._see(
                pixel_values, image_tiles, pixel_values_videos, video_frames, video_times
            )
        elif not outputs and self._keeps_ranks_alike:
            embeds = embeds + self._nothing(embeds.device).to(embeds)
        if past_key_values is None:
            past_key_values = kwargs.pop(CACHE, None)
        embeds = self._place(input_ids, embeds, outputs, past_key_values)
        inputs = planning.placed(outputs, self._placeholders)
        samples = planning.packed_samples(
            position_ids, attention_mask, past_key_values, kwargs.get("use_cache")
        )
        if samples is None:
            placement = planning.place(
                input_ids,
                embeds,
                position_ids,
                attention_mask,
                past_key_values,
                inputs,
                self.fusion,
            )
        else:
            placement = planning.place_packed(input_ids, samples, inputs, self.fusion)
        table = None if placement is None else placement[0]
        if placement is not None:
            rotary = self.language_model.rotary_emb
            kind = self.language_model.config._attn_implementation
            if planning.has_plan(rotary) and samples is not None and position_ids is not None:
                # A compression separates samples by text positions in front of the real ones.
                real = planning.real_positions(*placement)
                position_ids = torch.cat([position_ids[None].to(real), real.expand(3, -1, -1)])
                table = None
            elif planning.has_plan(rotary):
                # A compression makes its own plan from the positions that it is given.
                position_ids, table = planning.real_positions(*placement), None
            else:
                position_ids = placement[1]
            if samples is not None and table is not None:
                attention_mask = planning.packed_mask(samples, embeds.dtype, kind)
            elif samples is None and attention_mask is None and _length(past_key_values) == 0:
                # Without a mask, positions with gaps would be read as packed sequences.
                attention_mask = torch.ones(embeds.shape[:2], device=embeds.device).long()
        with planning.planned(getattr(self.language_model, "rotary_emb", None), table):
            decoded = self.language_model(
                attention_mask=attention_mask,
                position_ids=position_ids,
                inputs_embeds=embeds,
                **(kwargs | {CACHE: past_key_values}),
            )
        cache = cache_of(decoded)
        if placement is not None:
            planning.remember(cache, placement[0])
        images = outputs.get("image")
        return FoveateModelOutput(
            last_hidden_state=decoded.last_hidden_state,
            hidden_states=decoded.hidden_states,
            attentions=decoded.attentions,
            image_hidden_states=None if images is None else torch.cat(list(images.pooler_output)),
            **{CACHE: cache},
        )

    def _see(
        self,
        images: Pixels | None,
        tiles: Tiles,
        videos: Pixels | None,
        frames: Tensor | None,
        times: Tensor | None,
    ) -> dict[str, Any]:
        """The features of images and of videos."""
        if images is None or videos is None or not self._keeps_ranks_alike:
            seen = {}
            if images is not None:
                seen["image"] = self.get_image_features(images, image_tiles=tiles)
            if videos is not None:
                seen["video"] = self.get_video_features(
                    videos, video_frames=frames, video_times=times
                )
            return seen
        names = list(self.experts)
        pixels = by_expert("pixel_values", images, names)
        more = by_expert("pixel_values_videos", videos, names)
        inputs = blocks_of_images(self.grids, pixels, tiles)
        count = len(inputs)
        inputs = inputs + blocks_of_videos(self.grids, more, frames, times)
        pixels = {name: torch.cat([pixels[name], more[name]]) for name in names}
        features = self._features(pixels, inputs, None)
        return {"image": features.part(0, count), "video": features.part(count, len(inputs))}

    @property
    def _keeps_ranks_alike(self) -> bool:
        """Whether every rank must make the same module calls: each expert once a step.

        A compression, which replaces `get_image_features`, ensures that itself.
        """
        return self.training and _distributed() and "get_image_features" not in vars(self)

    def _nothing(self, device: torch.device) -> Tensor:
        """Zero, from every expert and every layer of the fusion."""
        pixels = {
            expert.name: torch.zeros(1, 3, *expert.image_size, device=device)
            for expert in self.config.expert_configs
        }
        views = encode(self.experts, self.fusion, pixels, False, None)
        return torch.stack([part["features"].sum() for part in views.values()]).sum() * 0

    def _place(
        self,
        input_ids: Tensor | None,
        embeds: Tensor,
        outputs: Mapping[str, Any],
        cache: Cache | None,
    ) -> Tensor:
        """The embeddings with visual tokens at their placeholders."""
        for modality, token_id in self._placeholders.items():
            output = outputs.get(modality)
            if output is not None:
                tokens = torch.cat(list(output.pooler_output)).to(embeds)
                mask = self.get_placeholder_mask(input_ids, embeds, tokens, token_id)
                embeds = embeds.masked_scatter(mask, tokens)
            elif input_ids is not None and _length(cache) == 0 and token_id is not None:
                count = int((input_ids == token_id).sum())
                if count:
                    raise ValueError(
                        f"input_ids hold {count} {modality} placeholders, but no {modality}s were "
                        "given"
                    )
        return embeds

    @property
    def _placeholders(self) -> dict[str, int | None]:
        return {"image": self.config.image_token_id, "video": self.config.video_token_id}

    def plan(self, input_ids: Tensor, mask: Tensor, outputs: Mapping[str, Any]) -> list[Plan]:
        """The positions of a batch, one plan a row, for code that plans instead of the model.

        input_ids: (B, S). mask: (B, S) bool, real tokens. outputs: as `mm_encoder_outputs`, from
        `get_image_features` ("image") and `get_video_features` ("video").
        """
        inputs = planning.placed(outputs, self._placeholders)
        return planning.plan_batch(input_ids, mask, inputs, self.fusion)


def _length(cache: Cache | None) -> int:
    return 0 if cache is None else int(cache.get_seq_length())


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
