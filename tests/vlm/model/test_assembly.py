"""Experts put before any causal language model."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from tests.vlm import encoders, models
from tests.vlm.models import ASK
from vlm.embedded import mini
from vlm.model import (
    CheckpointError,
    FoveateForConditionalGeneration,
    FoveateProcessor,
    assemble,
)

LANGUAGE_MODELS = {
    "qwen3": (hf.Qwen3Config, {"head_dim": 16}),
    "gemma2": (hf.Gemma2Config, {"head_dim": 16, "final_logit_softcapping": 0.5}),
    "gemma3": (hf.Gemma3TextConfig, {"head_dim": 16}),
    "phi": (hf.PhiConfig, {}),
    "granite": (hf.GraniteConfig, {"logits_scaling": 3.0}),
    "cohere": (hf.CohereConfig, {"logit_scale": 0.3}),
    "gpt_neox": (hf.GPTNeoXConfig, {}),
    "mixtral": (hf.MixtralConfig, {"num_local_experts": 2}),
    "gpt2": (hf.GPT2Config, {"n_embd": 32, "n_layer": 2, "n_head": 2, "hidden_size": 32}),
}


@pytest.mark.parametrize("name", sorted(LANGUAGE_MODELS))
def test_any_causal_lm(name, tmp_path):
    kind, settings = LANGUAGE_MODELS[name]
    config = models.text_config(kind, **settings)
    causal = encoders.randomise(hf.AutoModelForCausalLM.from_config(config), std=0.2).eval()
    reference = copy.deepcopy(causal)
    tokenizer = mini.build_tokenizer()
    model = assemble(causal, [encoders.expert("clip")], tokenizer)
    ids = torch.randint(5, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    actual = models.logits(model, {"input_ids": ids})[..., : config.vocab_size]
    torch.testing.assert_close(actual, models.logits(reference, {"input_ids": ids}))
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    assert tied == config.tie_word_embeddings == model.config.tie_word_embeddings
    processor = FoveateProcessor.for_model(model.config, tokenizer)
    inputs = processor(images=models.picture(), text=ASK)
    model.save_pretrained(tmp_path)
    again = FoveateForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(models.logits(again, inputs), models.logits(model, inputs))
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied


def test_rope_scaling_is_the_language_models_own(tmp_path):
    scaled = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}
    scaled["original_max_position_embeddings"] = 128
    config = models.text_config(rope_parameters=scaled)
    model, _ = models.build(text=config)
    plain, _ = models.build()
    rotary = model.model.language_model.rotary_emb
    assert rotary.rope_type == "yarn"
    assert not torch.equal(rotary.inv_freq, plain.model.language_model.rotary_emb.inv_freq)
    model.save_pretrained(tmp_path)
    again = FoveateForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.model.language_model.rotary_emb.inv_freq, rotary.inv_freq)


def test_a_language_model_from_a_folder(tmp_path):
    causal = encoders.randomise(hf.LlamaForCausalLM(models.text_config()), std=0.2)
    causal.save_pretrained(tmp_path)
    model = assemble(tmp_path, [encoders.expert("clip")], mini.build_tokenizer())
    weight = model.model.language_model.layers[1].mlp.up_proj.weight
    assert torch.equal(weight, causal.model.layers[1].mlp.up_proj.weight)
    assert not any(w.is_meta for w in [*model.parameters(), *model.buffers()])


def test_placeholders_get_rows_of_their_own():
    words = {word: k for k, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", "<image>", "a"))}
    table = Tokenizer(WordLevel(words, unk_token="<unk>"))
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=table, pad_token="<pad>")
    before = len(tokenizer)
    text = models.text_config(vocab_size=before)
    model = assemble(text, [encoders.expert("clip")], tokenizer)
    assert len(tokenizer) == before + 1  # <image> was there, <video> was not
    assert model.config.image_token_id == 4 and model.config.video_token_id == before
    assert model.get_input_embeddings().num_embeddings == before + 1
    assert model.config.text_config.vocab_size == before + 1
    assert model.lm_head.out_features == before + 1


def test_a_head_that_is_more_than_a_matrix_is_refused():
    causal = hf.LlamaForCausalLM(models.text_config())
    encoders.randomise(causal)

    class Squashed(type(causal)):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.sigmoid()
            return out

    causal.__class__ = Squashed
    with pytest.raises(CheckpointError, match="plain head"):
        assemble(causal, [encoders.expert("clip")], mini.build_tokenizer())
