"""The judge is put together from converted parts and what was learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Dinov2Config, Dinov2Model

from compress import compress
from tests.vlm.embedded.small.files import even, llama_file
from vlm.embedded.small import PartsError, assemble_parts, change, load
from vlm.embedded.small.convert import llama_from_gguf


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    llama_file(folder / "x.gguf", layers=4)
    model, tokenizer = llama_from_gguf(folder / "x.gguf")
    model.save_pretrained(folder / "language-model")
    tokenizer.save_pretrained(folder / "language-model")
    config = Dinov2Config(
        hidden_size=64, num_hidden_layers=11, num_attention_heads=1, image_size=28, patch_size=14
    )
    Dinov2Model._from_config(config).save_pretrained(folder / "encoder")
    (folder / "complete").write_text("")
    return folder


def test_what_was_learned_is_laid_over_the_parts(parts: Path, tmp_path: Path) -> None:
    before, _ = assemble_parts(parts)
    state = {name: tensor.detach() for name, tensor in before.model.named_parameters()}
    names = [name for name in state if name.startswith(("fusion.", "language_model.layers.1."))]
    # A change of rank 1, and of one sign in vectors.
    after = {name: state[name] + 0.25 for name in names}
    old = {name: state[name] for name in names if name.startswith("language_model.")}
    with pytest.raises(PartsError, match="is missing"):
        load(parts, tmp_path / "c.safetensors")
    change.write(tmp_path / "c.safetensors", old, after, even(old), {})
    model, processor = load(parts, tmp_path / "c.safetensors")
    found = dict(model.model.named_parameters())
    for name, tensor in state.items():
        wanted = after.get(name, tensor)
        assert torch.allclose(found[name], wanted, atol=0.01), name
    text = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "ab"}]}],
        add_generation_prompt=True,
    )
    inputs = processor(images=Image.new("RGB", (50, 40)), text=text)
    with compress(model, "duet", budget=64) as compression:
        model.generate(**inputs, max_new_tokens=2)
        assert compression.report().dense.layers == (256,) * 4
