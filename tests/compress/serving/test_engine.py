"""vLLM with the plugin answers as transformers does with `compress` (`make serve-test`)."""

from __future__ import annotations

import base64
import gc
import json
import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make serve-test")

import numpy as np
from PIL import Image

from tests.compress.serving.cases import (
    CASES,
    FOLDER,
    KEEP,
    TOKENS,
    Served,
    load,
    metadata,
)

TOLERANCE = 2e-5
"""Of log-probabilities in float32."""
NEAR_TIES = 0.05
"""Share of answers that may be farther off. Rounding decides where two scores differ by less, and
the encoders of transformers and vLLM round differently: noise of 1e-6 on the features moves
answers of `cascade` as far within transformers."""


@pytest.fixture(scope="module")
def answers() -> dict[str, Any]:
    path = FOLDER / "answers.json"
    if not path.is_file():
        pytest.skip("no reference answers: make serve-test writes them")
    return json.loads(path.read_text())


@contextmanager
def engine(model: str, settings: Any = None, **options: Any) -> Iterator[Any]:
    """vLLM's engine, in this process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    common: dict[str, Any] = {
        "dtype": "float32",
        "max_model_len": 1024,
        "kv_cache_memory_bytes": 2**26,
        "block_size": 32,
        "enforce_eager": True,
        "limit_mm_per_prompt": {"image": 4, "video": 2},
        "hf_overrides": {} if settings is None else {"foveate": settings},
    }
    llm = LLM(str(FOLDER / model), **common | options)
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


def media(request: dict[str, Any]) -> dict[str, Any]:
    shown = [load(name) for name in request["images"]]
    if not shown:
        return {}
    if isinstance(shown[0], Image.Image):
        return {"multi_modal_data": {"image": shown}}
    return {"multi_modal_data": {"video": [(frames, metadata(frames)) for frames in shown]}}


def generate(llm: Any, requests: Sequence[dict[str, Any]], **more: Any) -> list[Any]:
    from vllm import SamplingParams

    prompts = [{"prompt": request["prompt"], **media(request), **more} for request in requests]
    sampling = SamplingParams(max_tokens=TOKENS, temperature=0, logprobs=1)
    return llm.generate(prompts, sampling, use_tqdm=False)


def differences(outputs: Sequence[Any], requests: Sequence[dict[str, Any]]) -> list[float]:
    """The largest difference of log-probabilities of each answer; infinity for other tokens."""
    largest = []
    for output, request in zip(outputs, requests, strict=True):
        got = output.outputs[0]
        if list(got.token_ids) != request["ids"]:
            largest.append(math.inf)
            continue
        found = [
            step[token].logprob for token, step in zip(got.token_ids, got.logprobs, strict=True)
        ]
        pairs = zip(found, request["logprobs"], strict=True)
        largest.append(max(abs(a - b) for a, b in pairs))
    return largest


def answer_of(output: Any) -> dict[str, Any]:
    """An answer of vLLM as `differences` takes it for a reference."""
    got = output.outputs[0]
    found = [step[token].logprob for token, step in zip(got.token_ids, got.logprobs, strict=True)]
    return {"ids": list(got.token_ids), "logprobs": found}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_answers_are_those_of_transformers(
    case: Served, answers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    requests = answers[case.name]
    # Chunks of 40 tokens cut the images, and blocks of 32 end inside them: the second round takes
    # part of each image from the prefix cache.
    options = {"max_num_batched_tokens": 40, "max_num_seqs": 8} if case.chunks else {}
    rounds = ("in chunks", "from the cache") if case.chunks else ("whole",)
    with engine(case.model, case.settings, **options) as llm:
        assert "warmup failed" not in caplog.text
        for round_ in rounds:
            found = differences(generate(llm, requests), requests)
            near = sum(one < TOLERANCE for one in found)
            equal = sum(one < math.inf for one in found)
            print(
                f"\n{case.name}, {round_}: {equal} of {len(found)} have equal ids, {near} "
                f"log-probabilities within {TOLERANCE:.0e}, all within {max(found):.1e}"
            )
            assert equal == len(found)
            assert near >= math.floor(len(found) * (1 - NEAR_TIES))


def test_keeping_all_is_the_stock_model(
    answers: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    requests = answers[f"mini-1d-duet-{KEEP}-original"]
    with engine("mini-1d") as llm:
        stock = [answer_of(output) for output in generate(llm, requests)]
    with engine("mini-1d", {"keep": 1000}) as llm:  # an image has 144
        assert max(differences(generate(llm, requests), stock)) < 1e-6
    assert caplog.text.count("an image has 144 tokens: it keeps all") == 1


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen2_5_vl"])
def test_a_long_video_stands_where_stock_vllm_places_it(
    model: str, answers: dict[str, Any]
) -> None:
    """Transformers places the text after it elsewhere, so it is no reference here."""
    frames = np.concatenate([load(f"{n}.npy") for n in range(6)])[:, :32, :32]
    prompt = answers[f"{model}-duet-0.25-original-video"][0]["prompt"]
    video = {"multi_modal_data": {"video": [(frames, metadata(frames))]}}
    request = {"prompt": prompt, "images": []}
    with engine(model) as llm:
        stock = [answer_of(output) for output in generate(llm, [request], **video)]
    with engine(model, {"method": "divprune", "keep": 1.0}) as llm:
        assert max(differences(generate(llm, [request], **video), stock)) < 1e-6


def test_an_image_is_reduced_alike_in_any_company(answers: dict[str, Any]) -> None:
    case = CASES[0]
    requests = answers[case.name][:8]
    other = {**requests[0], "prompt": requests[1]["prompt"]}
    with engine(case.model, case.settings, max_num_seqs=8) as llm:
        alone = [answer_of(generate(llm, [request])[0]) for request in requests]
        another_question = generate(llm, [other])
        llm.reset_prefix_cache()
        llm.reset_mm_cache()
        together = generate(llm, requests)
        again = answer_of(generate(llm, [other])[0])
    assert max(differences(together, alone)) < TOLERANCE
    # The other question finds the image cached, by its own hash.
    assert max(differences(another_question, [again])) < TOLERANCE


def test_a_request_may_keep_fewer(answers: dict[str, Any]) -> None:
    case = CASES[0]
    requests = answers[case.name][:4]
    half = answers["mini-1d-duet-24-original"][:4]
    with engine(case.model, case.settings) as llm:
        generate(llm, requests)  # caches the images with the engine's own count
        fewer = generate(llm, requests, mm_processor_kwargs={"foveate_keep": 24})
        assert max(differences(fewer, half)) < TOLERANCE
        lengths = {len(output.prompt_token_ids) for output in generate(llm, requests[:1])}
        assert lengths == {len(fewer[0].prompt_token_ids) + KEEP - 24}
        for keep, words in ((72, "keeps 72"), (0, "at least 1"), ("all", "at least 1")):
            with pytest.raises(ValueError, match=words):
                generate(llm, requests[:1], mm_processor_kwargs={"foveate_keep": keep})
        assert max(differences(generate(llm, requests), requests)) < TOLERANCE


def test_text_alone_and_an_image_at_the_end(answers: dict[str, Any]) -> None:
    case = CASES[0]
    request = answers[case.name][0]
    cut = {**request, "prompt": request["prompt"].partition("<image>")[0] + "<image>"}
    text = {"prompt": "<s>USER: What shape is it? ASSISTANT:", "images": []}
    with engine("mini-1d") as llm:
        stock = [answer_of(output) for output in generate(llm, [text])]
    with engine(case.model, case.settings) as llm:
        assert max(differences(generate(llm, [text]), stock)) < TOLERANCE
        assert max(differences(generate(llm, [cut]), answers["ends-in-an-image"])) < TOLERANCE


@contextmanager
def server(model: str, settings: Any) -> Iterator[str]:
    """vLLM's OpenAI server in processes of its own; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(FOLDER / model), "--served-model-name", model),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"),
        *("--max-model-len", "1024", "--kv-cache-memory-bytes", str(2**26), "--enforce-eager"),
        *(
            "--block-size",
            "32",
            "--trust-request-mm-kwargs",
            "--hf-overrides",
            json.dumps({"foveate": settings}),
        ),
    ]
    url = f"http://127.0.0.1:{port}"
    with (FOLDER / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        while True:
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None:
                    raise RuntimeError((FOLDER / "server.log").read_text()[-3000:]) from None
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def post(
    url: str, request: dict[str, Any], image: bytes | None = None, **more: Any
) -> dict[str, Any]:
    files = [image or (FOLDER / name).read_bytes() for name in request["images"]]
    encoded = [base64.b64encode(data) for data in files]
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{one.decode()}"}}
        for one in encoded
    ]
    content.append({"type": "text", "text": request["question"]})
    messages = [{"role": "user", "content": content}]
    body = {"messages": messages, "max_tokens": TOKENS, "temperature": 0, **more}
    headers = {"Content-Type": "application/json"}
    call = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(call, timeout=120) as response:
        return json.load(response)


def test_the_server_answers_alike(answers: dict[str, Any]) -> None:
    case = CASES[0]
    requests = [*answers[case.name][:10], *answers[case.name][-2:]]
    with server(case.model, case.settings) as url:
        with ThreadPoolExecutor(8) as pool:
            replies = list(pool.map(lambda request: post(url, request), requests))
        texts = [reply["choices"][0]["message"]["content"].strip() for reply in replies]
        assert texts == [request["text"].strip() for request in requests]
        fewer = post(url, requests[0], mm_processor_kwargs={"foveate_keep": 24})
        tokens = [one["usage"]["prompt_tokens"] for one in (replies[0], fewer)]
        assert tokens[0] - tokens[1] == KEEP - 24
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(url, requests[0], mm_processor_kwargs={"foveate_keep": 0.9})
        assert refused.value.code == 400
        assert "started with keep 48" in refused.value.read().decode()
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(url, requests[0], image=b"no picture")
        assert refused.value.code == 400
        again = post(url, requests[0])
        assert again["choices"][0]["message"]["content"].strip() == texts[0]


REFUSED = {
    "no keep": ({"method": "duet"}, "has no 'keep'"),
    "text": ("duet", "expected an object"),
    "unknown method": ({"method": "duett", "keep": 8}, "known methods"),
    "unknown key": ({"method": "duet", "keep": 8, "budget": 3}, "unknown key 'budget'"),
    "in the language model": ({"method": "fastv", "keep": 8}, "between decoder layers only"),
    "positions": ({"method": "vscan", "keep": 8, "positions": "home"}, "positions is 'home'"),
}


@pytest.mark.parametrize("settings, words", REFUSED.values(), ids=REFUSED)
def test_refused_at_the_start(settings: Any, words: str, answers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=words), engine("mini-1d", settings):
        pass


def test_refused_at_the_request(answers: dict[str, Any]) -> None:
    case = CASES[0]
    request = answers[case.name][0]
    long = {**request, "prompt": request["prompt"] + " shape" * 4000}
    with engine(case.model, case.settings, max_model_len=4096) as llm:
        with pytest.raises(ValueError, match="positions for 4096"):
            generate(llm, [long])
        assert max(differences(generate(llm, [request]), [request])) < TOLERANCE


@pytest.mark.parametrize(
    "options, words",
    [
        ({"enable_mm_embeds": True}, "enable-mm-embeds"),
        ({"video_pruning_rate": 0.3}, "video-pruning-rate"),
        ({"language_model_only": True}, "started without them"),
        ({"compilation_config": {"compile_mm_encoder": True}}, "compile_mm_encoder"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_options_that_would_hide_the_encoder_are_refused(
    options: dict[str, Any], words: str, answers: dict[str, Any]
) -> None:
    case = CASES[0]
    with pytest.raises(ValueError, match=words), engine(case.model, case.settings, **options):
        pass


def test_embeddings_and_videos_that_are_not_served_are_refused(answers: dict[str, Any]) -> None:
    import torch
    from vllm import SamplingParams

    sampling = SamplingParams(max_tokens=2)
    case = "internvl-duet-0.25-original"
    with engine("internvl", {"method": "duet", "keep": 0.25, "layers": [], "ratios": []}) as llm:
        video = {"video": [load("0.npy")]}
        with pytest.raises(Exception, match=r"At most 0 video"):  # vLLM's own
            llm.generate({"prompt": "w1 <video> w2", "multi_modal_data": video}, sampling)
        embeddings = {"image": torch.zeros(1, 4, 128)}
        prompt = {"prompt": "w1 <IMG_CONTEXT> w2", "multi_modal_data": embeddings}
        with pytest.raises(ValueError, match="embed"):
            llm.generate(prompt, sampling)
        assert max(differences(generate(llm, answers[case][:1]), answers[case][:1])) < TOLERANCE


def test_a_version_outside_the_window_is_refused(
    answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from compress.serving import vllm as plugin

    monkeypatch.setattr(plugin, "VERSIONS", ((0, 1), (0, 2)))
    with (
        pytest.raises(ValueError, match=r"written for vLLM >= 0\.1, < 0\.2"),
        engine("mini-1d", {"keep": 8}),
    ):
        pass
    with engine("mini-1d") as llm:  # stock vLLM is not touched
        assert generate(llm, answers[CASES[0].name][:1])


def test_settings_for_a_model_that_is_not_served_are_refused() -> None:
    from types import SimpleNamespace

    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from compress.serving import vllm as plugin

    plugin.register()
    hook = MODELS_CONFIG_MAP["Blip2ForConditionalGeneration"]
    plain, asked = (
        SimpleNamespace(model_config=SimpleNamespace(hf_config=SimpleNamespace(**keys)))
        for keys in ({}, {"foveate": 1})
    )
    hook.verify_and_update_config(plain)
    with pytest.raises(ValueError, match="does not serve Blip2ForConditionalGeneration"):
        hook.verify_and_update_config(asked)
