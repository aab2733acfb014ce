"""The command line end to end: reports, and errors for bad input."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import vlm
from eval.__main__ import main
from eval.records import read_records
from tests.eval import fixtures
from tests.eval.fixtures import mmbench_rows, write_tsv
from tests.marks import later
from vlm.embedded import mini

SWEEP = ["--methods", "duet,random", "--budgets", "48", "--budget", "1/9", "--batch-size", "4"]


@pytest.fixture(autouse=True)
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    loads: list[str] = []

    def load(name: str, **options: Any) -> Any:
        loads.append(name)
        return mini.build()

    monkeypatch.setattr(vlm, "load", load)
    return loads


def folder_of(output: Path) -> Path:
    (folder,) = output.iterdir()
    return folder


def test_a_sweep_writes_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["embedded", "--scenes", "1", "--clips", "0", *SWEEP, "--output", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr().out
    folder = folder_of(tmp_path)
    assert re.match(r"embedded-mini-[0-9a-f]{8}$", folder.name)
    table = (folder / "table.txt").read_text()
    assert table in said + "\n" or table.strip() in said
    for title in ("dense", "duet 48", "duet 0.1111", "random 48", "random 0.1111"):
        assert re.search(rf"^{re.escape(title)} ", table, re.M), title
    facts = json.loads((folder / "summary.json").read_text())
    assert facts["results"][0]["title"] == "dense"
    assert len(facts["results"]) == 5
    tokens = {r["title"]: r["figures"]["tokens"] for r in facts["results"]}
    assert tokens["dense"] == 144
    assert tokens["duet 48"] == pytest.approx(48, abs=1)
    assert list(tokens) == ["dense", "duet 48", "duet 0.1111", "random 48", "random 0.1111"]
    tested = [r for r in facts["results"] if r["against"]]
    assert len(tested) == 4
    assert all(r["adjusted"] >= r["against"]["p"] for r in tested)
    config = json.loads((folder / "run.json").read_text())
    assert config["config"]["seed"] == 0
    assert config["versions"]["torch"]
    row = next(iter(read_records(folder / "dense").values()))
    assert row["prompt"].startswith("<s>USER: <image>\n ")
    page = (folder / "report.html").read_text()
    assert_is_whole(page)
    for name in ("accuracy.png", "by-category.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")


def assert_is_whole(page: str) -> None:
    """Every tag is closed, and nothing is fetched from elsewhere."""
    open_tags: list[str] = []

    class Check(HTMLParser):
        def handle_starttag(self, tag: str, attributes: Any) -> None:
            for name, value in attributes:
                if name in ("src", "href"):
                    assert value.startswith("data:image/png;base64,"), value[:40]
                    base64.b64decode(value.split(",")[1], validate=True)
            if tag not in ("meta", "img"):
                open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert open_tags.pop() == tag

    Check().feed(page)
    assert open_tags == []


def test_what_launchers_add_is_understood(tmp_path: Path) -> None:
    base = ["--scenes", "1", "--output", str(tmp_path), "--limit", "1", "--batch-size", "6"]
    assert main(["--local_rank=0", "embedded", *base]) == 0
    (result,) = json.loads((folder_of(tmp_path) / "summary.json").read_text())["results"]
    assert result["accuracy"]["clusters"] == 1
    assert result["accuracy"]["count"] == 6  # the first scene whole


@pytest.mark.slow
def test_a_later_sweep_adds_to_the_report(tmp_path: Path) -> None:
    base = ["embedded", "--scenes", "1", "--clips", "0", "--output", str(tmp_path)]
    assert main([*base, "--method", "duet", "--budget", "48"]) == 0
    folder = folder_of(tmp_path)
    before = {p: p.read_bytes() for p in folder.rglob("results-*.jsonl")}
    assert main([*base, "--method", "duet(query='last')", "--budget", "48"]) == 0
    assert folder_of(tmp_path) == folder
    assert all(path.read_bytes() == content for path, content in before.items())
    titles = [r["title"] for r in json.loads((folder / "summary.json").read_text())["results"]]
    assert len(titles) == 3
    assert titles == ["dense", "duet 48", "duet(query='last') 48"]


def test_without_matplotlib_there_are_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    command = ["embedded", "--scenes", "1", "--clips", "0", "--method", "duet", "--budget", "48"]
    assert main([*command, "--output", str(tmp_path)]) == 0
    folder = folder_of(tmp_path)
    assert not list(folder.glob("*.png"))
    assert_is_whole((folder / "report.html").read_text())


def fixture_options(name: str, folder: Path) -> list[str]:
    if name == "videomme":
        data = folder / "test.json"
        data.write_text(json.dumps(fixtures.videomme_rows()))
        media = fixtures.videomme_media(folder)
        return ["--data", str(data), "--media", str(media), "--frames", "2", "--subtitles"]
    if name == "mme":
        return ["--data", str(fixtures.mme(folder))]
    data, media, *_ = getattr(fixtures, name)(folder)
    return ["--data", str(data), "--media", str(media)]


@pytest.mark.parametrize("name", ["gqa", *later("videomme", "textvqa", "pope", "mme", "scienceqa")])
def test_every_benchmark_from_its_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "data").mkdir()
    options = fixture_options(name, tmp_path / "data")
    sweep = ["--method", "duet", "--budget", "1/9", "--limit", "4", "--batch-size", "2"]
    assert main([name, *options, *sweep, "--output", str(tmp_path / "out")]) == 0
    folder = folder_of(tmp_path / "out")
    dense, duet = json.loads((folder / "summary.json").read_text())["results"]
    for result in (dense, duet):
        assert result["accuracy"]["count"] >= 2
        assert not result["errors"]
    frames = 2 if name == "videomme" else 1
    assert duet["figures"]["tokens"] == pytest.approx(16 * frames, abs=1)
    assert_is_whole((folder / "report.html").read_text())
    if name == "videomme":
        assert dense["figures"]["frames"] == 2
        assert "frames=2" in (folder / "table.txt").read_text()
        prompt = next(iter(read_records(folder / "dense").values()))["prompt"]
        assert "This video's subtitles are listed below:\nThe first words\n" in prompt
        assert prompt.count("<video>") == 1


def test_mmbench_from_its_file(tmp_path: Path) -> None:
    data = write_tsv(tmp_path / "dev.tsv", mmbench_rows(tmp_path))
    command = ["mmbench", "--data", str(data), "--output", str(tmp_path / "out")]
    assert main(command) == 0
    folder = folder_of(tmp_path / "out")
    (result,) = json.loads((folder / "summary.json").read_text())["results"]
    assert result["accuracy"]["count"] == 4
    assert "vanilla" in result["extra"]
    assert (folder / "dense" / "submission.xlsx").is_file()


REDUCED = ["--method", "uniform", "--budget", "1/3"]


@pytest.mark.parametrize(
    ("style", "more"), [("llava", []), pytest.param("question", REDUCED, marks=pytest.mark.slow)]
)
def test_options_in_one_pass(tmp_path: Path, style: str, more: list[str]) -> None:
    data = write_tsv(tmp_path / "dev.tsv", mmbench_rows(tmp_path))
    command = ["mmbench", "--data", str(data), "--output", str(tmp_path / "out"), "--one-pass"]
    assert main([*command, "--style", style, "--no-circular", "--limit", "2", *more]) == 0
    folder = folder_of(tmp_path / "out")
    config = json.loads((folder / "run.json").read_text())["config"]
    assert config["model"]["generation"] == "most likely option"
    dense, *reduced = json.loads((folder / "summary.json").read_text())["results"]
    assert dense["accuracy"]["count"] == 2
    assert all(r["figures"]["tokens"] == pytest.approx(48, abs=1) for r in reduced)
    options = {"A", "B", "C", "D"} if style == "llava" else {"circle", "square", "star", "None"}
    for arm in folder.glob("*/arm.json"):
        said = {row["text"] for row in read_records(arm.parent).values()}
        assert said and said <= options


def test_open_answers_are_not_compared_by_likelihood(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], untrained: list[str]
) -> None:
    command = ["embedded", "--scenes", "1", "--clips", "0", "--one-pass"]
    assert main([*command, "--output", str(tmp_path)]) == 2
    assert "questions of embedded have no options" in capsys.readouterr().err
    data = write_tsv(tmp_path / "dev.tsv", mmbench_rows(tmp_path))
    served = ["--one-pass", "--endpoint", "http://127.0.0.1:9/v1"]
    assert main(["mmbench", "--data", str(data), *served]) == 2
    assert "a served model tells no likelihoods" in capsys.readouterr().err
    assert not untrained


def test_bad_rows_stop_it_before_the_model_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], untrained: list[str]
) -> None:
    rows = mmbench_rows(tmp_path)
    rows[1]["answer"] = "E"
    data = write_tsv(tmp_path / "dev.tsv", rows)
    command = ["mmbench", "--data", str(data), "--output", str(tmp_path / "out")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "row 2 (index 242): answer is 'E'" in said
    assert "--skip-bad" in said
    assert not untrained
    assert main([*command, "--skip-bad", "--limit", "1"]) == 0
    folder = folder_of(tmp_path / "out")
    assert "LEFT OUT: 1 rows" in (folder / "table.txt").read_text()
    (problem,) = json.loads((folder / "problems.json").read_text())
    assert problem["row"] == "row 2 (index 242)"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--method", "nothing", "--budget", "64"], "method 'nothing': expected one of"),
        (["--method", "learned", "--budget", "64"], "expected learned(scorer='folder')"),
        (["--method", "duet", "--budget", "latency:9"], "goes with a question"),
        (["--method", "duet", "--budget", "64", "--keep-phase", "1"], "keep_phase is 1.0"),
        (["--method", "duet"], "--method and --budget go together"),
        (["--method", "duet", "--budget", "1.5"], "budget is 1.5"),
        (["--method", "duet", "--budget", "x"], "budget 'x': expected a count"),
        (["--data", "absent.jsonl"], "absent.jsonl"),
        (["--device", "cuda:99"], "--device: there is no cuda:99"),
        (["--device", "gpu"], "--device: 'gpu' is no device"),
        (["--scenes", "-1"], "scenes is -1: expected 0 or more"),
        (["--split", "tset"], "split is 'tset'"),
    ],
)
def test_mistakes_are_told_before_the_model_loads(
    options: list[str],
    what: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    untrained: list[str],
) -> None:
    assert main(["embedded", *options, "--output", str(tmp_path)]) == 2
    assert what in capsys.readouterr().err
    assert not untrained
    assert not list(tmp_path.iterdir())


def test_help_shows_each_benchmarks_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["videomme", "--help"])
    shown = capsys.readouterr().out
    for option in ("--data", "--media", "--frames", "--fps", "--subtitles", "--judge", "--methods"):
        assert option in shown


def test_make_embedded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "made"
    assert main(["make-embedded", "--scenes", "2", "--clips", "1", "--output", str(output)]) == 0
    assert (output / "mmbench.tsv").is_file()
    assert len(list((output / "images").iterdir())) == 2 + 4
    data = str(output / "open.jsonl")
    asked = ["--data", data, "--limit", "1", "--output", str(tmp_path / "out")]
    assert main(["embedded", *asked]) == 0


# ------------------------------------------------------------------ processes


def saved(folder: Path) -> str:
    model, processor = mini.build()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def command(model: str, output: Path, *launcher: str) -> list[str]:
    start = [sys.executable, *launcher, "-m", "eval", "embedded", "--scenes", "4", "--clips", "0"]
    return [*start, "--model", model, *SWEEP, "--output", str(output)]


def answers(output: Path) -> dict[str, dict[str, Any]]:
    return {
        arm.name: {k: (r["text"], r["prompt"]) for k, r in read_records(arm).items()}
        for arm in folder_of(output).iterdir()
        if arm.is_dir()
    }


def lines(output: Path) -> int:
    return sum(len(p.read_bytes().splitlines()) for p in output.rglob("results-*.jsonl"))


@pytest.mark.slow
def test_two_processes_and_a_kill_give_what_one_gives(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    one, two, cut = tmp_path / "one", tmp_path / "two", tmp_path / "cut"
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(model, one), check=True, env=env)
    launcher = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
    subprocess.run(command(model, two, *launcher), check=True, env=env)
    assert answers(two) == answers(one)
    assert lines(two) == lines(one)
    assert len(list(two.rglob("results-00001.jsonl"))) == 5

    process = subprocess.Popen(command(model, cut), env=env)
    while not cut.exists() or lines(cut) == 0:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < lines(cut) < lines(one)
    subprocess.run(command(model, cut), check=True, env=env)
    assert answers(cut) == answers(one)
    assert lines(cut) == lines(one)
    first, second = (
        [
            {k: v for k, v in r.items() if k != "figures"}
            for r in json.loads((folder_of(x) / "summary.json").read_text())["results"]
        ]
        for x in (one, cut)
    )
    assert first == second
