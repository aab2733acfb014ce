"""Ask vLLM about pictures with fewer visual tokens (in vLLM's environment, see docs/serving.md).

python examples/serve.py --model llava-hf/llava-1.5-7b-hf --image photo.jpg --keep 64

The same as a server: vllm serve MODEL --hf-overrides '{"foveate": {"method": "duet", "keep": 64}}'
"""

from __future__ import annotations

import argparse

import vlm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder or a hub name")
    parser.add_argument("--image", required=True, action="append", help="may be repeated")
    parser.add_argument("--prompt", default="USER: <image>\nWhat is in the picture? ASSISTANT:")
    parser.add_argument("--method", default="duet")
    parser.add_argument("--keep", type=int, default=64, help="visual tokens of each image")
    parser.add_argument("--cache-bytes", type=int, help="memory for keys and values")
    options = parser.parse_args()
    from vllm import LLM, SamplingParams

    llm = LLM(
        options.model,
        hf_overrides={"foveate": {"method": options.method, "keep": options.keep}},
        max_model_len=1024,
        kv_cache_memory_bytes=options.cache_bytes,
        enforce_eager=True,
    )
    requests = [
        {"prompt": options.prompt, "multi_modal_data": {"image": vlm.read_image(path)}}
        for path in options.image
    ]
    answers = llm.generate(requests, SamplingParams(temperature=0, max_tokens=32))
    for path, answer in zip(options.image, answers, strict=True):
        print(f"{path}: {len(answer.prompt_token_ids)} tokens in, answer:", answer.outputs[0].text)


if __name__ == "__main__":
    main()
