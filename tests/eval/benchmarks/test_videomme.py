"""Video-MME: forms of files, prompts, subtitles, frames, scoring, the official result file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eval.benchmarks.videomme import GROUPS, VideoMME
from eval.samples import DataError, MediaError, Score, Scored
from eval.summary import summarise
from tests.eval.fixtures import (
    official_videos,
    videomme_media,
    videomme_rows,
    write_parquet,
)


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return videomme_media(tmp_path_factory.mktemp("videomme"))


def written(folder: Path, media: Path, rows: Any = None, **options: Any) -> VideoMME:
    path = folder / "test.json"
    path.write_text(json.dumps(videomme_rows() if rows is None else rows))
    return VideoMME(path, media, **({"frames": 4} | options))


def test_parquet_json_and_the_official_form_are_one(tmp_path: Path, media: Path) -> None:
    pytest.importorskip("pyarrow")
    flat = written(tmp_path, media).load()
    path = write_parquet(tmp_path / "test-00000-of-00001.parquet", videomme_rows())
    parquet = VideoMME(path, media, frames=4).load()
    nested = written(tmp_path, media, official_videos(videomme_rows())).load()
    assert len(flat.samples) == 9
    assert not flat.problems
    for a, b, c in zip(flat.samples, parquet.samples, nested.samples, strict=True):
        assert (a.key, a.prompt, a.answer, a.groups) == (b.key, b.prompt, b.answer, b.groups)
        assert (a.key, a.prompt, a.answer, a.groups) == (c.key, c.prompt, c.answer, c.groups)


def test_the_prompt(tmp_path: Path, media: Path) -> None:
    sample = written(tmp_path, media).load().samples[0]
    assert sample.prompt == (
        "Select the best answer to the following multiple-choice question based on the video. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "What is the grey of frame 1?\nA. Black.\nB. Grey.\nC. Light grey.\nD. White.\n"
        "The best answer is:"
    )
    assert sample.options == {"A": "Black.", "B": "Grey.", "C": "Light grey.", "D": "White."}
    assert list(sample.groups) == list(GROUPS)
    assert sample.cluster == "drawn-1"


def test_only_subtitles_that_are_on_screen_at_the_frames(tmp_path: Path, media: Path) -> None:
    # 20 frames at 10 a second; of 4, the centres of the quarters: 0.2, 0.7, 1.2, 1.7 seconds.
    sample = written(tmp_path, media, subtitles=True).load().samples[0]
    video = sample.media[0].load()
    assert video.timestamps.tolist() == pytest.approx([0.2, 0.7, 1.2, 1.7])
    assert sample.complete is not None
    prompt = sample.complete(sample.prompt, (video,))
    assert prompt.startswith(
        "This video's subtitles are listed below:\nThe first words\nnever seen\n"
        "Two lines of words\nSelect the best answer to the following multiple-choice question "
        "based on the video and the subtitles. "
    )
    two = written(tmp_path, media, subtitles=True, frames=2).load().samples[0]  # 0.5 and 1.5
    shown = two.complete(two.prompt, (two.media[0].load(),))  # type: ignore[misc]
    assert "The first words\nTwo lines of words\nSelect" in shown


def test_sampling_rules(tmp_path: Path, media: Path) -> None:
    def indices(**options: Any) -> list[int]:
        return (
            written(tmp_path, media, **options).load().samples[0].media[0].load().indices.tolist()
        )

    assert indices() == [2, 7, 12, 17]
    assert indices(sampling="vlmevalkit") == [4, 8, 12, 16]
    assert indices(sampling="linspace") == [0, 6, 12, 19]
    assert indices(fps=1.0, frames=64) == [0, 10]


def test_a_video_of_fewer_frames_is_refused_or_asked_for(tmp_path: Path, media: Path) -> None:
    sample = written(tmp_path, media, frames=64).load().samples[0]
    with pytest.raises(MediaError, match="20 frames, 64 were asked for"):
        sample.media[0].load()
    short = written(tmp_path, media, frames=64, short=True).load().samples[0]
    assert len(short.media[0].load()) == 20


def test_accuracy_by_every_column_and_clusters_by_video(tmp_path: Path, media: Path) -> None:
    benchmark = written(tmp_path, media)
    samples = benchmark.load().samples
    rows = {s.key: {"text": s.answer if s.cluster != "drawn-3" else "A"} for s in samples}
    from eval.arms import DENSE

    (result,) = summarise(benchmark, samples, {DENSE: rows})
    assert result.accuracy is not None
    assert (result.accuracy.mean, result.accuracy.clusters) == (6 / 9, 3)
    assert result.accuracy.rule == "bootstrap"
    assert {k: i.mean for k, i in result.by["duration"].items()} == {
        "short": 1.0,
        "medium": 1.0,
        "long": 0.0,
    }
    assert {k: i.mean for k, i in result.by["task_type"].items()} == {
        f"task {n}": pytest.approx(2 / 3) for n in (1, 2, 3)
    }


def test_the_official_result_file(tmp_path: Path, media: Path) -> None:
    benchmark = written(tmp_path, media)
    scored = [Scored(s, f"{s.answer}.", Score(1.0, s.answer)) for s in benchmark.load().samples]
    (path,) = benchmark.export(scored, tmp_path)
    videos = json.loads(path.read_text())
    assert [video["video_id"] for video in videos] == ["001", "002", "003"]
    assert list(videos[0]) == ["video_id", "duration", "domain", "sub_category", "questions"]
    assert videos[0]["questions"][0] == {
        "question_id": "001-1",
        "task_type": "task 1",
        "question": "What is the grey of frame 1?",
        "options": ["A. Black.", "B. Grey.", "C. Light grey.", "D. White."],
        "answer": "B",
        "response": "B.",
    }


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"videoID": "absent"}, "no file absent.mp4"),
        ({"videoID": "../drawn-1"}, "holds '..'"),
        ({"answer": "E"}, "answer is 'E': expected one of A, B, C, D"),
        ({"options": ["A. x", "C. y"]}, "option 'C. y': expected it to begin with 'B.'"),
        ({"options": "A. x B. y"}, "expected a list of texts"),
        ({"question_id": "001-2"}, "2 rows have this key"),
    ],
)
def test_faults_are_told_by_row(
    tmp_path: Path, media: Path, change: dict[str, Any], what: str
) -> None:
    rows = videomme_rows()
    rows[0] |= change
    loaded = written(tmp_path, media, rows).load()
    (problem,) = loaded.problems
    assert what in problem.what
    assert "001-" in problem.row
    assert len(loaded.samples) == (7 if "question_id" in change else 8)


def test_missing_subtitles_are_told(tmp_path: Path, media: Path) -> None:
    rows = [row | {"videoID": "drawn-1"} for row in videomme_rows()]
    other = tmp_path / "media"
    other.mkdir()
    (other / "drawn-1.mp4").write_bytes((media / "video" / "drawn-1.mp4").read_bytes())
    loaded = written(tmp_path, other, rows, subtitles=True).load()
    assert len(loaded.problems) == 9
    assert "subtitle/drawn-1.srt" in loaded.problems[0].what


def test_files_that_cannot_be_used(tmp_path: Path, media: Path) -> None:
    rows = [
        {("videoId" if k == "video_id" else k): v for k, v in r.items()} for r in videomme_rows()
    ]
    with pytest.raises(DataError, match=r"no column 'video_id' \(is it 'videoI[dD]'\?\)"):
        written(tmp_path, media, rows).load()
    with pytest.raises(DataError, match="--media"):
        VideoMME(tmp_path / "test.json").load()
    with pytest.raises(DataError, match="there is no folder"):
        written(tmp_path, tmp_path / "absent").load()
    (tmp_path / "bad.parquet").write_bytes(b"PAR0")
    with pytest.raises(DataError, match="not a parquet file"):
        VideoMME(tmp_path / "bad.parquet", media).load()
    for options in ({"frames": 0}, {"fps": 0.0}, {"fps": float("nan")}, {"sampling": "x"}):
        with pytest.raises(DataError):
            written(tmp_path, media, **options)
