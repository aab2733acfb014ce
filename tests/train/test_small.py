"""Training of the small judge, on tiny parts and made-up pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Dinov2Config, LlamaConfig, PreTrainedTokenizerFast

from tests.vlm.embedded.collage.folder import make_folder
from train.small.align import Words, align, labels_of, measure
from train.small.export import export
from train.small.features import Features, write
from train.small.learn import answers, ask, learn
from train.small.rows import collate
from train.small.see import learn_to_see
from vlm.embedded.collage import FIELDS, Pictures
from vlm.embedded.small import change
from vlm.experts import expert_config
from vlm.model import assemble


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    return Pictures(make_folder(tmp_path_factory.mktemp("collage")))


def tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|im_start|>", "<|im_end|>", "<image>", "<video>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: place for place, token in enumerate([*special, *alphabet])}
    made = Tokenizer(models.BPE(words, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens(special)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")


def tiny() -> tuple[object, PreTrainedTokenizerFast]:
    words = tokenizer()
    text = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    encoder = Dinov2Config(
        hidden_size=32, num_hidden_layers=11, num_attention_heads=2, image_size=224, patch_size=14
    )
    settings = {"layer": [5, 8, 10], "image_size": (224, 224), "mean": [0.5] * 3, "std": [0.3] * 3}
    expert = expert_config("dino", "dinov2", encoder, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return assemble(text, [expert], words), words


@torch.no_grad()
def test_a_row_gives_each_question_what_it_gets_alone(pictures: Pictures) -> None:
    """Questions behind one picture do not see each other, nor padding."""
    model, words = tiny()
    asked = [ask(pictures, "train", seed, 0)[:3] for seed in (0, 1)]
    features = torch.randn(2, 256, 96, generator=torch.Generator().manual_seed(0))

    def draw() -> torch.Generator:
        return torch.Generator().manual_seed(1)

    together = collate(words, asked, 1, draw())
    logits = answers(model, features, together)
    for number, question in enumerate(q for row in asked for q in row):
        alone = collate(words, [[question]], 1, draw())
        expected = answers(model, features[[number // 3]], alone)
        assert torch.allclose(logits[together.question == number], expected, atol=1e-4)
        assert torch.equal(together.wanted[together.question == number], alone.wanted)


@pytest.mark.slow
def test_all_stages_and_going_on_after_a_stop(
    pictures: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("train.small.learn.compile_layers", lambda model: None)
    model, words = tiny()
    expert, fusion = model.model.experts["dino"], model.model.fusion  # type: ignore[attr-defined]
    features = {s: Features(tmp_path / f"{s}.features", expert.width) for s in ("train", "val")}
    for split, count in (("train", 20), ("val", 8)):
        assert list(write(features[split], expert, pictures, split, count))[-1] == count
    assert list(write(features["train"], expert, pictures, "train", 20)) == []
    expert.float()
    vocabulary = Words(model.get_input_embeddings().weight, words)  # type: ignore[attr-defined]
    align(fusion, vocabulary, features["train"], pictures, 60, tmp_path / "align.log")
    labels = labels_of(pictures, "train", range(20))
    right = measure(fusion, vocabulary, features["train"], labels)
    assert len(right) == len(FIELDS) and right[1] > 0.2  # colours, one of nine
    for steps in (4, 8):
        learn(model, words, features, pictures, tmp_path, steps, save_every=0.0, judged=8)
        with safe_open(tmp_path / "state.safetensors", "pt") as file:
            assert int(file.metadata()["step"]) == steps
            assert any(name.startswith("exp_avg.") for name in file.keys())  # noqa: SIM118
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    judged = [line for line in lines if "right" in line]
    assert judged and judged[-1]["right"]["all"][1] > 40
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


@pytest.mark.slow
def test_the_encoder_learns_goes_on_and_is_exported(pictures: Pictures, tmp_path: Path) -> None:
    def fresh() -> tuple[Any, Words, dict[str, torch.Tensor]]:
        model, words = tiny()
        vocabulary = Words(model.get_input_embeddings().weight, words)  # type: ignore[attr-defined]
        before = {n: p.clone() for n, p in model.model.named_parameters()}  # type: ignore[attr-defined]
        return model, vocabulary, before

    model, words, before = fresh()
    state = learn_to_see(model, words, pictures, 100, 3, tmp_path)
    after = dict(model.model.named_parameters())
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    blocks = {int(name.split("layer.")[1].split(".")[0]) for name in changed if "layer." in name}
    assert blocks == {5, 6, 7, 8, 9}
    assert all(
        name.startswith(("fusion.", "experts.dino.encoder.encoder.layer")) for name in changed
    )
    again, words, _ = fresh()
    learn_to_see(again, words, pictures, 100, 3, tmp_path)  # nothing is left to do
    loaded = dict(again.model.named_parameters())
    assert all(torch.equal(after[name], loaded[name]) for name in after)
    expert = model.model.experts["dino"]
    assert len(expert.encoder.encoder.layer) == 11
    untrained, _, _ = fresh()
    path = tmp_path / "change.safetensors"
    export(untrained, tokenizer(), pictures, [state], path, {})
    laid, _, _ = fresh()
    change.apply(path, dict(laid.model.named_parameters()))
    applied = dict(laid.model.named_parameters())
    for name in changed:
        whole = 0 if name.startswith("fusion.") else before[name]
        error, moved = (applied[name] - after[name]).norm(), (after[name] - whole).norm()
        assert error <= 0.2 * moved + 1e-3, name
