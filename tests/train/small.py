"""A tiny base model on disk, and a data set of scenes in LLaVA's form."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from train.recipe import Recipe
from train.recipe_files import load_recipe
from vlm.embedded import mini
from vlm.embedded.scenes import draw, make_scene, questions

SIDE, PATCH = 32, 8
TOKENS = (SIDE // PATCH) ** 2


@cache
def processor() -> LlavaProcessor:
    """The embedded model's, for pictures of 32 px: 16 visual tokens each."""
    images = CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, do_convert_rgb=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=mini.build_tokenizer(),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=mini.CHAT_TEMPLATE,
        image_token="<image>",
        num_additional_image_tokens=1,
    )


def model(seed: int = 0, depth: int = 4) -> LlavaForConditionalGeneration:
    """40,000 parameters, four decoder layers."""
    tokenizer = processor().tokenizer
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=SIDE,
            patch_size=PATCH,
            initializer_range=0.2,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=depth,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            initializer_range=0.08,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        image_seq_length=TOKENS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlavaForConditionalGeneration(config)


def write_base(folder: Path) -> Path:
    """Save the model and its processor as a checkpoint."""
    model().save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def conversation(seed: int, turns: int = 2, image: bool = True) -> dict[str, Any]:
    """One scene's questions in LLaVA's form."""
    asked = questions(make_scene(seed), np.random.default_rng(seed))[:turns]
    talk = []
    for number, question in enumerate(asked):
        place = "<image>\n" if image and number == 0 else ""
        talk += [
            {"from": "human", "value": place + question.text},
            {"from": "gpt", "value": question.answer},
        ]
    record: dict[str, Any] = {"id": f"scene-{seed}", "conversations": talk}
    return record | {"image": f"{seed}.png"} if image else record


def write_data(folder: Path, count: int = 8, text_every: int = 0) -> tuple[Path, Path]:
    """(data.json, media folder) of `count` scenes; every `text_every`-th has no image."""
    media = folder / "media"
    media.mkdir(parents=True, exist_ok=True)
    records = []
    for seed in range(count):
        image = not (text_every and seed % text_every == 0)
        records.append(conversation(seed, turns=1 + seed % 3, image=image))
        if image:
            draw(make_scene(seed), SIDE).save(media / f"{seed}.png")
    path = folder / "data.json"
    path.write_text(json.dumps(records, indent=1))
    return path, media


def recipe(folder: Path, *overrides: str, count: int = 8, text_every: int = 0) -> Recipe:
    """The recipe `mini` on this data and base, three steps of 4 samples."""
    base = folder / "base"
    if not base.is_dir():
        write_base(base)
    data, media = write_data(folder, count, text_every)
    return load_recipe(
        "mini",
        [
            f"model={base}",
            f"output={folder / 'out'}",
            f"data.files=[{data}]",
            f"data.media={media}",
            "optimizer.batch=4",
            "optimizer.micro_batch=2",
            "optimizer.steps=3",
            "log.every=1",
            *overrides,
        ],
    )


def losses(facts: dict[str, Any]) -> list[float]:
    """The training losses of a run, from its report."""
    return [loss for _, loss in facts["loss"]]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run saved in a folder."""
    return load_file(folder / "model.safetensors")
