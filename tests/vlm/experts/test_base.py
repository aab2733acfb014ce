"""Every encoder family against its stock class: features, keys, saliency from real attention."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from torch import nn

from tests.vlm import encoders
from vlm.attention import heads
from vlm.experts import ExpertError, build_expert, expert_config

CLASSES = {
    "clip": hf.CLIPVisionModel,
    "siglip": hf.SiglipVisionModel,
    "siglip2": hf.Siglip2VisionModel,
    "dinov2": hf.Dinov2Model,
    "mae": hf.ViTMAEModel,
    "sam": hf.SamVisionModel,
    "layoutlmv3": hf.LayoutLMv3Model,
}
RECEIVED = ("siglip", "siglip2", "sam")


def stock(expert):
    """The same weights in the stock class with eager attention, and its outputs."""
    family = expert.config.family
    config = copy.deepcopy(expert.encoder.config)
    config._attn_implementation = "eager"
    model = CLASSES[family](config).eval()
    model.load_state_dict(expert.encoder.state_dict())
    pixels = encoders.pixels(expert)
    extra = {}
    if family == "mae":
        count = expert.grid[0] * expert.grid[1]
        extra["noise"] = torch.arange(count, dtype=torch.float32).expand(2, -1)
    if family == "siglip2":
        count = expert.grid[0] * expert.grid[1]
        extra["pixel_attention_mask"] = torch.ones(2, count, dtype=torch.long)
        extra["spatial_shapes"] = torch.tensor([list(expert.grid)] * 2)
        pixels = _patches(pixels, config.patch_size)
    with torch.no_grad():
        return model(
            pixel_values=pixels, output_attentions=True, output_hidden_states=True, **extra
        )


def _patches(pixels, size):
    """Patch by patch, pixel by pixel, channels last: written out."""
    rows = []
    for image in pixels:
        patches = []
        for top in range(0, image.shape[1], size):
            for left in range(0, image.shape[2], size):
                patch = image[:, top : top + size, left : left + size]
                patches.append(patch.permute(1, 2, 0).flatten())
        rows.append(torch.stack(patches))
    return torch.stack(rows)


@pytest.mark.parametrize("family", sorted(CLASSES))
def test_last_features_are_the_towers_own(family):
    expert = encoders.expert(family, layer="last")
    output = expert(encoders.pixels(expert))
    expected = stock(expert).last_hidden_state
    if family == "sam":
        expected = expected.flatten(2).mT
    prefix = expected.shape[1] - output.features.shape[1]
    torch.testing.assert_close(output.features, expected[:, prefix:], atol=2e-5, rtol=1e-4)
    assert output.features.shape == (2, expert.grid[0] * expert.grid[1], expert.width)
    assert output.grid == expert.grid


@pytest.mark.parametrize("family", sorted(set(CLASSES) - {"layoutlmv3"}))
@pytest.mark.parametrize("layer", [-2, 1, [-1, -3]])
def test_layers_are_the_hidden_states_of_that_index(family, layer):
    expert = encoders.expert(family, layer=layer)
    output = expert(encoders.pixels(expert), scores=False)
    states = stock(expert).hidden_states
    chosen = [states[i] for i in ([layer] if isinstance(layer, int) else layer)]
    expected = torch.cat(chosen, dim=-1)
    if family == "sam":
        expected = expected.flatten(1, 2)
    prefix = expected.shape[1] - output.features.shape[1]
    torch.testing.assert_close(output.features, expected[:, prefix:], atol=2e-5, rtol=1e-4)
    assert output.features.shape[-1] == expert.width
    assert output.keys is None and output.saliency is None


@pytest.mark.parametrize("family", sorted(CLASSES))
def test_saliency_is_the_attention_of_the_scoring_layer(family):
    expert = encoders.expert(family)
    if family not in ("sam", "layoutlmv3"):  # SAM has sdpa by class, LayoutLMv3 eager alone
        assert expert.encoder.config._attn_implementation == "sdpa"
    output = expert(encoders.pixels(expert))
    maps = stock(expert).attentions[expert.config.scoring_layer]
    if family == "sam":
        count = expert.grid[0] * expert.grid[1]
        maps = maps.view(2, -1, count, count)
    mean = maps.mean(1)
    expected = mean.mean(1) if family in RECEIVED else mean[:, 0, 1:]
    torch.testing.assert_close(output.saliency, expected, atol=1e-6, rtol=1e-4)
    assert output.saliency.std() > 1e-3  # a flat map would agree with anything


def test_layoutlmv3_biases_count():
    """Relative positions are part of LayoutLMv3's attention."""
    config = encoders.encoder("layoutlmv3")
    assert config.has_relative_attention_bias and config.has_spatial_attention_bias


@pytest.mark.parametrize("family", ["clip", "dinov2", "sam"])
@pytest.mark.parametrize("rows", [1, 7])
def test_received_saliency_in_parts_is_the_whole(family, rows, monkeypatch):
    expert = encoders.expert(family, saliency="received")
    pixels = encoders.pixels(expert)
    whole = expert(pixels).saliency
    count = expert.grid[0] * expert.grid[1]
    monkeypatch.setattr(heads, "LOGITS", rows * 2 * 2 * (count + 1))
    torch.testing.assert_close(expert(pixels).saliency, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(CLASSES))
def test_keys_are_the_head_mean_of_the_scoring_layers_keys(family):
    expert = encoders.expert(family)
    caught = []
    layer = expert.family.layers(expert.encoder)[expert.config.scoring_layer]
    names = {"sam": "attn.qkv", "layoutlmv3": "attention.self.key", "dinov2": "attention.k_proj"}
    name = names.get(family, "attention.k_proj" if family == "mae" else "self_attn.k_proj")
    handle = layer.get_submodule(name).register_forward_hook(lambda m, a, o: caught.append(o))
    output = expert(encoders.pixels(expert))
    handle.remove()
    keys = caught[0].flatten(1, -2)
    keys = keys[..., 16:32] if family == "sam" else keys
    expected = (keys[..., :8] + keys[..., 8:]) / 2
    prefix = expected.shape[1] - output.keys.shape[1]
    torch.testing.assert_close(output.keys, expected[:, prefix:])


def test_mae_sees_every_patch_in_order():
    """mask_ratio 0.75 in the checkpoint, and a random order by default: neither reaches us."""
    expert = encoders.expert("mae")
    pixels = encoders.pixels(expert)
    output = expert(pixels)
    assert output.features.shape[1] == 16
    torch.testing.assert_close(expert(pixels).features, output.features)
    assert expert.encoder.config.mask_ratio == 0


def test_open_clip_vit_against_its_own_attention():
    expert = encoders.expert("open_clip", layer=-1, scoring_layer=-2)
    pixels = encoders.pixels(expert)
    caught = {}
    block = expert.encoder.transformer.resblocks[-2]
    block.attn.register_forward_pre_hook(lambda m, a: caught.update(x=a[0]))
    last = expert.encoder.transformer.resblocks[-1]
    last.register_forward_hook(lambda m, a, o: caught.update(y=o))
    output = expert(pixels)
    x = caught["x"]
    maps = block.attn(x, x, x, need_weights=True, average_attn_weights=True)[1]
    torch.testing.assert_close(output.saliency, maps[:, 0, 1:], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(output.features, caught["y"][:, 1:])
    key = nn.functional.linear(x, block.attn.in_proj_weight, block.attn.in_proj_bias)[..., 16:32]
    torch.testing.assert_close(output.keys, ((key[..., :8] + key[..., 8:]) / 2)[:, 1:])


def test_open_clip_last_features_are_what_the_pooled_token_is_made_from():
    expert = encoders.expert("open_clip", layer="last")
    pixels = encoders.pixels(expert)
    encoder = expert.encoder
    encoder.output_tokens = True
    torch.testing.assert_close(expert(pixels).features, encoder(pixels)[1])


def test_timm_vit_of_open_clip_against_its_own_attention():
    from vlm.experts import open_clip

    vision = {"timm_model_name": "test_vit", "timm_pool": "token", "image_size": 160}
    config = open_clip.configuration({"embed_dim": 8, "vision_cfg": vision})
    expert = encoders.randomise(build_expert(expert_config("t", "open_clip", config))).eval()
    pixels = encoders.pixels(expert)
    caught = {}
    attn = expert.encoder.trunk.blocks[-2].attn
    attn.register_forward_pre_hook(lambda m, a: caught.update(x=a[0]))
    output = expert(pixels)
    qkv = attn.qkv(caught["x"]).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key = attn.q_norm(qkv[0]), attn.k_norm(qkv[1])
    maps = (query @ key.mT * attn.scale).softmax(-1).mean(1)
    torch.testing.assert_close(output.saliency, maps[:, 0, 1:], atol=1e-6, rtol=1e-4)
    assert output.features.shape == (2, 100, expert.width)


def test_convnext_gives_its_last_stage_and_norms():
    expert = encoders.expert("open_clip_conv")
    pixels = encoders.pixels(expert)
    output = expert(pixels)
    trunk = expert.encoder.trunk
    stage = trunk.stages(trunk.stem(pixels)).flatten(2).mT
    torch.testing.assert_close(output.keys, stage)
    torch.testing.assert_close(output.saliency, stage.norm(dim=-1))
    torch.testing.assert_close(output.features, trunk.forward_features(pixels).flatten(2).mT)
    assert output.grid == (2, 2)


@pytest.mark.parametrize("family", encoders.FAMILIES)
def test_no_hook_is_left_and_scores_cost_nothing_in_the_features(family):
    expert = encoders.expert(family)
    pixels = encoders.pixels(expert)
    plain, scored = expert(pixels, scores=False), expert(pixels)
    assert torch.equal(plain.features, scored.features)
    for module in expert.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert not scored.keys.requires_grad and not scored.saliency.requires_grad


@pytest.mark.parametrize("family", encoders.FAMILIES)
def test_frozen_or_trained(family):
    frozen = encoders.expert(family).train()
    output = frozen(encoders.pixels(frozen))
    assert not output.features.requires_grad
    assert not any(w.requires_grad for w in frozen.parameters())
    assert frozen.training and not frozen.encoder.training
    trained = encoders.expert(family, frozen=False).train()
    assert trained.encoder.training
    trained(encoders.pixels(trained)).features.square().mean().backward()
    assert sum(w.grad is not None and w.grad.abs().sum() > 0 for w in trained.parameters()) > 5


@pytest.mark.parametrize("family", ["clip", "siglip", "siglip2", "dinov2", "mae"])
def test_another_resolution(family):
    expert = encoders.expert(family, image_size=(24, 16))
    assert expert.grid == (6, 4)
    assert expert(encoders.pixels(expert)).features.shape == (2, 24, 16)


@pytest.mark.parametrize("family", encoders.FAMILIES)
def test_copies_and_dicts_build_the_same_expert(family):
    expert = encoders.expert(family)
    again = build_expert(expert.config.to_dict())
    again.load_state_dict(expert.state_dict())
    pixels = encoders.pixels(expert)
    expected = expert(pixels)
    for other in (again.eval(), copy.deepcopy(expert)):
        assert torch.equal(other(pixels).features, expected.features)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer": 0}, "layer=0"),
        ({"layer": -9}, "layer=-9"),
        ({"scoring_layer": 7}, "scoring_layer=7"),
        ({"name": "a.b"}, "identifier"),
        ({"fit": "stretch"}, "fit='stretch'"),
        ({"max_tiles": 0}, "max_tiles=0"),
        ({"wrong": 1}, "wrong"),
    ],
)
def test_settings_that_make_no_sense(settings, words):
    with pytest.raises(ExpertError, match=words):
        build_expert(expert_config(**{"name": "e", **_clip(), **settings}))


def _clip():
    return {"family": "clip", "encoder": encoders.encoder("clip")}


def test_what_a_family_cannot_do_is_said():
    with pytest.raises(ExpertError, match="no class token"):
        encoders.expert("siglip", saliency="cls")
    with pytest.raises(ExpertError, match="own size"):
        encoders.expert("sam", image_size=(64, 64))
    with pytest.raises(ExpertError, match="global_attn_indexes"):
        expert = encoders.expert("sam", scoring_layer=0)
        expert(encoders.pixels(expert))
    with pytest.raises(ExpertError, match="expected one of clip"):
        expert_config("e", "vgg", {})
    expert = encoders.expert("clip")
    with pytest.raises(ExpertError, match=r"expected \(B, 3, 16, 16\)"):
        expert(torch.zeros(1, 3, 8, 8))
