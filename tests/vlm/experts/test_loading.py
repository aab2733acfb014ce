"""Local checkpoints of experts, good and bad, and the cache of features on disk."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from tests.vlm import encoders
from tests.vlm.experts.test_base import CLASSES
from vlm.experts import ExpertError, FeatureCache, load_expert


def saved(expert, folder):
    """The expert's encoder as a stock checkpoint."""
    model = CLASSES[expert.config.family](expert.encoder.config)
    model.load_state_dict(expert.encoder.state_dict())
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("family", sorted(set(CLASSES) - {"layoutlmv3"}))
def test_stock_checkpoints_load(family, tmp_path):
    expert = encoders.expert(family)
    loaded = load_expert(family, family, saved(expert, tmp_path))
    pixels = encoders.pixels(expert)
    assert torch.equal(loaded(pixels).features, expert(pixels).features)
    assert loaded.config.to_dict().keys() == expert.config.to_dict().keys()
    assert not loaded.encoder.training


def test_the_visual_side_of_a_whole_layoutlmv3(tmp_path):
    whole = encoders.randomise(hf.LayoutLMv3Model(encoders.encoder("layoutlmv3"))).eval()
    whole.save_pretrained(tmp_path)
    loaded = load_expert("doc", "layoutlmv3", str(tmp_path))
    assert not [name for name, _ in loaded.named_parameters() if "word_embeddings" in name]
    pixels = encoders.pixels(loaded)
    expected = whole(pixel_values=pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(loaded(pixels).features, expected)


def test_the_tower_of_a_whole_clip_and_its_normalisation(tmp_path):
    text = {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1, **encoders.SMALL}
    text.pop("patch_size")
    whole = hf.CLIPModel(
        hf.CLIPConfig(text_config=text, vision_config=encoders.encoder("clip").to_dict())
    )
    encoders.randomise(whole).eval().save_pretrained(tmp_path)
    hf.CLIPImageProcessor(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    loaded = load_expert("clip", "clip", str(tmp_path), layer="last")
    pixels = encoders.pixels(loaded)
    expected = whole.vision_model(pixels).last_hidden_state[:, 1:]
    torch.testing.assert_close(loaded(pixels).features, expected)
    assert loaded.config.mean == [0.1, 0.2, 0.3]
    assert load_expert("c", "clip", str(tmp_path), mean=[0.5] * 3).config.mean == [0.5] * 3


@pytest.mark.parametrize("family", ["open_clip", "open_clip_conv"])
def test_open_clip_safetensors(family, tmp_path):
    expert = encoders.expert(family)
    weights = {f"visual.{k}": v for k, v in expert.encoder.state_dict().items()}
    save_file({**weights, "logit_scale": torch.ones(1)}, tmp_path / "model.safetensors")
    model = {k: expert.config.encoder[k] for k in ("embed_dim", "vision_cfg")}
    path = str(tmp_path / "model.safetensors")
    loaded = load_expert("oc", family, path, model=model)
    pixels = encoders.pixels(expert)
    assert torch.equal(loaded(pixels).features, expert(pixels).features)
    weights.popitem()
    save_file(weights, path)
    with pytest.raises(ExpertError, match="does not fit"):
        load_expert("oc", family, path, model=model)


def test_open_clip_refusals(tmp_path):
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(ExpertError, match="pickles are not opened"):
        load_expert("oc", "open_clip", str(tmp_path / "model.pt"), model="ViT-B-16")
    with pytest.raises(ExpertError, match="does not know 'ViT-none'"):
        save_file({}, tmp_path / "m.safetensors")
        load_expert("oc", "open_clip", str(tmp_path / "m.safetensors"), model="ViT-none")
    with pytest.raises(ExpertError, match="no address"):
        load_expert("oc", "open_clip", str(tmp_path / "m.safetensors"), model="hf-hub:a/b")
    with pytest.raises(ExpertError, match="does not say which model"):
        load_expert("oc", "open_clip", str(tmp_path / "m.safetensors"))
    conv = encoders.encoder("open_clip_conv")
    with pytest.raises(ExpertError, match="is no ViT"):
        encoders.build_expert(encoders.expert_config("oc", "open_clip", conv))


def test_a_checkpoint_with_missing_weights_is_refused(tmp_path):
    path = saved(encoders.expert("clip"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(k for k in weights if "layers.1" in k)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExpertError, match="lacks 1 weights"):
        load_expert("clip", "clip", path)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path):
    path = saved(encoders.expert("siglip"), tmp_path)
    with pytest.raises(ExpertError, match="model type 'siglip"):
        load_expert("clip", "clip", path)


class _Trap:
    """Unpickling this runs code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('the pickle was opened')",)


def test_a_pickle_is_never_opened(tmp_path):
    path = saved(encoders.expert("clip"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weights": _Trap()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ExpertError, match="safetensors"):
        load_expert("clip", "clip", path)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    path = saved(encoders.expert("clip"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(ExpertError, match="model type 'evil'"):
        load_expert("clip", "clip", path)


def test_no_such_folder(tmp_path):
    with pytest.raises(ExpertError, match="nowhere"):
        load_expert("clip", "clip", str(tmp_path / "nowhere"))


# --- the cache ---


def counted(expert):
    """How many images went through the encoder so far, as a list that grows."""
    seen = []
    expert.encoder.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    return seen


@pytest.mark.parametrize("family", ["clip", "sam"])
def test_the_cache_gives_what_the_expert_gives_and_runs_it_once(family, tmp_path):
    expert = encoders.expert(family)
    pixels = encoders.pixels(expert, 3)
    expected = expert(pixels)
    seen = counted(expert)
    cache = FeatureCache(tmp_path)
    cache(expert, pixels[:2])
    again = FeatureCache(tmp_path)(expert, pixels[[1, 2, 0]])
    assert seen == [2, 1]
    assert again.grid == expected.grid
    for name in ("features", "keys", "saliency"):
        torch.testing.assert_close(getattr(again, name), getattr(expected, name)[[1, 2, 0]])
    plain = cache(expert, pixels[:1], scores=False)
    assert plain.saliency is None and seen == [2, 1, 1]


def test_other_weights_or_settings_never_get_the_features(tmp_path):
    expert = encoders.expert("clip")
    pixels = encoders.pixels(expert)
    cache = FeatureCache(tmp_path)
    before = cache(expert, pixels).features
    other = encoders.expert("clip", layer=-1)
    assert not torch.equal(cache(other, pixels).features, before)
    with torch.no_grad():
        expert.encoder.encoder.layers[0].mlp.fc1.weight.add_(0.1)
    changed = cache(expert, pixels).features
    assert not torch.equal(changed, before)
    torch.testing.assert_close(changed, expert(pixels).features)


def test_a_broken_entry_is_made_again_and_says_so(tmp_path):
    expert = encoders.expert("clip")
    pixels = encoders.pixels(expert, 1)
    cache = FeatureCache(tmp_path)
    expected = cache(expert, pixels).features
    (entry,) = tmp_path.rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:40])
    with pytest.warns(UserWarning, match="made again"):
        assert torch.equal(cache(expert, pixels).features, expected)
    assert torch.equal(cache(expert, pixels).features, expected)
    assert len(list(tmp_path.rglob("*.*"))) == 1  # no half-written file is left


def test_trained_experts_are_not_cached(tmp_path):
    expert = encoders.expert("clip", frozen=False)
    with pytest.raises(ExpertError, match="is trained"):
        FeatureCache(tmp_path)(expert, encoders.pixels(expert))
