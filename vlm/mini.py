"""The embedded model: a LLaVA of stock transformers classes, small enough to ship.

`build` makes it untrained, with its processor; `train.mini` trains it; `vlm.load("mini")` loads the
checkpoint that lies in this package. A CLIP tower of 4 layers sees a 96 px picture as 12 x 12
cells, and a Llama of 4 layers answers about it.
"""

from __future__ import annotations

import string

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vlm.scenes import CATEGORIES, COLOURS, IMAGE_SIZE, SHAPES

PATCH_SIZE = 8
SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER:{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image>\n{% else %} {{ part['text'] }}{% endif %}{% endfor %}"
    "{% else %} ASSISTANT:{% for part in message['content'] %} {{ part['text'] }}{% endfor %}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)


def _words() -> list[str]:
    words = (
        "USER ASSISTANT What Where How Describe colour shape is are the there say does sign many"
    )
    words += (
        " object objects row column picture of in left right above below first last which Which"
    )
    plurals = [f"{s}es" if s == "cross" else f"{s}s" for s in SHAPES]
    return [*words.split(), *COLOURS, *SHAPES, *plurals, *CATEGORIES[4:]]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The words of the scenes as whole tokens, and every printable character for other text."""
    pieces = [(token, 0.0) for token in SPECIAL_TOKENS]
    pieces += [(f"▁{word}", -1.0) for word in dict.fromkeys(_words())]
    alone = string.ascii_letters + string.digits
    pieces += [(f"▁{character}", -4.0) for character in alone]
    pieces += [(character, -5.0) for character in ["▁", "\n", *alone, *string.punctuation]]
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
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def build_processor() -> LlavaProcessor:
    """The processor of the embedded model: 96 px pictures, placeholders, the chat template."""
    images = CLIPImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_center_crop=False, do_convert_rgb=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def build_config() -> LlavaConfig:
    """The configuration of the embedded model: about 2 million parameters."""
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=128,
    )
    tokenizer = build_tokenizer()
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        # The look-up of one cell by one word is not learned from the default 0.02.
        initializer_range=0.08,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=SPECIAL_TOKENS.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )


def build(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """An untrained embedded model and its processor, the same for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(build_config())
    return model.eval(), build_processor()
