"""The whole model: experts, fusion, language model and its head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin
from transformers.utils.generic import can_return_tuple

from vlm.decoder import CACHE, cache_of
from vlm.model.backbone import FoveateModel, FoveatePreTrainedModel, MmOutputs
from vlm.model.configuration import FoveateConfig
from vlm.model.features import FoveateFeatures, FoveateOutput, Pixels, Tiles


class FoveateForConditionalGeneration(FoveatePreTrainedModel, GenerationMixin):
    """A vision-language model of one or several experts, a fusion and any causal LM.

    model, processor = assemble(language_model, experts=[load_expert(...)])      # vlm.model
    model = FoveateForConditionalGeneration.from_pretrained(path)
    model.generate(**processor(images=image, text="<image>\nWhat is it?"))
    """

    def __init__(self, config: FoveateConfig) -> None:
        super().__init__(config)
        self.model = FoveateModel(config)
        text: Any = config.text_config
        self.lm_head = nn.Linear(text.hidden_size, text.vocab_size, bias=config.lm_head_bias)
        embeddings = self.model.get_input_embeddings()
        names = [n for n, m in self.model.language_model.named_modules() if m is embeddings]
        self._tied_weights_keys = {"lm_head.weight": f"model.language_model.{names[0]}.weight"}
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_image_features(
        self, pixel_values: Pixels, *args: Any, **kwargs: Any
    ) -> FoveateFeatures:
        """See `FoveateModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, *args, **kwargs)

    def get_video_features(
        self, pixel_values_videos: Pixels, *args: Any, **kwargs: Any
    ) -> FoveateFeatures:
        """See `FoveateModel.get_video_features`."""
        return self.model.get_video_features(pixel_values_videos, *args, **kwargs)

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
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        mm_encoder_outputs: MmOutputs | None = None,
        **kwargs: Any,
    ) -> FoveateOutput:
        """As transformers' LlavaForConditionalGeneration.

        labels: (B, S) int64, -100 for none, which placeholders always have.
        """
        if past_key_values is not None:
            kwargs[CACHE] = past_key_values
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            image_tiles=image_tiles,
            pixel_values_videos=pixel_values_videos,
            video_frames=video_frames,
            video_times=video_times,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        keep = logits_to_keep
        rows = slice(-keep if keep else None, None) if isinstance(keep, int) else keep
        hidden = outputs.last_hidden_state[:, rows]
        logits = self.lm_head(hidden)
        if (scale := self.config.logit_scale) != 1:
            logits = logits * scale
        if cap := self.config.logit_softcap:
            logits = torch.tanh(logits / cap) * cap
        loss = None
        if labels is not None:
            vocab = self.lm_head.out_features
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=vocab, **kwargs)
        return FoveateOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=outputs.image_hidden_states,
            **{CACHE: cache_of(outputs)},
        )

    def _expand_multimodal_outputs(
        self, input_ids: Any, mm_encoder_output: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """As in transformers, for beams; blocks, saliency and keys are expanded with the tokens."""
        before = {k: list(v.pooler_output) for k, v in mm_encoder_output.items()}
        parent: Any = super()
        parent._expand_multimodal_outputs(input_ids, mm_encoder_output, *args, **kwargs)
        for modality, output in mm_encoder_output.items():
            index = {id(tokens): place for place, tokens in enumerate(before[modality])}
            order = [index[id(tokens)] for tokens in output.pooler_output]
            for name in ("blocks", "saliency", "cell_keys"):
                if (items := getattr(output, name, None)) is not None:
                    setattr(output, name, [items[place] for place in order])
        return mm_encoder_output
