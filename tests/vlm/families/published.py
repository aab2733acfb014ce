"""Published configurations, scaled down.

Sizes (widths, depths, windows, resolutions) are small; everything else is what the configuration
classes of transformers have by default, which are those of the checkpoints that their
documentation names: patterns of layers, kinds of rotary embedding, shares of a head that turn,
grouped heads, feature layers, pinpoints, factors of pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

from tests.tiny.base import text

IMAGE = 5
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 112,
    "patch_size": 14,
}
CLIP = VISION | {"model_type": "clip_vision_model"}
SIGLIP = VISION | {"vision_use_head": False, "model_type": "siglip_vision_model"}
PACKED = {
    "depth": 3,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "out_hidden_size": 64,
}
SQUARE = {"height": 112, "width": 112}
PINPOINTS = [[112, 224], [224, 112], [224, 224], [336, 112], [112, 336]]
MROPE = {"rope_type": "default", "rope_theta": 1e6}
PIXELS = {"size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}}


@dataclass(frozen=True)
class Published:
    """checkpoint: whose configuration it is. text, vision, more: what of it is scaled down."""

    name: str
    checkpoint: str
    model: str
    processor: str
    text: Callable[[], dict[str, Any]]
    vision: dict[str, Any]
    options: dict[str, Any]
    more: dict[str, Any] = field(default_factory=dict)

    def build(self) -> Any:
        """The model, with random weights."""
        kind = self.model.removesuffix("ForConditionalGeneration")
        make = getattr(transformers, f"{kind}Config")
        config = make(
            text_config=self.text(),
            vision_config=dict(self.vision),
            image_token_id=IMAGE,
            **self.more,
        )
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = getattr(transformers, self.model)(config).eval()
        model.generation_config.eos_token_id = None
        return model


def decoder(kind: str, **more: Any) -> Callable[[], dict[str, Any]]:
    """A text configuration of a model type: 8 layers, four query heads to a key head."""

    def make() -> dict[str, Any]:
        sizes = text(64, 8, 4, num_key_value_heads=1, initializer_range=0.1)
        return sizes | {"model_type": kind} | more

    return make


QWEN3_5 = decoder("qwen3_5_text", head_dim=64, linear_num_key_heads=2, linear_num_value_heads=4,
    linear_key_head_dim=8, linear_value_head_dim=8,
    rope_parameters={"rope_type": "default", "rope_theta": 1e7,
         "mrope_section": [3, 3, 2], "mrope_interleaved": True,
         "partial_rotary_factor": 0.25})  # fmt: skip

PUBLISHED = (
    Published(
        "gemma3", "google/gemma-3-4b", "Gemma3ForConditionalGeneration", "Gemma3ImageProcessor",
        decoder("gemma3_text", head_dim=32, sliding_window=32, num_hidden_layers=7,
                query_pre_attn_scalar=32),
        SIGLIP, {"size": SQUARE}, {"mm_tokens_per_image": 16},
    ),
    Published(
        "qwen3_5", "Qwen/Qwen3.5-9B", "Qwen3_5ForConditionalGeneration", "Qwen2VLImageProcessor",
        QWEN3_5,
        PACKED | {"patch_size": 14, "num_position_embeddings": 64}, PIXELS,
    ),
    Published(
        "glm4v", "zai-org/GLM-4.1V-9B-Thinking", "Glm4vForConditionalGeneration",
        "Glm4vImageProcessor",
        decoder("glm4v_text",
                rope_parameters={"rope_type": "default", "rope_theta": 1e4,
                                 "mrope_section": [1, 2, 1], "partial_rotary_factor": 0.5}),
        PACKED | {"patch_size": 14, "image_size": 112}, PIXELS,
    ),
    Published(
        "cohere2_vision", "CohereLabs/command-a-vision", "Cohere2VisionForConditionalGeneration",
        "Cohere2VisionImageProcessor", decoder("cohere2", sliding_window=32),
        SIGLIP, {"size": SQUARE, "max_patches": 4}, {"alignment_intermediate_size": 64},
    ),
    Published(
        "aya_vision", "CohereForAI/aya-vision-8b", "AyaVisionForConditionalGeneration",
        "GotOcr2ImageProcessor", decoder("cohere2", sliding_window=32),
        SIGLIP, {"size": SQUARE, "max_patches": 4},
    ),
    Published(
        "paligemma", "google/paligemma-3b", "PaliGemmaForConditionalGeneration",
        "SiglipImageProcessor", decoder("gemma", head_dim=16),
        SIGLIP, {"size": SQUARE}, {"projection_dim": 64, "hidden_size": 64},
    ),
    Published(
        "llava_next_video", "llava-hf/LLaVA-NeXT-Video-7B",
        "LlavaNextVideoForConditionalGeneration",
        "LlavaNextImageProcessor", decoder("llama"), CLIP,
        {"size": {"shortest_edge": 112}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS},
        {"image_grid_pinpoints": PINPOINTS},
    ),
    Published(
        "vipllava", "llava-hf/vip-llava-7b-hf", "VipLlavaForConditionalGeneration",
        "CLIPImageProcessor", decoder("llama"), CLIP | {"num_hidden_layers": 12},
        {"size": {"shortest_edge": 112}, "crop_size": SQUARE},
    ),
    Published(
        "idefics3", "HuggingFaceM4/Idefics3-8B-Llama3", "Idefics3ForConditionalGeneration",
        "Idefics3ImageProcessor", decoder("llama"), VISION,
        {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 112}},
    ),
    Published(
        "lighton_ocr", "lightonai/LightOnOCR-1B", "LightOnOcrForConditionalGeneration",
        "PixtralImageProcessor", decoder("qwen3", head_dim=16),
        VISION | {"model_type": "pixtral"},
        {"size": {"longest_edge": 112}, "patch_size": {"height": 28, "width": 28}},
    ),
    Published(
        "llava", "llava-hf/llava-1.5-7b-hf", "LlavaForConditionalGeneration",
        "CLIPImageProcessor", decoder("llama"), CLIP,
        {"size": {"shortest_edge": 112}, "crop_size": SQUARE},
    ),
    Published(
        "llava_next", "llava-hf/llava-v1.6-mistral-7b-hf", "LlavaNextForConditionalGeneration",
        "LlavaNextImageProcessor", decoder("mistral", sliding_window=None), CLIP,
        {"size": {"shortest_edge": 112}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS},
        {"image_grid_pinpoints": PINPOINTS},
    ),
    Published(
        "llava_onevision", "llava-hf/llava-onevision-qwen2-7b-ov-hf",
        "LlavaOnevisionForConditionalGeneration", "LlavaOnevisionImageProcessor",
        decoder("qwen2"), SIGLIP,
        {"size": SQUARE, "image_grid_pinpoints": PINPOINTS},
        {"image_grid_pinpoints": PINPOINTS, "vision_aspect_ratio": "anyres_max_2"},
    ),
    Published(
        "qwen2_vl", "Qwen/Qwen2-VL-7B-Instruct", "Qwen2VLForConditionalGeneration",
        "Qwen2VLImageProcessor",
        decoder("qwen2_vl_text", rope_parameters=MROPE | {"mrope_section": [2, 3, 3]}),
        PACKED | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}, PIXELS,
    ),
    Published(
        "qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen2_5_VLForConditionalGeneration",
        "Qwen2VLImageProcessor",
        decoder("qwen2_5_vl_text", rope_parameters=MROPE | {"mrope_section": [2, 3, 3]}),
        PACKED | {"depth": 4, "fullatt_block_indexes": [1, 3]}, PIXELS,
    ),
    Published(
        "qwen3_vl", "Qwen/Qwen3-VL-4B-Instruct", "Qwen3VLForConditionalGeneration",
        "Qwen2VLImageProcessor",
        decoder("qwen3_vl_text", head_dim=16, rope_parameters=MROPE | {
            "mrope_section": [3, 3, 2], "mrope_interleaved": True}),
        PACKED | {"depth": 4, "patch_size": 14, "num_position_embeddings": 64,
                  "deepstack_visual_indexes": [0, 1, 2]}, PIXELS,
    ),
    Published(
        "internvl", "OpenGVLab/InternVL3-1B-hf", "InternVLForConditionalGeneration",
        "GotOcr2ImageProcessor",
        decoder("qwen2", rope_parameters={"rope_type": "dynamic", "factor": 2.0,
                                          "rope_theta": 1e6}, max_position_embeddings=64),
        VISION | {"image_size": [112, 112], "patch_size": [14, 14]},
        {"size": SQUARE, "max_patches": 4},
    ),
    Published(
        "smolvlm", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", "SmolVLMForConditionalGeneration",
        "SmolVLMImageProcessor", decoder("llama"), VISION,
        {"size": {"longest_edge": 224}, "max_image_size": {"longest_edge": 112}},
    ),
    Published(
        "mistral3", "mistralai/Mistral-Small-3.1-24B", "Mistral3ForConditionalGeneration",
        "PixtralImageProcessor",
        decoder("mistral", head_dim=32, sliding_window=None,
                rope_parameters={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6,
                                 "original_max_position_embeddings": 64}),
        VISION | {"model_type": "pixtral"},
        {"size": {"longest_edge": 112}, "patch_size": {"height": 28, "width": 28}},
    ),
    Published(
        "gemma4", "google/gemma-4-31b-it", "Gemma4ForConditionalGeneration",
        "Gemma4ImageProcessor",
        decoder("gemma4_text", head_dim=32, global_head_dim=64, sliding_window=32,
                use_bidirectional_attention="vision", attention_k_eq_v=True,
                num_global_key_value_heads=1, hidden_size_per_layer_input=0,
                num_hidden_layers=7, final_logit_softcapping=30.0),
        VISION | {"num_key_value_heads": 4, "head_dim": 8, "patch_size": 16,
                  "position_embedding_size": 256, "standardize": True},
        {"max_soft_tokens": 70},
    ),
    Published(
        "gemma4_small", "google/gemma-4-e2b-it", "Gemma4ForConditionalGeneration",
        "Gemma4ImageProcessor",
        decoder("gemma4_text", head_dim=32, global_head_dim=64, sliding_window=32,
                hidden_size_per_layer_input=16, vocab_size_per_layer_input=64,
                num_hidden_layers=14, num_kv_shared_layers=6, use_double_wide_mlp=True,
                final_logit_softcapping=30.0),
        VISION | {"num_key_value_heads": 4, "head_dim": 8, "patch_size": 16,
                  "position_embedding_size": 256},
        {"max_soft_tokens": 70},
    ),
    Published(
        "lfm2_vl", "LiquidAI/LFM2-VL-1.6B", "Lfm2VlForConditionalGeneration",
        "Lfm2VlImageProcessor",
        decoder("lfm2", full_attn_idxs=[2, 5]),
        VISION | {"model_type": "siglip2_vision_model", "vision_use_head": False,
                  "num_patches": 64, "patch_size": 16},
        {"tile_size": 128, "min_image_tokens": 4, "max_image_tokens": 16, "max_num_patches": 64,
         "do_convert_rgb": True},
        {"projector_hidden_size": 64},
    ),
    Published(
        "deepseek_vl", "deepseek-community/deepseek-vl-1.3b-chat",
        "DeepseekVLForConditionalGeneration", "DeepseekVLImageProcessor",
        decoder("llama"), SIGLIP, {"size": SQUARE, "do_convert_rgb": True},
    ),
    Published(
        "ovis2", "thisisiron/Ovis2-2B-hf", "Ovis2ForConditionalGeneration", "Ovis2ImageProcessor",
        decoder("qwen2"), VISION | {"hidden_stride": 2, "vocab_size": 64},
        {"size": SQUARE, "max_patches": 4},
        {"visual_indicator_token_ids": [58, 59, 60, 61, 62], "hidden_size": 64, "vocab_size": 64},
    ),
    Published(
        "video_llama_3", "lkhl/VideoLLaMA3-2B-Image-HF", "VideoLlama3ForConditionalGeneration",
        "VideoLlama3ImageProcessor", decoder("qwen2"),
        {k: v for k, v in VISION.items() if k != "image_size"},
        {"size": {"shortest_edge": 28 * 28, "longest_edge": 112 * 112}},
    ),
    Published(
        "paddleocr_vl", "PaddlePaddle/PaddleOCR-VL", "PaddleOCRVLForConditionalGeneration",
        "PaddleOCRVLImageProcessor",
        decoder("paddleocr_vl_text", head_dim=16,
                rope_parameters=MROPE | {"mrope_section": [2, 3, 3]}),
        VISION, PIXELS,
    ),
    Published(
        "ernie4_5_vl_moe", "baidu/ERNIE-4.5-VL-28B-A3B-PT",
        "Ernie4_5_VLMoeForConditionalGeneration", "Ernie4_5_VLMoeImageProcessor",
        decoder("ernie4_5_vl_moe_text", moe_intermediate_size=[16, 8], moe_num_experts=4, moe_k=2,
                rope_parameters=MROPE | {"mrope_section": [3, 3, 2]}),
        {k: v for k, v in PACKED.items() if k != "out_hidden_size"}, PIXELS,
    ),
    Published(
        "llama4", "meta-llama/Llama-4-Scout-17B-16E", "Llama4ForConditionalGeneration",
        "Llama4ImageProcessor",
        decoder("llama4_text", head_dim=16, intermediate_size_mlp=48, num_local_experts=4,
                attention_chunk_size=32,
                rope_parameters={"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "rope_theta": 5e5,
                                 "original_max_position_embeddings": 64}),
        VISION | {"intermediate_size": 128, "projector_input_dim": 32, "projector_output_dim": 32,
                  "vision_output_dim": 32, "rope_parameters": MROPE},
        {"size": SQUARE, "max_patches": 4},
    ),
    Published(
        "molmo2", "allenai/Molmo2-8B", "Molmo2ForConditionalGeneration", "Molmo2ImageProcessor",
        decoder("molmo2_text", head_dim=16, rope_parameters=MROPE),
        VISION | {"num_key_value_heads": 4, "head_dim": 8, "image_size": [112, 112]},
        {"size": SQUARE, "max_crops": 4, "overlap_margins": [1, 1]},
        {"adapter_config": {"vision_feature_layer": [2, 1], "hidden_size": 32, "head_dim": 8,
                            "num_attention_heads": 4, "num_key_value_heads": 4,
                            "intermediate_size": 48, "text_hidden_size": 64}},
    ),
    Published(
        "granite4_vision", "ibm-granite/granite-4.0-3b-vision",
        "Granite4VisionForConditionalGeneration", "LlavaNextImageProcessor",
        decoder("granite4_vision_text", embedding_multiplier=12.0, attention_multiplier=0.1,
                logits_scaling=10.0, residual_multiplier=0.22, rope_parameters=MROPE),
        SIGLIP | {"hidden_size": 64},
        {"size": {"shortest_edge": 112}, "crop_size": SQUARE, "image_grid_pinpoints": PINPOINTS},
        {"image_grid_pinpoints": PINPOINTS, "downsample_rate": "4/8",
         "vision_feature_select_strategy": "full", "spatial_target_layers": [4, 5, 6, 7],
         "deepstack_layer_map": [[-3, 3], [-2, 2], [-2, 1], [-1, 0]]},
    ),
    Published(
        "minicpmv4_6", "openbmb/MiniCPM-V-4.6", "MiniCPMV4_6ForConditionalGeneration",
        "MiniCPMV4_6ImageProcessor", QWEN3_5, VISION,
        {"scale_resolution": 112, "patch_size": 14, "max_slice_nums": 4},
        {"insert_layer_id": 1, "video_token_id": 4},
    ),
    Published(
        "fast_vlm", "KamilaMila/FastVLM-7B", "FastVlmForConditionalGeneration",
        "CLIPImageProcessor", decoder("qwen2"),
        {"model_type": "timm_wrapper", "architecture": "fastvit_mci3", "do_pooling": True,
         "global_pool": "avg", "hidden_size": 128,
         "model_args": {"inference_mode": True, "layers": (1, 1, 1, 1, 2),
                        "embed_dims": (8, 8, 16, 32, 64)}},
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 256, "width": 256}},
    ),
    Published(
        "perception_lm", "facebook/Perception-LM-1B", "PerceptionLMForConditionalGeneration",
        "PerceptionLMImageProcessor",
        decoder("llama", rope_parameters={"rope_type": "llama3", "factor": 32.0,
                                          "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                          "rope_theta": 5e5,
                                          "original_max_position_embeddings": 64}),
        {"model_type": "timm_wrapper", "architecture": "vit_pe_lang_large_patch14_448",
         "do_pooling": False,
         "model_args": {"embed_dim": 32, "depth": 3, "num_heads": 4, "img_size": (112, 112),
                        "global_pool": "", "use_post_transformer_norm": False}},
        {"tile_size": 112, "max_num_tiles": 4},
        {"projector_pooling_ratio": 2},
    ),
)  # fmt: skip
