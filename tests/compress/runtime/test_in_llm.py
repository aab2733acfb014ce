"""In-LLM reductions, on models of two kinds of positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from compress import CompressionError, compress
from compress.budget import Allocation
from compress.methods import (
    DART,
    Cascade,
    FastV,
    Foveate,
    Method,
    PyramidDrop,
    SparseVLM,
    ToMe,
)
from compress.tokens import LayerTokens, Reduction
from tests import reference
from tests.compress.common import CLOSE, NEW, answer, duet
from tests.marks import later
from tests.tiny import CASES, Case

HOSTS = [case for case in CASES if case.name in ("llava", "qwen3_vl")]
METHODS: dict[str, Method] = {
    "last": PyramidDrop(layers=(1, 2, 3)),
    "all": PyramidDrop(layers=(1, 3), ratio=0.4, query="all"),
    "salient": duet(query="salient"),
    "previous": FastV(),
    "recycled": SparseVLM(layers=(1, 3), counts=(0.7, 0.3)),
    "keys": DART(visual=2, text=2),
    "merged": Cascade(layers=(1, 2, 3), ratio=0.6),
    "merged in the LLM": Cascade(pre_llm=False, layers=(1, 3)),
    "prior": PyramidDrop(layers=(1, 3), score="prior", query="all"),
    "prior, previous": FastV(score="prior"),
    "random": duet(score="random"),
    "change": PyramidDrop(layers=(1, 3), score="change"),
    "biased": ToMe(proportional_attention=True),
    "biased, in stages": Foveate(relevant=0.0, purity=0.0, layers=(0.25, 0.75), ratios=(0.6, 0.3)),
}
each_host = pytest.mark.parametrize(
    "case", [HOSTS[0], *later(HOSTS[1])], ids=lambda case: case.name
)


@each_host
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
def test_equals_a_full_forward(case: Case, name: str, attention: str) -> None:
    """Query rules, the layer that scores, keys, merging and recycling, the bias by size."""
    model, method, samples = case.model(attention), METHODS[name], case.samples()
    with compress(model, method, budget=0.4) as c:
        together = answer(model, case.inputs(samples))
        sizes = [reduction.size for _, _, reduction in c.steps(0)]
    if name in ("recycled", "merged", "merged in the LLM", "biased", "biased, in stages"):
        assert int(sizes[-1].max()) > 1
    for row, sample in enumerate(samples):
        with torch.no_grad():
            prefix = reference.reduce_prompt(model, case, method, 0.4, sample)
            ids, logits = reference.greedy(model, prefix, NEW)
        actual = torch.stack(together.logits, 1)[row]
        torch.testing.assert_close(actual, logits, **CLOSE)
        assert torch.equal(together.sequences[row, -NEW:], ids)


def test_each_score_keeps_others() -> None:
    """Else the comparison above would not see which one ranks."""
    case = HOSTS[0]
    kept = []
    for score in ("attention", "prior", "random", "change"):
        with compress(case.model(), PyramidDrop(layers=(2,), score=score), budget=0.7) as c:
            answer(case.model(), case.inputs(case.samples()[:1]))
        kept.append(c.steps(0)[-1][2].anchor.tolist())
    assert all(a != b for i, a in enumerate(kept) for b in kept[:i])


def test_draws_follow_the_generator() -> None:
    case, kept = HOSTS[0], []
    for seed in (1, 1, 2):
        draw = torch.Generator().manual_seed(seed)
        method = PyramidDrop(layers=(2,), score="random")
        with compress(case.model(), method, budget=0.7, generator=draw) as c:
            answer(case.model(), case.inputs(case.samples()[:1]))
        kept.append(c.steps(0)[-1][2].anchor.tolist())
    assert kept[0] == kept[1] != kept[2]


def test_a_score_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="score is 'best'; expected 'attention', 'prior'"):
        PyramidDrop(score="best")


def test_a_bias_by_size_changes_what_is_said() -> None:
    """Else the comparison above would not see it."""
    model, given = HOSTS[0].model(), HOSTS[0].inputs(HOSTS[0].samples())
    logits = []
    for proportional_attention in (False, True):
        with compress(model, ToMe(proportional_attention=proportional_attention), budget=16):
            logits.append(answer(model, given).logits[-1])
    assert not torch.allclose(*logits, atol=1e-3)


def test_a_bias_that_attention_cannot_take_is_refused() -> None:
    model = HOSTS[0].fresh(depth=2)
    model.model.language_model.config._attn_implementation = "flex_attention"
    with pytest.raises(CompressionError, match=r"flex_attention.*log\(size\).*sdpa"):
        compress(model, ToMe(proportional_attention=True), budget=16)
    compress(model, ToMe(), budget=16).remove()
    compress(model, Foveate(proportional_attention=None), budget=16).remove()


@dataclass(frozen=True)
class Probe(Method):
    """Keeps what it is handed, and the first tokens."""

    in_llm_only: ClassVar[bool] = True
    in_llm_needs: ClassVar[frozenset[str]] = frozenset({"scores", "keys", "text", "text_keys"})
    schedules: tuple[tuple[int, int], ...] = ((2, 20),)
    query: str = "all"
    seen: tuple[list[LayerTokens], ...] = ([],)

    @property
    def query_rows(self) -> str:
        return self.query

    def allocate(self, dense: int, depth: int, budget: int | float) -> Allocation:
        return Allocation(dense, depth, dense, self.schedules)

    def select_in_llm(self, tokens: LayerTokens, count: int, generator: Any) -> Reduction:
        self.seen[0].append(tokens)
        keep = torch.arange(count).expand(len(tokens.hidden), -1)
        chosen = tokens.hidden[:, :count]
        assign = torch.full(tokens.anchor.shape, -1)
        assign[:, :count] = keep
        return Reduction(chosen, assign, keep, tokens.size[:, :count])


def test_answers_rank_nothing() -> None:
    """With labels, or several logits to keep, what the model is to say asks no question."""
    case = HOSTS[0]
    model, sample = case.model(), case.sample((3, ("image", "a"), 9))
    given = case.inputs([sample])
    labels = sample.ids.clone()[None]
    labels[:, :-4] = -100
    shown: dict[str, Tensor] = {}
    for name, options in {"labels": {"labels": labels}, "ahead": {"logits_to_keep": 5}}.items():
        probe = Probe(seen=([],))
        with torch.no_grad(), compress(model, probe, budget=1.0):
            model(**given, **options)
        (tokens,) = probe.seen[0]
        assert tokens.need("text").shape[1] == 5  # of 9
        shown[name] = tokens.need("scores")
    torch.testing.assert_close(shown["labels"], shown["ahead"])
    short = sample.ids[:-4]
    probe = Probe(seen=([],))
    with torch.no_grad(), compress(model, probe, budget=1.0):
        model(input_ids=short[None], pixel_values=given["pixel_values"])
    torch.testing.assert_close(probe.seen[0][0].need("scores"), shown["labels"], **CLOSE)


def test_in_training_the_token_before_an_answer_asks() -> None:
    case = HOSTS[0]
    model, sample = case.model(), case.sample((3, ("image", "a"), 9))
    labels = sample.ids.clone()[None]
    labels[:, :-6] = -100
    labels[:, -3] = -100  # two answers
    probes = [Probe(seen=([],), query="last") for _ in range(3)]
    with torch.no_grad():
        with compress(model, probes[0], budget=1.0):
            model(**case.inputs([sample]), labels=labels)
        for probe, length in zip(probes[1:], (-6, -2), strict=True):
            with compress(model, probe, budget=1.0):
                ids = sample.ids[:length][None]
                model(input_ids=ids, pixel_values=case.inputs([sample])["pixel_values"])
    both, first, second = (probe.seen[0][0].need("scores") for probe in probes)
    torch.testing.assert_close(both, (first + second) / 2, **CLOSE)
