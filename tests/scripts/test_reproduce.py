"""The table of several benchmarks: the figures of papers, and their mean share of dense."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks import GQA, MME, POPE, parse_benchmark
from scripts.reproduce import main, mean_share, published
from tests.eval import fixtures
from tests.eval.fixtures import scored


def test_published_figures_follow_from_sums_over_clusters(tmp_path: Path) -> None:
    pope = POPE(*fixtures.pope(tmp_path))
    texts = {"random-1": "maybe", "random-2": "No", "popular-2": "No.", "popular-3": "No"}
    answers = scored(pope, texts, default="Yes")
    assert published(pope, pope.sums(answers)) == pytest.approx(100 * pope.extra(answers)["F1"])
    mme = MME(fixtures.mme(tmp_path / "mme"))
    answers = scored(mme, {"count/0001/1": "Yes", "OCR/0001/0": "No", "OCR/0001/1": "yes"})
    figures = mme.extra(answers)
    total = figures["perception"] + figures["cognition"]
    assert published(mme, mme.sums(answers)) == pytest.approx(total)


def test_the_mean_share_draws_the_same_clusters_for_both() -> None:
    benchmark = GQA(Path())
    dense = {str(n): {"right": float(n % 2), "asked": 1.0} for n in range(40)}
    assert mean_share([(benchmark, dense, dense)], 0) == {"mean": 1.0, "low": 1.0, "high": 1.0}
    half = {key: {"right": row["right"] / 2, "asked": 1.0} for key, row in dense.items()}
    for seed in (0, 1):
        assert mean_share([(benchmark, dense, half)], seed)["low"] == pytest.approx(0.5)
    both = mean_share([(benchmark, dense, dense), (benchmark, dense, half)], 0)
    assert both["mean"] == pytest.approx(0.75)
    other = {key: {"right": float(int(key) < 20), "asked": 1.0} for key in dense}
    found = mean_share([(benchmark, dense, other)], 0)
    assert found["low"] < 0.9 < found["mean"] == 1.0 < 1.1 < found["high"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("pop:data=x", "benchmark 'pop': expected one of mmbench"),
        ("pope:date=x", "'date=x' is no option: expected data, media, each as key=value"),
        ("pope", "data is missing, as in pope:data=..."),
        ("embedded:scenes=many", "scenes is 'many'; expected int"),
        ("mmbench:data=x,circular=1", "circular is '1'; expected true or false"),
    ],
)
def test_a_wrong_benchmark_is_one_sentence(text: str, wanted: str) -> None:
    with pytest.raises(ValueError, match=r"benchmark") as error:
        parse_benchmark(text)
    assert wanted in str(error.value)


def test_bad_rows_end_the_command(tmp_path: Path, capsys: Any) -> None:
    data, media = fixtures.pope(tmp_path)
    fixtures.change_first(data / "coco_pope_random.json", {"label": "maybe"})
    assert main(["--benchmark", f"pope:data={data},media={media}"]) == 2
    assert "1 rows cannot be used, the first is coco_pope_random.json" in capsys.readouterr().err


@pytest.mark.slow
def test_two_benchmarks_side_by_side(tmp_path: Path) -> None:
    data, media = fixtures.pope(tmp_path)
    given = ["--benchmark", f"pope:data={data},media={media}"]
    given += ["--benchmark", "embedded:scenes=2,clips=0", "--methods", "duet,downsample"]
    given += ["--budgets", "1/9", "--work", str(tmp_path / "raw"), "--output", str(tmp_path)]
    assert main(given) == 0
    found = json.loads((tmp_path / "reproduce.json").read_text())
    assert set(found["benchmarks"]) == {"pope", "embedded"}
    for row in found["benchmarks"].values():
        assert set(row["published"]) == {"dense", "duet 0.1111", "downsample 0.1111"}
    assert set(found["shares"]) == {"duet 0.1111", "downsample 0.1111"}
    page = (tmp_path / "reproduce.md").read_text()
    assert "| duet 0.1111 | 16.2 | 26.0 |" in page and "## pope: 12 questions" in page
    assert "pope is not in the mean share" in page  # the judge never says yes
    assert (tmp_path / "reproduce.png").stat().st_size > 5000
    answers = {path: path.read_bytes() for path in tmp_path.rglob("results-*.jsonl")}
    assert main(given) == 0
    assert answers == {path: path.read_bytes() for path in answers}  # not asked again
