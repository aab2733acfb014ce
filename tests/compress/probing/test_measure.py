"""Probing a model: against forwards with tokens masked by hand, going on, and using the result."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vlm
from compress import Compression, compress
from compress.errors import CompressionError, UnprobedWarning
from compress.methods import Duet
from compress.probing import measure, verdict
from compress.probing.__main__ import main
from compress.probing.fingerprint import key_of
from compress.probing.measure import drawn_prompts, probe
from compress.probing.verdict import Probe
from compress.runtime.stages import allocate
from tests.tiny import CASES
from vlm.embedded import mini
from vlm.families import adapter_of

CASE = next(case for case in CASES if case.name == "llava")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Probes are looked for in an empty folder, and nowhere else."""
    monkeypatch.setattr(verdict, "places", lambda folder=None: [folder or tmp_path])
    monkeypatch.setattr(verdict, "probes_folder", lambda: tmp_path)
    return tmp_path


def prompts(count: int = 2) -> list[dict[str, Any]]:
    return [CASE.inputs([sample]) for sample in CASE.samples()[:count]]


def masked(
    model: Any,
    call: dict[str, Any],
    layer: int,
    hidden: torch.Tensor,
    after: torch.Tensor | None = None,
) -> torch.Tensor:
    """Logits (S, V) where no row of decoder layer `layer` or later sees the `hidden` columns.

    after: the columns that later layers do not see, if these are others.
    """
    handles = []
    for number, module in enumerate(model.model.language_model.layers):
        if number < layer:
            continue
        columns = hidden if number == layer or after is None else after

        def hide(module: Any, args: Any, kwargs: Any, columns: torch.Tensor = columns) -> Any:
            length = args[0].shape[1]
            seen = torch.ones(length, length, dtype=torch.bool).tril() & ~columns
            return args, kwargs | {"attention_mask": (seen | torch.eye(length).bool())[None, None]}

        handles.append(module.register_forward_pre_hook(hide, with_kwargs=True))
    with torch.no_grad():
        logits = model(**call).logits[0]
    for handle in handles:
        handle.remove()
    return logits


def test_effects_are_those_of_masked_tokens(folder: Path) -> None:
    """Dropping tokens equals masking their columns: rows see nothing but what is left."""
    model = CASE.model()
    (inputs,) = prompts(1)
    found = probe(model, None, [inputs], max_new_tokens=5, progress=False)
    row = found.rows[0]
    answer = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    ids = answer[:, :-1]
    call = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    start = inputs["input_ids"].shape[1] - 1
    with torch.no_grad():
        dense = model(**call).logits[0, start:].log_softmax(-1)
    visual = ids[0] == model.config.image_token_id
    places = visual.nonzero().flatten()
    count = len(places)
    left = places[((2 * torch.arange(count // 2) + 1) * count) // (2 * (count // 2))]
    half = visual.clone()
    half[left] = False
    one = visual.clone()
    one[places[count // 2]] = False
    with torch.no_grad():
        changed = masked(model, call, 0, one, one | visual)[start:].log_softmax(-1)
    assert row.gone.kl[0] == pytest.approx(float((dense.exp() * (dense - changed)).sum()), abs=1e-4)
    for effect, hidden in ((row.gone, visual), (row.halved, half)):
        for layer in range(0 if effect is row.halved else 1, found.depth):
            changed = masked(model, call, layer, hidden)[start:].log_softmax(-1)
            kl = (dense.exp() * (dense - changed)).sum()
            assert effect.kl[layer] == pytest.approx(float(kl), abs=1e-4)
            same = (dense.argmax(-1) == changed.argmax(-1)).sum()
            assert effect.agree[layer] == int(same)
    assert row.tokens == answer.shape[1] - inputs["input_ids"].shape[1]


def test_an_interrupted_run_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = CASE.model()
    measured = measure._row
    calls: list[int] = []

    def counted(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measured(*args)

    monkeypatch.setattr(measure, "_row", counted)
    with pytest.raises(KeyboardInterrupt):
        probe(model, None, prompts(), max_new_tokens=2, progress=False)
    with pytest.raises(ValueError, match="not finished: run compress"):
        compress(model, "duet", 8, schedule="probed")
    found = probe(model, None, prompts(), max_new_tokens=2, progress=False)
    assert len(calls) == 3 and len(found.rows) == 2 and found.finished
    assert probe(model, None, prompts(), max_new_tokens=2, progress=False) == found
    assert len(calls) == 3


def test_the_verdict_is_of_the_prompts_that_were_given(folder: Path) -> None:
    """Prompts of an earlier run do not count, and a prompt that is given again is not run again."""
    model, (first, second) = CASE.model(), prompts()
    both = probe(model, None, [first, second], max_new_tokens=2, progress=False)
    one = probe(model, None, [second], max_new_tokens=2, progress=False)
    assert one.rows == both.rows[1:]
    assert Probe.find(one.family, one.fingerprint, folder) == one


def test_the_saved_probe_sets_the_schedule_and_ends_the_warning(folder: Path) -> None:
    model, inputs = CASE.model(), CASE.inputs(CASE.samples()[:1])
    with pytest.warns(UnprobedWarning, match=r"from decoder layer 1 on, .*\(llama-4x32\)"):
        compress(model, "duet", 16).remove()
    with pytest.raises(ValueError, match="model has no saved probe"):
        compress(model, "duet", 16, schedule="probed")
    found = probe(model, None, prompts(), max_new_tokens=2, progress=False)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error", UnprobedWarning)
        compress(model, "duet", 16).remove()
        with compress(model, "duet", 16, schedule="probed") as c:
            model(**inputs)
            got = c.report().reduced.layers
        dense = int((inputs["input_ids"] == model.config.image_token_id).sum())
        assert got == allocate(Duet(), (dense, found.depth), 16, None, found).counts
        with pytest.raises(CompressionError, match="the probe is of a model with 5 decoder layers"):
            compress(model, "duet", 16, schedule=replace(found, depth=5))


def test_nothing_is_left_behind(folder: Path) -> None:
    model = copy.deepcopy(CASE.model()).train()
    model.model.vision_tower.eval()
    modes = [module.training for module in model.modules()]
    probe(model, None, prompts(1), max_new_tokens=2, progress=False)
    assert [module.training for module in model.modules()] == modes
    with compress(model, "random", 8) as c:
        assert isinstance(c, Compression)


def test_a_trained_model_is_another(folder: Path) -> None:
    model = copy.deepcopy(CASE.model())
    before = key_of(adapter_of(model))
    assert key_of(adapter_of(CASE.model())) == before
    with torch.no_grad():
        next(model.parameters()).flatten()[0] += 0.5
    assert key_of(adapter_of(model)) != before
    with pytest.raises(ValueError, match="is not whole on this process"):
        key_of(adapter_of(model.to("meta")))


def test_bad_prompts_are_refused(folder: Path) -> None:
    model = CASE.model()
    with pytest.raises(ValueError, match="samples is empty"):
        probe(model, None, [])
    ids = torch.tensor([[1, 2, 3]])
    words = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with pytest.raises(ValueError, match="no visual token"):
        probe(model, None, [words], progress=False)
    assert not list(folder.iterdir())


def test_pictures_and_questions(folder: Path) -> None:
    """Pairs go through the processor; several pictures make one prompt."""
    model, processor = mini.build()
    (picture, question), (other, _) = drawn_prompts(2)  # type: ignore[misc]
    found = probe(
        model, processor, [([picture, other], question)], max_new_tokens=2, progress=False
    )
    assert found.depth == 4 and found.rows[0].tokens == 2


def test_from_the_command_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(vlm, "load", lambda name: mini.build())
    out = folder / "out" / "probe.png"
    command = ["--samples", "1", "--max-new-tokens", "2", "--out", str(out)]
    assert main([*command, "--folder", str(folder / "saved")]) == 0
    assert "1 prompts, 2 answer tokens" in capsys.readouterr().out
    assert out.is_file() and len(list((folder / "saved").iterdir())) == 1
    assert main(["--samples", "0"]) == 1
    assert "--samples is 0" in capsys.readouterr().err


def test_the_embedded_model_was_probed() -> None:
    """Its verdict comes with the package: mini reads its visual tokens in its first layers."""
    model, _ = vlm.load("mini")
    found = verdict.probe_of("probed", adapter_of(model))
    assert isinstance(found, Probe) and found.horizon < found.depth == 4
