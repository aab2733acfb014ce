"""OVO-Bench and StreamingBench: forms of the files, prompts, the video up to a moment, scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.ovobench import OVOBench
from eval.benchmarks.streamingbench import StreamingBench
from eval.samples import DataError, Scored
from tests.vlm.clips import write_clip

OVO: list[dict[str, Any]] = [
    {
        "id": 7,
        "task": "EPM",
        "video": "clips/a.mp4",
        "question": "Where was the cup?",
        "options": ["On the table", "In the sink"],
        "gt": 1,
        "realtime": 1.5,
    },
    {
        "id": 8,
        "task": "OCR",
        "video": "clips/a.mp4",
        "question": "What does it say?",
        "options": ["Stop", "Go", "Wait"],
        "gt": 0,
        "realtime": 2,
    },
    {
        "id": 9,
        "task": "REC",
        "video": "clips/a.mp4",
        "activity": "jump",
        "test_info": [{"realtime": 1, "count": 0}, {"realtime": 3, "count": 12}],
    },
    {
        "id": 10,
        "task": "SSR",
        "video": "clips/a.mp4",
        "test_info": [{"realtime": 1, "step": "Cut it.", "type": 1}],
    },
    {
        "id": 11,
        "task": "CRR",
        "video": "clips/a.mp4",
        "question": "Who won?",
        "answer": "The red team",
        "test_info": [{"realtime": 2, "type": 0}],
    },
]
PARTS = [
    {
        "time": "[0:00:00 - 0:01:00]",
        "video_path": "./videos/a.mp4",
        "video_categories": "games",
        "questions": [
            {
                "task_type": "Object Recognition",
                "question": "What is it?",
                "time_stamp": "00:00:02",
                "answer": "B",
                "options": ["A. A cup", "B. A star"],
            },
            {
                "task_type": "Counting",
                "question": "How many?",
                "time_stamp": "soon",
                "answer": "A",
                "options": ["One", "Two"],
            },
        ],
    }
]


@pytest.fixture
def media(tmp_path: Path) -> Path:
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "a.mp4", 40, rate=10)
    return tmp_path


def ovo(media: Path, rows: Any = OVO, **options: Any) -> OVOBench:
    path = media / "ovo_bench_new.json"
    path.write_text(json.dumps(rows))
    return OVOBench(path, media, **options)


def test_ovobench_parts_and_moments(media: Path) -> None:
    loaded = ovo(media, fps=2.0).load()
    assert not loaded.problems
    samples = {sample.key: sample for sample in loaded.samples}
    assert list(samples) == ["7", "8", "9-0", "9-1", "10-0", "11-0"]
    parts = [sample.groups["part"] for sample in loaded.samples]
    assert parts == ["backward", "realtime", *["forward"] * 4]
    assert samples["7"].media[0].load().timestamps.tolist() == [0.0, 0.5, 1.0]
    assert len(samples["9-1"].media[0].load()) == 6
    assert "A. On the table; B. In the sink;\n" in samples["7"].prompt
    assert "How many times did they jump?" in samples["9-0"].prompt
    assert "Cut it." in samples["10-0"].prompt
    assert "Who won?" in samples["11-0"].prompt
    assert [s.answer for s in loaded.samples] == ["B", "A", "0", "12", "yes", "no"]
    assert len(ovo(media, part="forward").load().samples) == 4
    with pytest.raises(DataError, match="part is 'future'"):
        ovo(media, part="future")


def test_ovobench_scores(media: Path) -> None:
    benchmark = ovo(media)
    texts = ["B", "It says Go (B)", "0", "12 times", "Yes.", "Yes"]
    samples = benchmark.load().samples
    scored = [Scored(s, t, benchmark.score(s, t)) for s, t in zip(samples, texts, strict=True)]
    assert [answer.score.value for answer in scored] == [1, 0, 1, 1, 1, 0]
    assert benchmark.extra(scored) == {
        "backward (mean of tasks)": 1.0,
        "realtime (mean of tasks)": 0.0,
        "forward (mean of tasks)": pytest.approx(2 / 3),
        "all (mean of tasks)": pytest.approx(3 / 5),
    }


def test_ovobench_rows_that_are_bad(media: Path) -> None:
    wrong = [
        OVO[0] | {"gt": 2},
        OVO[0] | {"id": 1, "task": "XXX"},
        OVO[0] | {"id": 2, "realtime": 0},
        OVO[0] | {"id": 3, "video": "../secret.mp4"},
        {"id": 4, "task": "EPM", "video": "clips/a.mp4"},
    ]
    loaded = ovo(media, wrong).load()
    assert not loaded.samples
    told = [problem.what for problem in loaded.problems]
    assert "gt is 2" in told[0]
    assert "task is 'XXX'" in told[1]
    assert "realtime is 0" in told[2]
    assert len(told) == 5


def test_streamingbench(media: Path) -> None:
    (media / "videos").mkdir()
    (media / "clips" / "a.mp4").rename(media / "videos" / "a.mp4")
    path = media / "questions_real.json"
    path.write_text(json.dumps(PARTS))
    benchmark = StreamingBench(path, media)
    loaded = benchmark.load()
    (sample,) = loaded.samples
    assert "part 1, question 2" in loaded.problems[0].row
    assert "time_stamp is 'soon'" in loaded.problems[0].what
    assert sample.media[0].load().timestamps.tolist() == [0.0, 1.0]
    assert sample.prompt.endswith("A. A cup\nB. A star\n\nThe best option is:")
    assert sample.groups == {"task_type": "Object Recognition"}
    assert benchmark.score(sample, "B").value == 1
    path.write_text("[{}]")
    with pytest.raises(DataError, match="with `questions`"):
        benchmark.load()
