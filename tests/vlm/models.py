"""Tiny random models with a tokenizer and a processor, for the tests of the model."""

from __future__ import annotations

import numpy as np
import torch
import transformers as hf
from PIL import Image

from tests.vlm import encoders
from vlm.embedded import mini
from vlm.model import FoveateProcessor, assemble

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def text_config(kind=hf.LlamaConfig, **settings):
    """A tiny causal LM's configuration with the embedded tokenizer's vocabulary."""
    return kind(**{**TEXT, "vocab_size": len(mini.build_tokenizer()), **settings})


def build(experts=("clip",), fusion=None, text=None, template="v1", **settings):
    """(model, processor): random, float32, in evaluation mode.

    experts: family names or Expert objects. settings: of every expert given by name.
    """
    tokenizer = mini.build_tokenizer()
    causal = hf.AutoModelForCausalLM.from_config(text or text_config())
    made = [encoders.expert(e, **settings) if isinstance(e, str) else e for e in experts]
    model = assemble(encoders.randomise(causal, std=0.25), made, tokenizer, fusion)
    encoders.randomise(model.model.fusion, seed=1, std=0.3)
    model.generation_config.pad_token_id = 0
    return model, FoveateProcessor.for_model(model.config, tokenizer, template=template)


def picture(seed=0, size=(40, 30)):
    """A noisy picture of (width, height)."""
    noise = np.random.RandomState(seed).randint(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def logits(model, inputs, **kwargs):
    with torch.no_grad():
        return model(**inputs, **kwargs).logits


def stock_llava():
    """(model, processor): a stock LLaVA of the embedded model's size and vocabulary."""
    ours = mini.build_config("1d")
    (expert,) = ours.expert_configs
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig.from_dict(expert.encoder),
        text_config=ours.text_config,
        image_token_index=ours.image_token_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=mini.GRID**2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return hf.LlavaForConditionalGeneration(config).eval(), mini.build_stock_processor()


PAIR = ("clip", "sam")
WINDOWS = {"window": {"sam": 2}}
ASK = "USER: <image>\nWhat shape ASSISTANT:"


def batch(processor, texts=(ASK, "and <image> is <image>"), **kwargs):
    """Inputs of some prompts, each picture of another size."""
    count = sum(text.count("<image>") for text in texts)
    images = [picture(seed, (40 + 7 * seed, 30)) for seed in range(count)]
    return processor(images=images or None, text=list(texts), **kwargs)
