"""A model of random weights to serve, its server and its client; for benches."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image


def build(folder: Path) -> str:
    """Write a LLaVA of random weights with a tokenizer of letters; returns its folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    vocabulary = {word: n for n, word in enumerate([*special, *map(str, range(1000))])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.chat_template = (
        "{% for part in messages[0]['content'] %}{% if part['type'] == 'text' %} {{ part['text'] }}"
        "{% else %} <image>{% endif %}{% endfor %} 1"
    )
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    config = LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 256,
            "intermediate_size": 1024,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": 336,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(vocabulary),
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "num_hidden_layers": 12,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "max_position_embeddings": 4096,
        },
        image_token_index=special.index("<image>"),
    )
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    _old_names(folder / "model.safetensors")
    return str(folder)


def _old_names(path: Path) -> None:
    """Names of the vision encoder's weights that vLLM reads, whatever transformers wrote."""
    from safetensors.torch import load_file, save_file

    old, new = "vision_tower.", "vision_tower.vision_model."
    weights = {k if new in k else k.replace(old, new): v for k, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


@contextmanager
def server(environment: Mapping[str, str], command: Sequence[str], port: int) -> Iterator[str]:
    """A server while it runs, once it answers; its URL.

    Raises RuntimeError, with the end of its log, if it stops before.
    """
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        try:
            while not _answers(url):
                if process.poll() is not None:
                    log.seek(0)
                    raise RuntimeError(f"the server stopped:\n{log.read()[-20000:]}")
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:  # a busy machine: it must not outlive the bench
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ask(url: str, seed: int, tokens: int) -> tuple[float, int]:
    """Ask about an image of its own: seconds to the first token, and tokens of the prompt."""
    pixels = np.random.default_rng(seed).integers(0, 256, (42, 42, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((336, 336)).save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": "What is in this image?"},
    ]
    body = {
        "model": "served",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    call = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    began, first, prompt = time.perf_counter(), 0.0, 0
    with urllib.request.urlopen(call, timeout=600) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            # The first chunk names the role alone.
            generated = [one for one in chunk["choices"] if one["delta"].get("content") is not None]
            if first == 0.0 and generated and "role" not in generated[0]["delta"]:
                first = time.perf_counter() - began
            if chunk.get("usage"):
                prompt = chunk["usage"]["prompt_tokens"]
    return first or time.perf_counter() - began, prompt
