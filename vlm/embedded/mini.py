"""The embedded model: small enough to ship with the package, and trained to answer from images.

`build` makes it untrained, with its processor; `train.mini` trains it; `vlm.load("mini")` loads the
checkpoint in this package, `vlm.load("mini-1d")` its sibling, a stock LLaVA. A CLIP encoder sees a
picture of 96 px, or a frame of a video, as 12 x 12 tokens. A small language model answers, with
positions on three axes (M-RoPE, as Qwen2.5-VL) or on one.
"""

from __future__ import annotations

import string
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
)

from vlm.embedded.scenes import COLOURS, IMAGE_SIZE, SHAPES
from vlm.experts import expert_config
from vlm.fusion import FusionConfig
from vlm.model import FoveateConfig, FoveateForConditionalGeneration, FoveateProcessor

Axes = Literal["mrope", "1d"]
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
WIDTH, HEAD, LAYERS = 128, 32, 4  # of encoder and language model
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<video>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>\n{% elif part['type'] == 'video' %} <video>\n"
    "{% else %} {{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %} ASSISTANT:{% for part in message['content'] %} {{ part['text'] }}{% endfor %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def _words() -> list[str]:
    words = "USER ASSISTANT What Where How Which In Describe colour shape is are the there say does"
    words += " sign many object objects row column picture video of in or left right above below"
    words += (
        " first last before after dot frame seen with option letter from given choices directly"
    )
    plurals = [f"{s}es" if s == "cross" else f"{s}s" for s in SHAPES]
    return [*words.split(), *COLOURS, *SHAPES, *plurals]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the scenes as whole tokens, and every printable character for other text."""
    pieces = [(token, 0.0) for token in SPECIAL_TOKENS]
    pieces += [(f"▁{word}", -1.0) for word in dict.fromkeys(_words())]
    # Both characters of a sign use the same tokens, so what is learned of one holds for the other.
    pieces += [(f"▁{character}", -4.0) for character in string.ascii_lowercase + string.digits]
    alone = [*string.ascii_letters, *string.digits, *string.punctuation]
    pieces += [(character, -5.0) for character in ["▁", "\n", *alone]]
    pieces += [("Answer", -1.0)]  # at the beginning of a line
    unk = SPECIAL_TOKENS.index("<unk>")
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=unk, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_config(axes: Axes = "mrope") -> FoveateConfig:
    """The architecture.

    axes: "mrope" for a language model with positions (t, h, w), "1d" for one whose visual tokens
        are numbered one by one, as in LLaVA (`vlm.model.to_llava` makes a stock LLaVA of it).
    """
    encoder = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 32,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=WIDTH,
    )
    vocabulary = len(build_tokenizer())
    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": WIDTH // HEAD,
        "num_key_value_heads": WIDTH // HEAD,
        "max_position_embeddings": 4096,
        # With the default of 0.02, attention from a word to one visual token is not learned.
        "initializer_range": 0.08,
        "pad_token_id": SPECIAL_TOKENS.index("<pad>"),
        "bos_token_id": SPECIAL_TOKENS.index("<s>"),
        "eos_token_id": SPECIAL_TOKENS.index("</s>"),
        "tie_word_embeddings": False,
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    text: LlamaConfig | Qwen2_5_VLTextConfig
    scheme: dict[str, Any] = {}
    if axes == "mrope":
        # Multiples of 4, so that a merged token can carry 4 positions (PPE).
        sections = [HEAD // 8, HEAD // 8, HEAD // 4]
        text = Qwen2_5_VLTextConfig(**shared, rope_parameters={**rope, "mrope_section": sections})
        scheme = {"clip": {"type": "MRoPE"}}
    else:
        # With biases, like the model with M-RoPE, whose weights it can start from.
        text = LlamaConfig(**shared, rope_parameters=rope, attention_bias=True)
    seen = {"layer": -1, "scoring_layer": -1, "fit": "squash", "frozen": False}
    expert = expert_config("clip", "clip", encoder, **seen)
    return FoveateConfig(
        text_config=text,
        experts=[expert],
        fusion=FusionConfig(scheme=scheme),
        image_token_id=SPECIAL_TOKENS.index("<image>"),
        video_token_id=SPECIAL_TOKENS.index("<video>"),
    )


def build_processor(config: FoveateConfig | None = None) -> FoveateProcessor:
    """The processor: 96 px pictures, placeholders, the chat template."""
    config = config or build_config()
    return FoveateProcessor.for_model(config, build_tokenizer(), chat_template=CHAT_TEMPLATE)


def build_stock_processor() -> LlavaProcessor:
    """The processor of the 1-D sibling as a stock LLaVA."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessor(size=size, do_center_crop=False, do_convert_rgb=True),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build(
    seed: int = 0, axes: Axes = "mrope"
) -> tuple[FoveateForConditionalGeneration, FoveateProcessor]:
    """An untrained embedded model and its processor, the same for the same seed."""
    config = build_config(axes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = FoveateForConditionalGeneration(config)
    return model.eval(), build_processor(config)
