"""A scorer of visual tokens: its selection, its training and its file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress import compress
from compress.methods import Learned, get_method
from compress.methods.scorer import Scorer, load_scorer, save_scorer
from compress.parse import parse_method
from tests.compress.common import CLOSE, logits_of
from tests.tiny import CASES
from tests.train import small
from train.dryrun import dry_run
from train.fields import RecipeError
from train.recipe import ScorerSettings
from train.run import train
from train.scoring import NAME, SoftSelection, log_shares

LLAVA = next(case for case in CASES if case.name == "llava")
GEMMA = next(case for case in CASES if case.name == "gemma3")
SCORER = ["learning_rate=null", "learning_rate.scorer=1e-2", "scorer.hidden=16"]


def test_shares_sum_to_the_count_and_gradients_know_of_it() -> None:
    scores = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores.requires_grad_()
    for temperature in (1.0, 0.1):
        shares = log_shares(scores, 5, temperature).exp()
        torch.testing.assert_close(float(shares.detach().sum()), 5.0)
    assert torch.autograd.gradcheck(lambda x: log_shares(x, 5, 0.4), scores)
    (gradient,) = torch.autograd.grad(log_shares(scores, 5, 0.4).exp().sum(), scores)
    assert gradient.abs().max() < 1e-9  # the sum does not depend on the scores
    hard = log_shares(scores, 5, 1e-4).exp()
    assert sorted(hard.topk(5).indices.tolist()) == sorted(scores.topk(5).indices.tolist())


def said(model: Any, given: dict[str, Any]) -> torch.Tensor:
    """Logits of the text after the picture."""
    with torch.no_grad():
        return model(**given).logits[:, -7:]


def at(step: int, steps: int = 10) -> Any:
    return SimpleNamespace(global_step=step, max_steps=steps)


def test_the_hard_selection_is_what_the_method_does(tmp_path: Path) -> None:
    model, given = LLAVA.fresh(), LLAVA.inputs([LLAVA.sample((3, ("image", "a"), 7))])
    settings = ScorerSettings(hidden=16, budgets=(0.25,))
    plain = said(model, given)
    soft = SoftSelection(model, settings, seed=0)
    assert all(NAME in name for name, x in model.named_parameters() if "scorer" in name)
    soft.on_step_begin(None, at(10), None)
    hard = said(model, given)
    soft.on_step_begin(None, at(0), None)
    half = said(model, given)
    half.sum().backward() if half.requires_grad else None
    save_scorer(soft.scorer, tmp_path)
    soft.remove()
    assert torch.equal(said(model, given), plain)
    with compress(model, "learned", 0.25, scorer=str(tmp_path)):
        torch.testing.assert_close(said(model, given), hard, **CLOSE)
    assert not torch.allclose(half, hard) and not torch.allclose(half, plain)


@pytest.mark.parametrize("step", [0, 9])
def test_gradients_reach_the_scorer_alone(step: int) -> None:
    model, given = LLAVA.fresh(), LLAVA.inputs(LLAVA.samples()[:1])
    model.requires_grad_(False)
    soft = SoftSelection(model, ScorerSettings(hidden=16), seed=0)
    soft.on_step_begin(None, at(step), None)
    model(**given).logits[:, -1].square().sum().backward()
    gradients = [x.grad for x in soft.scorer.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)
    assert any(float(g.abs().max()) > 0 for g in gradients if g is not None)
    soft.remove()


@pytest.mark.slow
def test_a_recipe_trains_and_saves_the_scorer(tmp_path: Path) -> None:
    facts = train(small.recipe(tmp_path, *SCORER))
    output = Path(facts["recipe"]["output"])
    assert {"scorer.safetensors", "scorer.json"} <= {path.name for path in output.iterdir()}
    assert not list(output.glob("model*.safetensors"))
    scorer = load_scorer(output)
    assert scorer.hidden == 16
    fresh = Scorer(scorer.width, 16)
    assert not torch.equal(fresh.layers[0].weight, scorer.layers[0].weight)
    again = load_scorer(
        train(small.recipe(tmp_path, *SCORER, f"output={tmp_path / 'b'}"))["recipe"]["output"]
    )
    assert torch.equal(again.layers[0].weight, scorer.layers[0].weight)


def test_a_dry_run_tells_the_scorer(tmp_path: Path) -> None:
    assert "group" in (told := dry_run(small.recipe(tmp_path, *SCORER)))
    assert "scorer" in told.partition("groups")[2]


def test_recipes_that_contradict_themselves(tmp_path: Path) -> None:
    for wrong, words in (
        (["learning_rate.scorer=1e-3", "scorer.hidden=16"], "all else frozen"),
        (["learning_rate=null", "learning_rate.scorer=1e-3"], "go together"),
        ([*SCORER, "compress.method=duet"], "leave out compress"),
        ([*SCORER, "data.packing=true"], "leave out data.packing"),
    ):
        with pytest.raises(RecipeError, match=words):
            small.recipe(tmp_path, *wrong)
    with pytest.raises(RecipeError, match="of several kinds"):
        SoftSelection(GEMMA.model(), ScorerSettings(), 0)


def test_bad_scorers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder with"):
        Learned(str(tmp_path))
    with pytest.raises(ValueError, match="a pickle, which can run code"):
        Learned(str(tmp_path / "scorer.pt"))
    save_scorer(Scorer(8, 4), tmp_path)
    assert parse_method(f"learned(scorer={str(tmp_path)!r})") == Learned(str(tmp_path))
    with (
        compress(LLAVA.model(), "learned", 0.5, scorer=str(tmp_path)),
        pytest.raises(ValueError, match="made for 8 channels, and the visual tokens have 32"),
    ):
        logits_of(LLAVA.model(), LLAVA.inputs(LLAVA.samples()))
    (tmp_path / "scorer.safetensors").write_bytes(b"\x80\x04nonsense")
    with pytest.raises(ValueError, match=r"scorer .*: "):
        Learned(str(tmp_path))
    with pytest.raises(TypeError, match="scorer"):
        compress(LLAVA.model(), "duet", 0.5, scorer=str(tmp_path))
    with pytest.raises(TypeError, match="options go with a name"):
        get_method(get_method("duet"), text_query="all")
