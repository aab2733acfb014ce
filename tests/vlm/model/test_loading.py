"""Invalid checkpoints give one clear error, and none of their code runs."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

import vlm
from tests.vlm import encoders, models
from vlm.embedded import mini
from vlm.model import CheckpointError, FoveateForConditionalGeneration, assemble


@pytest.fixture(scope="module")
def model():
    return models.build(("clip", "sam"), {"window": {"sam": 2}})[0]


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, change):
    """Change the weights on disk."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def refused(folder, words, **kwargs):
    """By the class and by the auto class."""
    for load in (FoveateForConditionalGeneration, hf.AutoModelForImageTextToText):
        with pytest.raises(CheckpointError, match=words):
            load.from_pretrained(folder, **kwargs)


def test_missing_weights(folder):
    rewrite(folder, lambda weights: weights.pop("model.fusion.second.weight"))
    refused(folder, r"lacks weights \(model\.fusion\.second\.weight; 1 in all\)")


def test_foreign_weights(folder):
    rewrite(folder, lambda weights: weights.update({"model.other.weight": torch.ones(2)}))
    refused(folder, r"holds foreign weights \(model\.other\.weight; 1 in all\)")


def test_a_tower_of_another_family(folder):
    config = json.loads((folder / "config.json").read_text())
    siglip = models.build(("siglip",))[0].config.to_dict()["experts"][0]
    config["experts"][0] = {**siglip, "name": "clip"}
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, "lacks .* and holds foreign .* and holds misshapen")


def test_weights_of_another_shape(folder):
    def change(weights):
        weights["model.fusion.second.weight"] = torch.ones(3, 3)

    rewrite(folder, change)
    refused(folder, r"misshapen weights \(model\.fusion\.second\.weight \(3, 3\) for \(32, 32\)")


def test_they_pass_if_one_says_so(folder):
    rewrite(folder, lambda weights: weights.update({"model.other.weight": torch.ones(2)}))
    loaded = FoveateForConditionalGeneration.from_pretrained(folder, strict=False)
    assert isinstance(loaded, FoveateForConditionalGeneration)
    loaded, info = FoveateForConditionalGeneration.from_pretrained(
        folder, strict=False, output_loading_info=True
    )
    assert set(info["unexpected_keys"]) == {"model.other.weight"}


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_truncated_weights(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    refused(folder, "cannot load")


class _Trap:
    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was opened')",)


def test_pickles_are_never_opened(folder):
    (folder / "model.safetensors").unlink()
    torch.save({"model.fusion.second.weight": _Trap()}, folder / "pytorch_model.bin")
    refused(folder, "safetensors")
    with pytest.raises(CheckpointError, match="safetensors alone"):
        FoveateForConditionalGeneration.from_pretrained(folder, use_safetensors=False)


def test_code_in_a_checkpoint_is_never_run(folder):
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "evil.Config",
        "AutoModelForImageTextToText": "evil.Model",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('the code was run')")
    for load in (FoveateForConditionalGeneration, hf.AutoModelForImageTextToText):
        assert type(load.from_pretrained(folder)) is FoveateForConditionalGeneration
    with pytest.raises(CheckpointError, match="no code of its own"):
        FoveateForConditionalGeneration.from_pretrained(folder, trust_remote_code=True)


def test_code_in_a_language_models_folder_is_never_run(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}})
    )
    (tmp_path / "evil.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(CheckpointError, match="cannot load a language model"):
        assemble(tmp_path, [encoders.expert("clip")], mini.build_tokenizer())


def test_a_language_model_that_lacks_weights(tmp_path):
    causal = hf.LlamaForCausalLM(models.text_config())
    weights = causal.state_dict()
    del weights["model.layers.1.mlp.up_proj.weight"]
    causal.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(CheckpointError, match="lacks weights of LlamaForCausalLM"):
        assemble(tmp_path, [encoders.expert("clip")], mini.build_tokenizer())


def test_other_models_and_no_models(tmp_path):
    models.stock_llava()[0].save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"model type 'llava' \(vlm\.model\.from_llava"):
        FoveateForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="nowhere"):
        FoveateForConditionalGeneration.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{not json")
    with pytest.raises(CheckpointError, match="cannot load"):
        FoveateForConditionalGeneration.from_pretrained(tmp_path)


def test_a_lost_shard(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    shards[1].unlink()
    refused(tmp_path, "cannot load")


def test_whole_shards_load(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="50KB")
    again = FoveateForConditionalGeneration.from_pretrained(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight)


def test_settings_from_the_future_are_named(folder):
    config = json.loads((folder / "config.json").read_text())
    config["fusion"]["magic"] = True
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="magic"):
        FoveateForConditionalGeneration.from_pretrained(folder)


# --- the door: vlm.load ---


@pytest.fixture(params=["foveate", "llava"])
def saved(request, tmp_path):
    """A whole checkpoint of ours, and one of a stock model."""
    if request.param == "foveate":
        model, processor = models.build(("clip", "sam"), {"window": {"sam": 2}})
    else:
        model, processor = mini.build()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    return tmp_path


def test_the_door_opens_ours_and_stock_models(saved):
    model, processor = vlm.load(saved)
    assert not model.training and model.dtype == torch.float32
    picture = models.picture()
    inputs = processor(images=picture, text="<image> what", return_tensors="pt")
    assert models.logits(model, inputs).isfinite().all()


@pytest.mark.slow
def test_the_door_needs_no_other_import(tmp_path):
    """In a process of its own, where nothing else has made the model known."""
    model, processor = models.build(("clip",))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    code = f"import vlm; print(type(vlm.load({str(tmp_path)!r})[0]).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "FoveateForConditionalGeneration"


def test_the_door_lets_nothing_half_loaded_through(saved):
    whole = load_file(saved / "model.safetensors")
    (name,) = (name for name in whole if name.endswith("lm_head.weight"))
    for change, words in (
        (lambda w: w.pop(name), "lacks weights"),
        (lambda w: w.update({"other": torch.ones(2)}), "holds foreign weights"),
        (lambda w: w.update({name: w[name][:-1].clone()}), "holds misshapen weights"),
    ):
        save_file(dict(whole), saved / "model.safetensors", metadata={"format": "pt"})
        rewrite(saved, change)
        with pytest.raises(CheckpointError, match=words):
            vlm.load(saved)
        if "misshapen" not in words:
            assert vlm.load(saved, strict=False)[0].lm_head.weight.isfinite().all()


def test_the_door_opens_no_pickle_and_runs_no_code(saved):
    (saved / "processor_config.json").rename(saved / "away.json")
    broken = saved / "tokenizer_config.json"
    text = broken.read_text()
    broken.write_text("{")
    with pytest.raises(CheckpointError, match="the processor of"):
        vlm.load(saved)
    broken.write_text(text)
    (saved / "away.json").rename(saved / "processor_config.json")
    config = json.loads((saved / "config.json").read_text())
    (saved / "evil.py").write_text("raise SystemExit('the code was run')")
    code = {"AutoConfig": "evil.Config", "AutoModelForImageTextToText": "evil.Model"}
    strange = {**config, "model_type": "strange", "auto_map": code}
    (saved / "config.json").write_text(json.dumps(strange))
    with pytest.raises(CheckpointError, match=r"strange|custom code|trust_remote_code"):
        vlm.load(saved)
    (saved / "config.json").write_text(json.dumps(config))
    (saved / "model.safetensors").unlink()
    torch.save({"lm_head.weight": _Trap()}, saved / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors"):
        vlm.load(saved)


def test_the_door_says_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        vlm.load(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        vlm.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match="cannot load"):
        vlm.load(tmp_path)
