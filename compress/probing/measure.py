"""`compress.probe`: how far answers move without visual tokens, or with half, from a layer on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from compress import ops
from compress.budget import Allocation
from compress.methods import Method
from compress.probing.fingerprint import family_of, key_of
from compress.probing.verdict import Effect, Probe, Row
from compress.runtime.attach import Compression
from compress.runtime.settings import Settings
from compress.tokens import LayerTokens, Reduction, VisualTokens
from vlm.families import ModelAdapter, adapter_of
from vlm.progress import progress_bar
from vlm.prompts import picture_prompt

Prompt = tuple[Image.Image | Sequence[Image.Image], str] | Mapping[str, Any]
"""A picture (or several) and a question, or what the model's processor made of a prompt."""


@dataclass(frozen=True)
class Thinned(Method):
    """All tokens up to decoder layer `layer`, from there on a share of them, evenly spaced.

    From layer 0 on, one token enters the language model if the share is 0, and leaves it there.
    """

    in_llm_needs: ClassVar[frozenset[str]] = frozenset()

    layer: int = 1
    share: float = 0.0

    def allocate(self, dense: int, depth: int, budget: int | float) -> Allocation:
        left = int(dense * self.share)
        if self.layer:
            return Allocation(dense, depth, dense, ((self.layer, left),))
        return Allocation(dense, depth, max(1, left), ((1, left),))

    def select(
        self, tokens: VisualTokens, keep: int, generator: torch.Generator | None
    ) -> Reduction:
        index = ops.spread(tokens.count, keep, tokens.features.device)
        return ops.prune(tokens.features, index.expand(len(tokens.features), -1))

    def select_in_llm(
        self, tokens: LayerTokens, count: int, generator: torch.Generator | None
    ) -> Reduction:
        index = ops.spread(tokens.hidden.shape[1], count, tokens.hidden.device)
        return ops.prune(tokens.hidden, index.expand(len(tokens.hidden), -1), tokens.size)


def probe(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Prompt] | None = None,
    *,
    max_new_tokens: int = 8,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Probe:
    """Measure at which decoder layers a model still reads its visual tokens, without labels.

    For each prompt the model's own greedy answer is taken. The prompt with this answer then runs
    once for each decoder layer l with no visual token from layer l on, and once with every second
    one. The next-token distributions at the answer are compared with the dense ones.

    The result is saved after every prompt, under the model's fingerprint. An interrupted run goes
    on where it was, and prompts that are in the saved result are not run again. The finished result
    is of `samples` alone, and takes the place of an earlier one. Afterwards
    `compress(model, ..., schedule="probed")` uses it.

    Args:
        model: a model of a known family, without a compression.
        processor: its processor, with a chat template.
        samples: prompts; a few dozen of the kind that the model will be asked. Each is a pair of a
            PIL image (or several) and a question, or a mapping that the processor made of one
            prompt (this way videos go in). None: 32 drawn pictures with plain questions.
        max_new_tokens: length of the answers that are compared.
        folder: where the result is saved; the assets cache of huggingface_hub if None.
        progress: show a progress bar.

    Raises:
        ValueError: an unknown family, no prompts, a prompt without visual tokens, or a model with
            fewer than two decoder layers.
    """
    adapter = adapter_of(model)
    depth = len(adapter.layers)
    if depth < 2:
        raise ValueError(f"the model has {depth} decoder layer; a probe needs at least 2")
    prompts = drawn_prompts() if samples is None else list(samples)
    if not prompts:
        raise ValueError("samples is empty: expected at least one prompt")
    name = Path(getattr(adapter.config, "_name_or_path", "") or type(model).__name__).name
    result = Probe(key_of(adapter), family_of(adapter), name, depth, finished=False)
    saved = Probe.find(result.family, result.fingerprint, folder)
    rows = {} if saved is None else {row.digest: row for row in saved.rows}
    digests: dict[str, None] = {}
    with evaluating(model):
        for prompt in progress_bar(prompts, desc="probe", unit="prompt", disable=not progress):
            inputs = prepare(model, processor, prompt)
            digest = digest_of(inputs, max_new_tokens)
            digests[digest] = None
            if digest not in rows:
                rows[digest] = _row(model, adapter, inputs, digest, max_new_tokens)
                replace(result, rows=tuple(rows.values())).save(folder)
    result = replace(result, rows=tuple(rows[digest] for digest in digests), finished=True)
    result.save(folder)
    return result


def drawn_prompts(count: int = 32) -> list[Prompt]:
    """Pictures of the embedded world's training split, each with one of its questions."""
    from vlm.embedded.scenes import draw, make_scene, questions

    prompts: list[Prompt] = []
    for seed in range(count):
        scene = make_scene(seed)
        asked = questions(scene, np.random.default_rng(seed))
        prompts.append((draw(scene, 336), asked[seed % len(asked)].text))
    return prompts


def prepare(model: Any, processor: Any, prompt: Prompt) -> dict[str, Any]:
    """What the model takes of one prompt, on its device."""
    if isinstance(prompt, Mapping):
        return {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in prompt.items()}
    pictures, question = prompt
    images = [pictures] if isinstance(pictures, Image.Image) else pictures
    return dict(picture_prompt(model, processor, images, question))


def digest_of(inputs: Mapping[str, Any], max_new_tokens: int) -> str:
    """16 hexadecimal digits of a prompt and the length of its answer."""
    digest = hashlib.sha256(str(max_new_tokens).encode())
    for name, value in sorted(inputs.items()):
        digest.update(name.encode())
        if isinstance(value, Tensor):
            digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is put back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _row(model: Any, adapter: ModelAdapter, inputs: dict[str, Any], digest: str, new: int) -> Row:
    prompt = inputs["input_ids"]
    if len(prompt) != 1:
        raise ValueError(f"a prompt holds {len(prompt)} sequences: expected one")
    visual = [adapter.placeholder(kind) for kind in adapter.kinds]
    if not any(bool((prompt == token).any()) for token in visual):
        raise ValueError("a prompt has no visual token: there is nothing to probe")
    out = model.generate(**inputs, max_new_tokens=new, do_sample=False, num_beams=1)
    answer = out[:, prompt.shape[1] :]
    call = _with_answer(inputs, answer)
    dense = _log_probabilities(model, call, answer)

    def effect(share: float) -> Effect:
        moved = []
        for layer in range(len(adapter.layers)):
            with Compression(model, Settings(adapter, Thinned(layer, share), 1.0)):
                moved.append(_moved(dense, _log_probabilities(model, call, answer)))
        return Effect(tuple(kl for kl, _ in moved), tuple(same for _, same in moved))

    return Row(digest, answer.shape[1], effect(0.0), effect(0.5))


def _with_answer(inputs: dict[str, Any], answer: Tensor) -> dict[str, Any]:
    """The same call with an answer behind the prompt; its last token has nothing to predict."""
    behind, shape = answer[:, :-1], inputs["input_ids"].shape
    call = dict(inputs)
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.shape == shape:
            fill = {"input_ids": behind, "attention_mask": torch.ones_like(behind)}
            more = fill.get(name, torch.zeros_like(behind)).to(value.dtype)
            call[name] = torch.cat([value, more], 1)
    return call


def _log_probabilities(model: Any, call: dict[str, Any], answer: Tensor) -> Tensor:
    """(T, V) float32 log-probabilities at the places that predict the answer's T tokens."""
    logits = model(**call, use_cache=False, logits_to_keep=answer.shape[1]).logits
    return logits[0, -answer.shape[1] :].float().log_softmax(-1)


def _moved(dense: Tensor, changed: Tensor) -> tuple[float, int]:
    """KL(dense || changed) summed over tokens, and tokens whose greedy choice is the same."""
    kl = (dense.exp() * (dense - changed)).sum().clamp(min=0)
    same = (dense.argmax(-1) == changed.argmax(-1)).sum()
    return float(kl), int(same)
