"""The runner asks every question once, whatever happens to the process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from eval.answerers import Question, Reply
from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import Embedded
from eval.records import read_records
from eval.runner import Shard, complete, open_run, run
from eval.samples import DataError, Picture, Sample
from eval.summary import summarise
from tests.marks import later

DUET = Arm("duet", 64)
BENCHMARK = Embedded(scenes=4, clips=2)  # 28 questions, 7 batches of 4


class Stub:
    """Answers with the prompt's length, the batch and the seed; dies after some calls."""

    def __init__(self, die_after: int = 10**9) -> None:
        self.calls = 0
        self.die_after = die_after
        self.name = "stub"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name}

    def answer(self, questions: Sequence[Question], arm: Arm, seed: int) -> list[Reply]:
        self.calls += 1
        if self.calls > self.die_after:
            raise KeyboardInterrupt
        texts = [f"{len(q.prompt)} {len(questions)} {arm.title} {seed}" for q in questions]
        return [Reply(text, figures={"seconds": 1.0}) for text in texts]


@cache
def samples() -> tuple[Sample, ...]:
    return tuple(BENCHMARK.load().samples)


def texts(folder: Path, arm: Arm) -> dict[str, str]:
    return {key: row["text"] for key, row in read_records(folder / arm.folder).items()}


def whole(tmp_path: Path) -> Path:
    folder = tmp_path / "whole"
    run(folder, samples(), Stub(), [DENSE, DUET], batch_size=4, progress=False)
    return folder


def lines(folder: Path) -> int:
    return sum(len(p.read_bytes().splitlines()) for p in folder.rglob("results-*.jsonl"))


def test_every_question_in_every_arm_once(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    assert lines(folder) == 2 * len(samples())
    assert complete(folder, samples(), DENSE)
    assert complete(folder, samples(), DUET)
    assert set(texts(folder, DENSE)) == {s.key for s in samples()}


@pytest.mark.slow
def test_every_batch_and_every_seed_draws_its_own(tmp_path: Path) -> None:
    def draws(seed: int) -> list[str]:
        run(
            tmp_path / str(seed), samples(), Stub(), [DUET], batch_size=4, seed=seed, progress=False
        )
        return list(
            dict.fromkeys(t.split()[-1] for t in texts(tmp_path / str(seed), DUET).values())
        )

    batches = -(-len(samples()) // 4)
    assert len(draws(0)) == len(set(draws(0) + draws(1))) / 2 == batches


@pytest.mark.parametrize("die_after", [5, *later(1, 2, 8)])
def test_a_killed_run_goes_on_and_loses_nothing(tmp_path: Path, die_after: int) -> None:
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        run(folder, samples(), Stub(die_after), [DENSE, DUET], batch_size=4, progress=False)
    assert not complete(folder, samples(), DUET)
    second = Stub()
    run(folder, samples(), second, [DENSE, DUET], batch_size=4, progress=False)
    batches = -(-len(samples()) // 4)
    assert second.calls == 2 * batches - die_after
    for arm in (DENSE, DUET):
        assert texts(folder, arm) == texts(whole(tmp_path), arm)
    assert lines(folder) == 2 * len(samples())


@pytest.mark.parametrize("cut", [9, *later(1, 40)])
def test_a_torn_last_line_is_asked_again(tmp_path: Path, cut: int) -> None:
    folder = whole(tmp_path)
    path = folder / DENSE.folder / "results-00000.jsonl"
    good = path.read_bytes()
    path.write_bytes(good[:-cut])
    assert len(read_records(path.parent)) == len(samples()) - 1
    run(folder, samples(), Stub(), [DENSE, DUET], batch_size=4, progress=False)
    assert path.read_bytes() == good


def test_a_line_broken_in_the_middle_is_no_result(tmp_path: Path) -> None:
    folder = whole(tmp_path)
    path = folder / DENSE.folder / "results-00000.jsonl"
    rows = path.read_bytes().splitlines(keepends=True)
    rows[2] = rows[2][:10] + b"\n"
    path.write_bytes(b"".join(rows))
    with pytest.raises(DataError, match="line 3"):
        read_records(path.parent)


@pytest.mark.parametrize("world", [2, *later(3)])
def test_shards_together_are_one_process(tmp_path: Path, world: int) -> None:
    folder = tmp_path / "shards"
    for rank in range(world):
        assert not complete(folder, samples(), DENSE)
        shard = Shard(rank, world)
        run(folder, samples(), Stub(), [DENSE, DUET], batch_size=4, shard=shard, progress=False)
    for arm in (DENSE, DUET):
        assert texts(folder, arm) == texts(whole(tmp_path), arm)
    assert lines(folder) == 2 * len(samples())


@pytest.mark.slow
def test_another_number_of_processes_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    run(folder, samples(), Stub(), [DENSE], batch_size=4, shard=Shard(1, 3), progress=False)
    run(folder, samples(), Stub(), [DENSE], batch_size=4, progress=False)
    assert texts(folder, DENSE) == texts(whole(tmp_path), DENSE)
    assert lines(folder) == len(samples())


def test_media_that_cannot_be_read_are_counted_and_not_scored(tmp_path: Path) -> None:
    asked = list(samples())
    asked[1] = replace(asked[1], media=(Picture(b"no image"),))
    run(tmp_path, asked, Stub(), [DENSE], batch_size=4, progress=False)
    rows = read_records(tmp_path / DENSE.folder)
    assert "not an image" in rows[asked[1].key]["error"]
    (result,) = summarise(BENCHMARK, asked, {DENSE: rows})
    assert result.accuracy is not None
    assert result.accuracy.count == len(asked) - 1
    assert list(result.errors) == [asked[1].key]


def test_a_folder_is_one_configuration(tmp_path: Path) -> None:
    asked = samples()
    folder = open_run(tmp_path, BENCHMARK, asked, Stub())
    assert open_run(tmp_path, BENCHMARK, asked, Stub()) == folder
    other = Stub()
    other.name = "other"
    shorter = Embedded(scenes=3, clips=2)
    others = {
        open_run(tmp_path, BENCHMARK, asked, other),
        open_run(tmp_path, BENCHMARK, asked, Stub(), seed=1),
        open_run(tmp_path, BENCHMARK, asked, Stub(), batch_size=2),
        open_run(tmp_path, shorter, shorter.load().samples, Stub()),
        open_run(tmp_path, BENCHMARK, [replace(asked[0], answer="x"), *asked[1:]], Stub()),
    }
    assert len(others | {folder}) == 6


def test_results_of_other_versions_are_not_mixed(tmp_path: Path) -> None:
    asked = samples()
    folder = open_run(tmp_path, BENCHMARK, asked, Stub())
    saved = json.loads((folder / "run.json").read_text())
    saved["versions"]["torch"] = "0.1"
    (folder / "run.json").write_text(json.dumps(saved))
    with pytest.raises(DataError, match=r"versions\.torch was '0\.1' and is"):
        open_run(tmp_path, BENCHMARK, asked, Stub())


def test_a_configuration_comes_once() -> None:
    with pytest.raises(ValueError, match="once"):
        run(Path(), [], Stub(), [DUET, Arm("duet", 64)])
