"""Give stock vLLM a picture of which few tokens are left, as embeddings.

python examples/replay_kept.py --positions compact --output kept.safetensors
python examples/replay_in_vllm.py kept.safetensors --model MODEL    # in vLLM's environment

No plugin takes part: `enable_mm_embeds` lets a request bring what the projector gives. vLLM
then numbers the tokens without gaps, which is what `positions="compact"` does. MODEL: the folder or
hub name of the model that the file was written with.
"""

from __future__ import annotations

import argparse
import os

from compress import load_export


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file")
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-model-len", type=int, default=1024)
    parser.add_argument("--cache-bytes", type=int, default=2**26)
    options = parser.parse_args()
    entries, metadata = load_export(options.file)
    for kept in entries:
        at, text_at = kept["positions"][:, 0, 0], kept["next_position"]
        if not (at.diff() == 1).all() or text_at != at[-1] + 1:
            raise SystemExit("the file has original positions: write it with --positions compact")
        if kept["question_dependent"]:
            print("these tokens were chosen for one question: do not reuse them for another")
    os.environ["VLLM_PLUGINS"] = ""  # stock
    from vllm import LLM, SamplingParams

    llm = LLM(
        options.model,
        enable_mm_embeds=True,
        dtype="float32",
        enforce_eager=True,
        max_model_len=options.max_model_len,
        kv_cache_memory_bytes=options.cache_bytes,
    )
    images = [kept["features"] for kept in entries]  # (M, D) each: M placeholders
    request = {"prompt": metadata["prompt"], "multi_modal_data": {"image": images}}
    (answer,) = llm.generate(request, SamplingParams(max_tokens=8, temperature=0))
    print("vLLM:", answer.outputs[0].text)


if __name__ == "__main__":
    main()
