"""What the reduction buys in vLLM: time to the first token, throughput and cache blocks.

    .venv-vllm/bin/python -m scripts.bench_serving run --output docs/bench/serving.json
    .venv-vllm/bin/python -m scripts.bench_serving run --model llava-hf/llava-1.5-7b-hf \\
        --dtype bfloat16 --requests 64 --output serving-7b.json          # where a GPU is
    python -m scripts.bench_serving table docs/bench/serving.json

Each configuration is a server of its own: vLLM without the plugin, with the plugin and all tokens
kept, and at shares of the tokens. Every request shows another image, so that no cache helps. The
default model is a LLaVA of random weights with 576 tokens an image.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BLOCK = 32
SHARES: dict[str, float | None] = {"stock": None, "all kept": 1.0, "1/3": 1 / 3, "1/9": 1 / 9}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure and write JSON")
    add = run.add_argument
    add("--model", help="a folder or hub name (default: random weights, made for the run)")
    add("--method", default="divprune")
    add("--dtype", default="float32")
    add("--concurrency", type=int, nargs="+", default=[1, 8, 32])
    add("--requests", type=int, help="at each concurrency (default: as many, at least 3)")
    add("--tokens", type=int, default=4, help="generated for each request")
    add("--options", default="", help="further options of the server, in one string")
    add("--output", type=Path, required=True)
    commands.add_parser("table", help="print the table").add_argument("path", type=Path)
    args = parser.parse_args(argv)
    if args.command == "table":
        print(table(json.loads(args.path.read_text())))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        model = args.model or build(Path(folder) / "model")
        result = {
            "model": args.model or "LLaVA of random weights, hidden 1024, 12 layers, 576 tokens",
            "method": args.method,
            "dtype": args.dtype,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "rows": [row for name in SHARES for row in measure(name, model, args)],
        }
    args.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))
    return 0


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
def server(name: str, model: str, args: argparse.Namespace) -> Iterator[str]:
    """A server of one configuration; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model),
        *("--served-model-name", "served", "--host", "127.0.0.1", "--port", str(port)),
        *("--dtype", args.dtype, "--max-model-len", "2048", "--block-size", str(BLOCK)),
        *args.options.split(),
    ]
    environment = dict(os.environ)
    if SHARES[name] is None:
        environment["VLLM_PLUGINS"] = ""
    else:
        settings = {"foveate": {"method": args.method, "keep": SHARES[name]}}
        command += ["--hf-overrides", json.dumps(settings)]
    log = Path(tempfile.gettempdir()) / f"bench-serving-{port}.log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            raise RuntimeError(f"the server stopped:\n{log.read_text()[-3000:]}")
        yield url
    finally:
        process.terminate()
        process.wait(60)
        log.unlink()


def measure(name: str, model: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one configuration, one for each concurrency."""
    rows, seed = [], 0
    with server(name, model, args) as url:
        for _ in range(2):
            ask(url, seed, args.tokens)
            seed += 1
        for concurrency in args.concurrency:
            count = args.requests or max(3, concurrency)
            began = time.perf_counter()
            with ThreadPoolExecutor(concurrency) as pool:
                seeds = range(seed, seed + count)
                replies = list(pool.map(lambda one: ask(url, one, args.tokens), seeds))
            seconds = time.perf_counter() - began
            seed += count
            first = sorted(reply[0] for reply in replies)
            prompt = replies[0][1]
            rows.append(
                {
                    "configuration": name,
                    "concurrency": concurrency,
                    "requests": count,
                    "first_token_p50_s": statistics.median(first),
                    "first_token_max_s": first[-1],
                    "requests_per_s": count / seconds,
                    "prompt_tokens": prompt,
                    "blocks": math.ceil((prompt + args.tokens) / BLOCK),
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


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


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    lines = [
        f"{result['model']}; {result['method']}, {result['dtype']}; {result['machine']}.",
        "",
        "| configuration | at once | first token, median | slowest | requests / s | prompt tokens "
        "| cache blocks |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['configuration']} | {row['concurrency']} | {row['first_token_p50_s']:.2f} s "
        f"| {row['first_token_max_s']:.2f} s | {row['requests_per_s']:.2f} "
        f"| {row['prompt_tokens']} | {row['blocks']} |"
        for row in result["rows"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
