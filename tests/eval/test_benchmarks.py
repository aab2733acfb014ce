"""TextVQA, POPE, GQA, MME and ScienceQA: prompts, scores, figures, and faults by row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.benchmarks import GQA, MME, POPE, ScienceQA, TextVQA
from eval.samples import Benchmark, DataError, Scored
from tests.eval import fixtures


def scored(benchmark: Benchmark, texts: dict[str, str], default: str = "") -> list[Scored]:
    loaded = benchmark.load()
    assert not loaded.problems
    answers = [(s, texts.get(s.key, default or s.answer)) for s in loaded.samples]
    return [Scored(s, text, benchmark.score(s, text)) for s, text in answers]


SHORT = "\nAnswer the question using a single word or phrase."


def test_textvqa(tmp_path: Path) -> None:
    data, media, ocr = fixtures.textvqa(tmp_path)
    found = scored(TextVQA(data, media), {"34602": "k7.", "34603": "K 7", "34604": "Nokia"})
    # "K 7" was given by 2, "nokia" by 1: whoever is left out, at most so many others agree.
    expected = [1.0, (8 * 2 / 3 + 2 * 1 / 3) / 10, 9 * (1 / 3) / 10]
    assert [s.score.value for s in found] == pytest.approx(expected)
    assert found[0].score.read == "k7"
    assert found[0].sample.prompt == "What does the sign say?" + SHORT
    (with_tokens, *_) = TextVQA(data, media, ocr).load().samples
    assert with_tokens.prompt == "What does the sign say?\nReference OCR token: K7, EXIT" + SHORT


def test_textvqa_without_answers_is_handed_in(tmp_path: Path) -> None:
    data, media, _ = fixtures.textvqa(tmp_path, answers=False)
    benchmark = TextVQA(data, media)
    found = [Scored(s, "The K7", benchmark.score(s, "The K7")) for s in benchmark.load().samples]
    assert [s.score.value for s in found] == [None] * 3
    (path,) = benchmark.export(found, tmp_path)
    assert json.loads(path.read_text())[0] == {"question_id": 34602, "answer": "k7"}


def test_pope(tmp_path: Path) -> None:
    data, media = fixtures.pope(tmp_path)
    benchmark = POPE(data, media)
    # Of 12: 3 right "yes", 3 wrong "yes", 5 right "no", 1 unread in place of a "yes".
    texts = {"random-1": "maybe", "random-2": "No", "popular-2": "No.", "popular-3": "No"}
    found = scored(benchmark, texts, default="Yes")
    assert len(found) == 12
    yes = [s for s in found if s.score.read == "yes"]
    hits = sum(s.sample.answer == "yes" for s in yes)
    figures = benchmark.extra(found)
    assert (len(yes), hits) == (8, 4)
    assert figures == {
        "precision": 4 / 8,
        "recall": 4 / 6,
        "F1": pytest.approx(2 * 0.5 * (4 / 6) / (0.5 + 4 / 6)),
        "yes ratio": 8 / 12,
    }
    assert {s.sample.groups["kind"] for s in found} == {"random", "popular", "adversarial"}
    assert found[0].sample.prompt == "Is there a ring in the image?" + SHORT
    one = POPE(data / "coco_pope_random.json", media).load()
    assert [s.key for s in one.samples] == [f"random-{n}" for n in (1, 2, 3, 4)]


def test_gqa(tmp_path: Path) -> None:
    data, media = fixtures.gqa(tmp_path)
    found = scored(GQA(data, media), {"20100": "Yes.", "20101": "Left", "20102": "shirt"})
    assert [s.score.value for s in found] == [1.0, 1.0, 0.0]
    assert found[0].sample.groups == {"structural": "verify", "semantic": "rel"}
    assert GQA(data, media).score(found[2].sample, "tshirt").value == 1.0


def test_mme(tmp_path: Path) -> None:
    benchmark = MME(fixtures.mme(tmp_path))
    wrong = {"count/0001/1": "Yes", "OCR/0001/0": "No", "OCR/0001/1": "yes", "OCR/0002/0": "what"}
    found = scored(benchmark, wrong)
    assert len(found) == 14 * 2 * 2
    figures = benchmark.extra(found)
    # count: 3 of 4 right, 1 of 2 pictures; OCR: 1 of 4, no picture; every other task 200.
    assert figures["count"] == 75 + 50
    assert figures["OCR"] == 25 + 0
    assert figures["perception"] == 8 * 200 + 125 + 25
    assert figures["cognition"] == 4 * 200
    assert found[0].sample.prompt == "Is there a star?" + SHORT
    assert len({s.sample.cluster for s in found}) == 28


def test_mme_tells_what_is_missing(tmp_path: Path) -> None:
    root = fixtures.mme(tmp_path)
    (root / "count" / "0001.png").unlink()
    (root / "color" / "0002.txt").write_text("Is it red?\tYes\n")
    (root / "position" / "0002.txt").write_text("Is it left?\tYes\nIs it right? No\n")
    (root / "existence").rename(root / "exists")
    loaded = MME(root).load()
    assert {(p.row, p.what.split(":")[0]) for p in loaded.problems} == {
        ("existence", "no such folder"),
        ("count/0001.txt", "no picture 0001 with one of .jpg, .png, .jpeg, .webp"),
        ("color/0002.txt", "1 lines"),
        ("position/0002.txt", "line 2"),
    }
    benchmark = MME(root)
    found = [Scored(s, s.answer, benchmark.score(s, s.answer)) for s in loaded.samples]
    assert "perception" not in benchmark.extra(found)
    with pytest.raises(DataError, match="none of the folders existence, count"):
        MME(tmp_path / "count").load()


def test_scienceqa(tmp_path: Path) -> None:
    data, media = fixtures.scienceqa(tmp_path)
    found = scored(ScienceQA(data, media), {"4": "The answer is B.", "5": "no"})
    assert [(s.sample.key, s.score.value) for s in found] == [("4", 1.0), ("5", 0.0)]
    assert found[0].sample.prompt == (
        "Context: It is round.\nWhich one is it?\nA. circle\nB. ring\nC. star\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert found[1].sample.groups == {"subject": "social science", "grade": "grade 4"}
    with pytest.raises(DataError, match=r"no 'val' in .*; found test, train"):
        ScienceQA(data, media, split="val").load()


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("textvqa", {"image_id": "absent"}, "no file absent.jpg"),
        ("textvqa", {"answers": ["one"]}, "expected a list, of ten people"),
        ("pope", {"label": "maybe"}, "label is 'maybe': expected yes or no"),
        ("gqa", {"imageId": "absent"}, "no file absent.jpg"),
        ("scienceqa", {"answer": 3}, "answer is 3: expected 0 to 2"),
        ("scienceqa", {"choices": ["one"]}, "1 choices: expected 2 to 8"),
    ],
)
def test_faults_are_told_by_row(
    tmp_path: Path, name: str, change: dict[str, object], what: str
) -> None:
    if name == "textvqa":
        data, media, _ = fixtures.textvqa(tmp_path)
        content = json.loads(data.read_text())
        content["data"][0] |= change
        data.write_text(json.dumps(content))
        benchmark: Benchmark = TextVQA(data, media)
    elif name == "pope":
        folder, media = fixtures.pope(tmp_path)
        data = folder / "coco_pope_random.json"
        first, *rest = data.read_text().splitlines()
        data.write_text("\n".join([json.dumps(json.loads(first) | change), *rest]))
        benchmark = POPE(data, media)
    else:
        data, media = getattr(fixtures, name)(tmp_path)
        content = json.loads(data.read_text())
        content[next(iter(content))] |= change
        data.write_text(json.dumps(content))
        benchmark = (GQA if name == "gqa" else ScienceQA)(data, media)
    loaded = benchmark.load()
    (problem,) = loaded.problems
    assert what in problem.what
    assert "1" in problem.row or "4" in problem.row


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    data, media = fixtures.gqa(tmp_path)
    (tmp_path / "bad.json").write_text('{"a": 1}\n{"b": \n')
    for benchmark, what in (
        (GQA(tmp_path / "bad.json", media), "line 2 is not JSON"),
        (GQA(tmp_path / "absent.json", media), "does not exist"),
        (GQA(data, tmp_path / "absent"), "is no folder"),
        (GQA(tmp_path, media), "is a folder, not a file"),
        (POPE(media, media), r"no \*pope\*\.json"),
        (TextVQA(data, media), "no column 'question', 'question_id', 'image_id'"),
    ):
        with pytest.raises(DataError, match=what):
            benchmark.load()
