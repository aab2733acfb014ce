"""MMBench: prompts, rolls, scoring, the submission file, and every fault of a file by its row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest

from eval.benchmarks.mmbench import ROLL, MMBench
from eval.samples import DataError, Sample, Score, Scored, first
from tests.eval.fixtures import HEAD, mmbench_rows, picture, rolls, write_tsv


def written(folder: Path, rows: list[dict[str, Any]], **options: Any) -> MMBench:
    return MMBench(write_tsv(folder / "dev.tsv", rows), **options)


def answered(benchmark: MMBench, samples: list[Sample], texts: dict[str, str]) -> list[Scored]:
    """`texts` by key; where a key is missing, the right letter."""
    given = [(s, texts.get(s.key, s.answer or "A")) for s in samples]
    return [Scored(s, text, benchmark.score(s, text)) for s, text in given]


def test_prompts_of_the_styles(tmp_path: Path) -> None:
    rows = mmbench_rows(tmp_path)
    path = write_tsv(tmp_path / "dev.tsv", rows)
    prompts = {
        style: [s.prompt for s in MMBench(path, circular=False, style=style).load().samples]
        for style in ("llava", "vlmevalkit", "lmms", "question")
    }
    ask = 'Which one is "shown", {a} or b?'
    assert prompts["llava"][:2] == [
        f"Look\nclosely.\n{ask} (0)\nA. circle\nB. square\nC. star\nD. None\n"
        "Answer with the option's letter from the given choices directly.",
        f"{ask} (1)\nA. circle\nB. square\nC. star\n"
        "Answer with the option's letter from the given choices directly.",
    ]
    assert prompts["vlmevalkit"][:2] == [
        f"Hint: Look\nclosely.\nQuestion: {ask} (0)\nOptions:\nA. circle\nB. square\nC. star\n"
        "D. None\nPlease select the correct answer from the options above. \n",
        f"Question: {ask} (1)\nOptions:\nA. circle\nB. square\nC. star\n"
        "Please select the correct answer from the options above. \n",
    ]
    assert prompts["lmms"][1] == (
        f"{ask} (1) There are several options:\nA. circle\nB. square\nC. star\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert prompts["question"][:2] == [f"Look\nclosely.\n{ask} (0)", f"{ask} (1)"]


def test_what_is_said_for_an_option(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "dev.tsv", mmbench_rows(tmp_path))
    assert all(not sample.spoken for sample in MMBench(path).load().samples)
    rolled = MMBench(path, style="question").load().samples
    assert len({sample.spoken for sample in rolled}) > len({len(s.options) for s in rolled})
    assert all(sample.spoken == tuple(sample.options.values()) for sample in rolled)


def test_chinese_file(tmp_path: Path) -> None:
    rows = mmbench_rows(tmp_path, chinese=True)
    samples = written(tmp_path, rows, circular=False, style="llava_cn").load().samples
    assert samples[1].prompt == (
        "图中有什么 (1)\nA. 一个圆\nB. 正方形\nC. 星\n请直接回答选项字母。"
    )
    assert written(tmp_path, rows).score(samples[1], "答案是C。").value == 1.0
    assert written(tmp_path, rows).score(samples[1], "这是一个圆").value == 0.0


def test_rolls_are_built_as_the_files_that_have_them(tmp_path: Path) -> None:
    rows = mmbench_rows(tmp_path)
    built = written(tmp_path, rows).load()
    loaded = written(tmp_path, rolls(rows)).load()
    assert not built.problems + loaded.problems
    assert len(built.samples) == 4 + 3 + 2 + 4
    for a, b in zip(built.samples, loaded.samples, strict=True):
        assert (a.key, a.prompt, a.answer, a.options) == (b.key, b.prompt, b.answer, b.options)
        assert a.options[a.answer] == b.options[b.answer]
        assert a.media == b.media


def test_pictures_and_references(tmp_path: Path) -> None:
    samples = written(tmp_path, mmbench_rows(tmp_path), circular=False).load().samples
    for sample, seed in zip(samples, (0, 1, 2, 0), strict=True):
        shown = np.asarray(sample.media[0].load())
        np.testing.assert_array_equal(shown, np.asarray(picture(seed)))


def test_an_option_called_none_is_an_option(tmp_path: Path) -> None:
    # pandas would read "None" as a missing value and drop the option.
    assert written(tmp_path, mmbench_rows(tmp_path)).load().samples[0].options["D"] == "None"


def test_circular_needs_every_roll_and_vanilla_the_first(tmp_path: Path) -> None:
    benchmark = written(tmp_path, mmbench_rows(tmp_path))
    samples = benchmark.load().samples
    wrong = {str(241 + ROLL): "Z", "242": "Z"}
    scored = answered(benchmark, samples, wrong)
    assert {unit.key: unit.value for unit in benchmark.units(scored)} == {
        "241": 0.0,
        "242": 0.0,
        "243": 1.0,
        "244": 1.0,
    }
    assert benchmark.extra(scored) == {"vanilla": 3 / 4}
    assert benchmark.units(scored)[0].groups == {
        "l2-category": "perception",
        "category": "kind 0",
        "split": "dev",
    }
    plain = written(tmp_path, mmbench_rows(tmp_path), circular=False)
    scored = answered(plain, plain.load().samples, wrong)
    assert [unit.value for unit in plain.units(scored)] == [1.0, 0.0, 1.0, 1.0]


def test_a_question_with_a_roll_that_failed_is_not_counted(tmp_path: Path) -> None:
    benchmark = written(tmp_path, mmbench_rows(tmp_path))
    scored = answered(benchmark, benchmark.load().samples, {})
    scored[2] = Scored(scored[2].sample, "", Score(None, None), "cannot read the picture")
    assert [unit.key for unit in benchmark.units(scored)] == ["242", "243", "244"]


def test_the_groups_of_version_1_1(tmp_path: Path) -> None:
    rows = [
        {**row, "g_index": str(int(row["index"]) % ROLL)} for row in rolls(mmbench_rows(tmp_path))
    ]
    path = write_tsv(tmp_path / "v11.tsv", rows, [*HEAD, "g_index"])
    samples = MMBench(path).load().samples
    assert len({s.about["base"] for s in samples}) == 4


def test_words_instead_of_letters(tmp_path: Path) -> None:
    benchmark = written(tmp_path, mmbench_rows(tmp_path), style="question")
    sample = benchmark.load().samples[0]
    assert benchmark.score(sample, "a square").value == 1.0
    assert benchmark.score(sample, "B").value == 0.0  # it was shown no letters


def test_chance_and_clusters(tmp_path: Path) -> None:
    plain = written(tmp_path, mmbench_rows(tmp_path), circular=False)
    samples = plain.load().samples
    assert plain.chance([*samples, samples[0]]) == 2 / 5  # B twice among A, B, B, C, D
    assert written(tmp_path, mmbench_rows(tmp_path)).chance(samples) is None
    assert [s.cluster for s in samples] == ["241", "242", "243", "241"]  # by picture
    asked = written(tmp_path, mmbench_rows(tmp_path)).load().samples
    assert [s.key for s in first(asked, 2)] == [s.key for s in asked[:4]]  # all rolls of the first
    assert first(asked, None) == asked


def test_a_judge_is_asked_last(tmp_path: Path) -> None:
    asked = []

    def judge(text: str, options: Any) -> str | None:
        asked.append(text)
        return "B" if "box" in text else None

    benchmark = written(tmp_path, mmbench_rows(tmp_path), judge=judge)
    sample = benchmark.load().samples[0]
    assert benchmark.score(sample, "B").value == 1.0
    assert benchmark.score(sample, "a box").value == 1.0
    assert benchmark.score(sample, "nothing of the kind").read is None
    assert asked == ["a box", "nothing of the kind"]
    assert "judge" in str(benchmark.describe()["judge"])


def test_hidden_answers_are_handed_in(tmp_path: Path) -> None:
    benchmark = written(tmp_path, mmbench_rows(tmp_path, split="test"))
    samples = benchmark.load().samples
    texts = {samples[0].key: "B <&> \x07", samples[1].key: ""}
    scored = answered(benchmark, samples, texts)
    assert benchmark.units(scored) == []
    (path,) = benchmark.export(scored, tmp_path)
    rows = read_xlsx(path)
    assert len(rows) == 1 + len(samples)
    head = rows[0]
    assert {"index", "question", "A", "D", "prediction", "category"} <= set(head)
    first = dict(zip(head, rows[1], strict=True))
    assert first["index"] == 241
    assert first["prediction"] == "B <&> \ufffd"
    assert first["hint"] == "Look\nclosely."
    second = dict(zip(head, rows[2], strict=True))
    assert second["index"] == 241 + ROLL
    assert (second["A"], second["D"]) == ("square", "circle")


def read_xlsx(path: Path) -> list[tuple[Any, ...]]:
    return list(openpyxl.load_workbook(path).active.iter_rows(values_only=True))


FAULTS = [
    ({"answer": "E"}, "answer is 'E': expected one of A, B, C, D"),
    ({"answer": ""}, "no answer, while other rows have one"),
    ({"image": "x" * 70}, "not base64"),
    ({"image": "999"}, "image refers to index 999"),
    ({"image": "241"}, "refers to itself"),
    ({"image": ""}, "expected base64 or the index"),
    ({"B": ""}, "expected A, B, ... in order"),
    ({"question": " "}, "no question"),
    ({"index": "x"}, "index is 'x': expected a number"),
    ({"index": "242"}, "index 242 is in the file 2 times"),
]


@pytest.mark.parametrize(("change", "what"), FAULTS)
def test_faults_are_told_by_row(tmp_path: Path, change: dict[str, str], what: str) -> None:
    rows = mmbench_rows(tmp_path)[:3]
    rows[0] |= change
    loaded = written(tmp_path, rows).load()
    (problem,) = loaded.problems
    assert what in problem.what
    assert "1" in problem.row
    bad = {"242"} if change == {"index": "242"} else set()
    left = {s.key for s in loaded.samples if int(s.key) < ROLL}
    assert left == {"242", "243"} - bad


def test_a_bad_roll_takes_its_question_with_it(tmp_path: Path) -> None:
    rows = rolls(mmbench_rows(tmp_path))
    rows[1]["answer"] = "E"
    loaded = written(tmp_path, rows).load()
    assert [p.row for p in loaded.problems] == [f"row 2 (index {241 + ROLL})"]
    assert {s.about["base"] for s in loaded.samples} == {242, 243, 244}


def test_missing_rolls_are_told(tmp_path: Path) -> None:
    rows = rolls(mmbench_rows(tmp_path))
    loaded = written(tmp_path, rows[:3] + rows[4:]).load()
    assert [p.what for p in loaded.problems] == ["only 3 of 4 rolls are in the file"]
    others = [{**row, "image": "241"} for row in rows[5:7]]
    loaded = written(tmp_path, rows[:4] + others).load()
    assert [p.what for p in loaded.problems] == [
        "the unrotated row is missing; there are 2 rotated ones"
    ]


def test_a_row_of_another_width(tmp_path: Path) -> None:
    path = write_tsv(tmp_path / "dev.tsv", mmbench_rows(tmp_path))
    with path.open("a") as file:
        file.write("999\tcut off\n")
    (problem,) = MMBench(path).load().problems
    assert (problem.row, problem.what) == (
        "row 5 (index 999)",
        "the number of fields differs from that of the head",
    )


def test_renamed_columns_are_guessed(tmp_path: Path) -> None:
    head = ["Index", "question", "A", "B", "images"]
    path = write_tsv(tmp_path / "dev.tsv", [], head)
    with pytest.raises(DataError, match=r"no column 'index' \(is it 'Index'\?\), 'image' \(is it"):
        MMBench(path).load()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"])
def test_what_is_no_tsv(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "dev.tsv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"dev\.tsv"):
        MMBench(path).load()


def test_unknown_style_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="style is 'x'"):
        MMBench(tmp_path, style="x")
    with pytest.raises(DataError, match="does not exist"):
        MMBench(tmp_path / "absent.tsv").load()
