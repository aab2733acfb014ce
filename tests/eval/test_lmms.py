"""The model class for lmms-eval, in that package's own harness, on a tiny local task.

Skipped where lmms-eval is not installed. Asks the task in lmms-eval and in our runner: both must
put the same questions and get the same answers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lmms_eval")

from eval.answerers import ModelAnswerer
from eval.arms import Arm
from eval.benchmarks.embedded import Embedded, write
from eval.lmms import Foveate
from eval.lmms_plugin import manifest
from eval.records import read_records
from eval.runner import run
from vlm.embedded import mini

TASK = """
task: foveate_scenes
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/open.jsonl
test_split: test
output_type: generate_until
doc_to_visual: !function utils.doc_to_visual
doc_to_text: question
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs:
  max_new_tokens: 8
  temperature: 0
  do_sample: false
  until: ["ASSISTANT:"]
metric_list:
  - metric: right
    aggregation: mean
    higher_is_better: true
"""

UTILS = """
from pathlib import Path

from PIL import Image


def doc_to_visual(doc):
    return [Image.open(Path(__file__).parent / doc["image"]).convert("RGB")]


def process_results(doc, results):
    return {"right": float(results[0].strip() == doc["answer"])}
"""


@pytest.fixture
def model_path(tmp_path: Path) -> str:
    model, processor = mini.build()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_a_task_in_lmms_eval_is_the_task_in_our_runner(
    tmp_path: Path, model_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import MODEL_REGISTRY_V2, get_model
    from lmms_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    MODEL_REGISTRY_V2.register_manifest(manifest(), overwrite=True)
    assert get_model("foveate") is Foveate
    folder = tmp_path / "task"
    write(folder, "test", 2)
    (folder / "foveate_scenes.yaml").write_text(TASK.format(folder=folder))
    (folder / "utils.py").write_text(UTILS)
    evaluated: dict[str, Any] = simple_evaluate(
        model="foveate",
        model_args=f"pretrained={model_path},method=duet,budget=48",
        tasks=["foveate_scenes"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        batch_size=2,
        log_samples=True,
        cli_args=None,
    )
    theirs = {
        (s["doc"]["scene"], s["doc"]["category"]): s["filtered_resps"][0]
        for s in evaluated["samples"]["foveate_scenes"]
    }
    samples = Embedded(data=folder / "open.jsonl").load().samples
    arm = Arm("duet", 48)
    import vlm

    answerer = ModelAnswerer(*vlm.load(model_path), "mini")
    run(tmp_path / "ours", samples, answerer, [arm], batch_size=2, progress=False)
    rows = read_records(tmp_path / "ours" / arm.folder)
    ours = {(s.cluster, s.groups["category"]): rows[s.key]["text"] for s in samples}
    assert theirs.keys() == ours.keys()
    assert {k: v.strip() for k, v in theirs.items()} == {k: v.strip() for k, v in ours.items()}
    assert "right,none" in evaluated["results"]["foveate_scenes"]


class Request:
    """One of lmms-eval's, as far as the model class reads it."""

    def __init__(self, content: list[dict[str, Any]], **options: Any) -> None:
        messages = [{"role": "user", "content": content}]
        self.args = ("", lambda doc: messages, options, 0, "task", "test")


def test_what_it_cannot_do_is_refused(model_path: str) -> None:
    model = Foveate(model_path)
    model.task_dict = {"task": {"test": [None]}}
    text = {"type": "text", "text": "What?"}
    for request, what in (
        (Request([text], temperature=0.7), "sampling or beams"),
        (Request([text], num_beams=3), "sampling or beams"),
        (Request([{"type": "audio", "url": "a.wav"}, text]), "audio that foveate cannot read"),
    ):
        with pytest.raises(ValueError, match=what):
            model.generate_until([request])  # type: ignore[list-item]
    with pytest.raises(NotImplementedError, match="generate_until only"):
        model.loglikelihood([])
    for options, error in (
        ({"method": "nothing"}, ValueError),
        ({"method": "duet", "budget": 2.0}, ValueError),
        ({"quality": "high"}, TypeError),
    ):
        with pytest.raises(error):
            Foveate("absent", **options)


def test_texts_end_at_the_stops(model_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.answerers import Reply

    model = Foveate(model_path, method="duet", budget="1/9")
    model.task_dict = {"task": {"test": [None]}}
    assert model.arm == Arm("duet", 1 / 9)
    monkeypatch.setattr(
        model.answerer, "answer", lambda questions, arm, seed: [Reply("red ASSISTANT: blue\nx")]
    )
    request = Request([{"type": "text", "text": "What?"}], until=["ASSISTANT:", "\n"])
    assert model.generate_until([request]) == ["red "]  # type: ignore[list-item]
    assert json.dumps(model.arm.describe())


def test_the_entry_point_names_the_manifest() -> None:
    import tomllib

    path = Path(__file__).parents[2] / "pyproject.toml"
    points = tomllib.loads(path.read_text())["project"].get("entry-points", {})
    if "lmms_eval.models" not in points:
        pytest.skip("the package does not register the entry point")
    assert points["lmms_eval.models"] == {"foveate": "eval.lmms_plugin:manifest"}
