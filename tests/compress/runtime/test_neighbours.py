"""Compression with other tools on the same model: presses, LoRA, torch.compile, device maps."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from compress import compress
from compress.methods import Duet, PyramidDrop
from tests.compress.common import CLOSE, NEW, answer, logits_of
from tests.marks import each_case, some_cases, some_offloaded_cases
from tests.tiny import CASES, Case
from vlm.decoder import cache_of
from vlm.families import adapter_of

LLAVA = CASES[0]
PRE_LLM = Duet(layers=(), ratios=())
BOTH = Duet(layers=(1, 3), ratios=(0.6, 0.3))


# ------------------------------------------------------------------ key/value presses


@contextmanager
def press(model: Any, ratio: float = 0.5) -> Iterator[None]:
    """What kvpress does: after prefill, each head of each layer keeps keys of small norm."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        layer = cache_of(kwargs).layers[module.layer_idx]
        if layer.keys.shape[2] != kwargs["hidden_states"].shape[1]:
            return  # not a prefill
        keep = int(layer.keys.shape[2] * (1 - ratio))
        order = layer.keys.norm(dim=-1).argsort(-1)[..., :keep, None]
        index = order.expand(-1, -1, -1, layer.keys.shape[3])
        layer.keys, layer.values = layer.keys.gather(2, index), layer.values.gather(2, index)

    layers = model.model.language_model.layers
    handles = [x.self_attn.register_forward_hook(hook, with_kwargs=True) for x in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_pressed(case: Case, method: Any, attention: str, pressed: Callable[[Any], Any]) -> None:
    """Both at once: what they leave is cached, and each step is the stock model's on that."""
    model, sample = case.model(attention), case.samples()[0]
    given = case.inputs([sample])
    with compress(model, method, budget=case.budget) as c, pressed(model), torch.no_grad():
        cache = DynamicCache()
        first = model(**given, past_key_values=cache).logits[:, -1:]
        lengths = [
            len(sample.ids) - c.report().dense.layers[0] + n for n in c.report().reduced.layers
        ]
        assert [layer.keys.shape[2] for layer in cache.layers] == [n // 2 for n in lengths]
        twin = copy.deepcopy(cache)
        together = [first]
        for _ in range(NEW):
            ids = together[-1].argmax(-1)
            together.append(model(input_ids=ids, past_key_values=cache).logits)
        said = answer(model, given, output_logits=False).sequences[0, -NEW:]
    assert torch.equal(said, torch.cat(together[:NEW]).argmax(-1).flatten())
    with torch.no_grad():
        for step, wanted in enumerate(together[1:]):
            place = torch.tensor([[len(sample.ids) + step]])
            ids = together[step].argmax(-1)
            # The sequence has its original positions; the stock model sees a cache and a position.
            out = model(input_ids=ids, past_key_values=twin, position_ids=place).logits
            torch.testing.assert_close(wanted, out, **CLOSE)


@pytest.mark.parametrize("method", [PRE_LLM, BOTH, PyramidDrop(layers=(1, 2), ratio=0.5)])
def test_a_press_at_once(method: Any) -> None:
    check_pressed(LLAVA, method, "sdpa", press)


def test_kvpress_at_once() -> None:
    """The real one. It asks for a transformers of before 5.3, which said at each step where in the
    cache it wrote; that is said for it here."""
    kvpress = pytest.importorskip("kvpress")

    class Press(kvpress.KnormPress):  # type: ignore[misc, name-defined]
        def forward_hook(self, module: Any, args: Any, kwargs: Any, output: Any) -> Any:
            length = cache_of(kwargs).get_seq_length(module.layer_idx)
            more = {"cache_position": torch.arange(length)}
            return super().forward_hook(module, args, kwargs | more, output)

    for method in (PRE_LLM, BOTH):
        check_pressed(LLAVA, method, "sdpa", Press(compression_ratio=0.5))


def test_a_press_on_a_padded_batch_is_refused() -> None:
    """It removes by head, so that padding and text cannot be told apart afterwards."""
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples())
    with (
        compress(model, PRE_LLM, budget=16),
        press(model),
        pytest.raises(ValueError, match=r"another tool removes.*without padding"),
    ):
        answer(model, given)


# ------------------------------------------------------------------ LoRA


def lora(case: Case, **options: Any) -> Any:
    """A model with adapters, not all zero, on every linear layer of attention it has."""
    peft = pytest.importorskip("peft")
    model = case.fresh()
    targets = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and {"q_proj", "k_proj", "v_proj", "qkv"} & set(name.split("."))
    ]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(r=4, target_modules=targets, **options)
        )
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draw))
    return wrapped.eval()


@some_cases
def test_lora_in_place_equals_lora_merged(case: Case) -> None:
    """Scores of the vision side and of decoder layers are of the layers with their adapters."""
    wrapped, given = lora(case), case.inputs(case.samples())
    with compress(wrapped, BOTH, budget=case.budget) as c:
        apart = logits_of(wrapped, given)
        kept = [tensors["layers.3.anchor"] for tensors in c.export()]
        wrapped.disable_adapter_layers()
        bare = logits_of(wrapped, given)
        wrapped.enable_adapter_layers()
    merged = wrapped.merge_and_unload()
    with compress(merged, BOTH, budget=case.budget) as c:
        torch.testing.assert_close(logits_of(merged, given), apart, **CLOSE)
        again = [tensors["layers.3.anchor"] for tensors in c.export()]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    assert not torch.allclose(apart, bare, atol=1e-2)


def test_lora_trains_through_a_reduction() -> None:
    wrapped, given = lora(LLAVA), LLAVA.inputs(LLAVA.samples()[:1])
    with compress(wrapped, BOTH, budget=16):
        wrapped(**given, labels=given["input_ids"]).loss.backward()
    reached = {n for n, p in wrapped.named_parameters() if p.grad is not None}
    assert all("lora_" in name for name in reached)
    layers = {name.split(".lora_")[0] for name in reached}
    assert any("vision_tower" in name for name in layers)
    assert any("language_model.layers.3" in name for name in layers)


# ------------------------------------------------------------------ torch.compile


@pytest.fixture
def guarded() -> Iterator[None]:
    """Layers with hooks and layers without are different code."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        yield
    torch._dynamo.reset()


def vision_encoders(model: Any, case: Case) -> list[Any]:
    return [case.core(model).get_submodule(path) for path in case.vision]


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@each_case
@pytest.mark.slow
@pytest.mark.usefixtures("guarded")
def test_a_compiled_vision_encoder(case: Case) -> None:
    """Compressed first, compiled then: the layers that give scores are seen."""
    model, given = case.fresh(), case.inputs(case.samples())
    with compress(model, BOTH, budget=case.budget), torch.no_grad():
        plain = model(**given).logits
        for encoder in vision_encoders(model, case):
            encoder.compile(backend="eager")
        torch.testing.assert_close(model(**given).logits, plain, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_a_vision_encoder_that_was_compiled_before(name: str) -> None:
    """Its layers may run unseen: right all the same, or refused."""
    case = next(case for case in CASES if case.name == name)
    model, given = case.fresh(), case.inputs(case.samples())
    torch._dynamo.reset()
    with compress(model, BOTH, budget=case.budget), torch.no_grad():
        plain = model(**given).logits
    for encoder in vision_encoders(model, case):
        encoder.compile(backend="eager")
    with torch.no_grad():
        model(**given)
    with compress(model, BOTH, budget=case.budget), torch.no_grad():
        try:
            actual = model(**given).logits
        except RuntimeError as error:
            assert "compress() first" in str(error)
        else:
            torch.testing.assert_close(actual, plain, **CLOSE)
    torch._dynamo.reset()


def test_layers_that_run_unseen_are_refused() -> None:
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples()[:1])
    attention = model.model.vision_tower.encoder.layers[1].self_attn
    with compress(model, BOTH, budget=16):
        for module in (attention.q_proj, attention.k_proj):
            module._forward_hooks.clear()
        with pytest.raises(RuntimeError, match=r"ran unseen.*compress\(\) first"):
            model(**given)


@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_compiled_model_decodes(cache: str) -> None:
    """Static caches are what transformers compiles the decode step for."""
    model, given = LLAVA.fresh(), LLAVA.inputs(LLAVA.samples()[:1])
    with compress(model, BOTH, budget=16):
        plain = logits_of(model, given)
        model.compile(backend="eager")
        actual = logits_of(model, given, cache_implementation=cache, disable_compile=True)
        torch.testing.assert_close(actual, plain, **CLOSE)


# ------------------------------------------------------------------ devices


def device_map(
    model: Any, of_layer: Callable[[int], Any], of_rest: Callable[[str], Any]
) -> dict[str, Any]:
    """Where each decoder layer is to be, by number, and what is not within them, by name."""
    numbers = {id(layer): number for number, layer in enumerate(adapter_of(model).layers)}
    devices: dict[str, Any] = {}

    def walk(module: Any, name: str) -> None:
        if id(module) in numbers:
            devices[name] = of_layer(numbers[id(module)])
        elif any(id(part) in numbers for part in module.modules()):
            for own, _ in module.named_parameters(name, recurse=False):
                devices[own] = of_rest(own)
            for own, child in module.named_children():
                walk(child, f"{name}.{own}" if name else own)
        else:
            devices[name] = of_rest(name)

    walk(model, "")
    return devices


@some_offloaded_cases
def test_weights_that_are_elsewhere_between_calls(case: Case, tmp_path: Path) -> None:
    """A device map with parts on disk: they are on the meta device but for their own forward."""
    accelerate = pytest.importorskip("accelerate")
    model, given = case.fresh(), case.inputs(case.samples())
    with compress(model, BOTH, budget=case.budget):
        plain = logits_of(model, given)
    parts = device_map(
        model,
        lambda number: "disk" if number % 2 else "cpu",
        lambda name: "disk" if name.removeprefix("model.") in case.vision else "cpu",
    )
    model = accelerate.dispatch_model(model, parts, main_device="cpu", offload_dir=tmp_path)
    assert {p.device.type for p in model.parameters()} == {"cpu", "meta"}
    with compress(model, BOTH, budget=case.budget):
        actual = logits_of(model, given)
    torch.testing.assert_close(actual, plain, **CLOSE)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_case
def test_two_devices(case: Case) -> None:
    """The vision side on one, the language model split over both."""
    accelerate = pytest.importorskip("accelerate")
    model, given = case.fresh(), case.inputs(case.samples())
    with compress(model, BOTH, budget=case.budget):
        plain = logits_of(model, given)
    parts = device_map(model, lambda number: 0 if number < 2 else "cpu", lambda name: 0)
    model = accelerate.dispatch_model(model, parts, main_device=0)
    with compress(model, BOTH, budget=case.budget):
        actual = logits_of(model, {name: x.cuda() for name, x in given.items()})
    torch.testing.assert_close(actual.cpu(), plain, rtol=1e-3, atol=1e-3)


def test_a_press_leaves_what_it_did_not_touch() -> None:
    """A press that removes nothing changes nothing."""
    model, given = LLAVA.model(), LLAVA.inputs(LLAVA.samples())
    with compress(model, BOTH, budget=16):
        plain: Tensor = logits_of(model, given)
        with press(model, ratio=0.0):
            pressed = logits_of(model, given)
    torch.testing.assert_close(pressed, plain, **CLOSE)
