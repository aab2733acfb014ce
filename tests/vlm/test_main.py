"""`python -m vlm ask` on the embedded model, and `vlm.load`."""

from __future__ import annotations

from pathlib import Path

import pytest

import vlm
from tests.marks import later
from tests.vlm.clips import write_clip
from vlm.__main__ import main
from vlm.embedded.scenes import draw, make_scene


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "scene.png"
    draw(make_scene(501, "test")).save(path)
    (tmp_path / "clip.mp4").write_bytes(b"no video" * 9)
    return path


@pytest.mark.parametrize(
    "options", [[], ["--budget", "48"], *later(["--budget", "latency:60000ms"])]
)
def test_answers_and_a_follow_up(
    scene: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["What does the sign say?", "What colour is the ring?"]
    assert main(["ask", "--image", str(scene), *questions, *options]) == 0
    printed = capsys.readouterr().out
    sign = make_scene(501, "test").sign
    assert sign is not None and printed.startswith(f"{sign.text}\n")
    assert printed.count("first word after") == 2
    assert ("tokens a layer, reduced" in printed) == bool(options)


def test_a_long_video_is_streamed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_clip(tmp_path / "long.mp4", 60, rate=10))
    options = ["--stream", "--fps", "5", "--budget", "50", "--method", "divprune"]
    assert main(["ask", "--video", path, "What is it?", "Where?", *options]) == 0
    printed = capsys.readouterr().out
    assert "30 frames, 4320 visual tokens, 50 tokens left" in printed
    assert printed.count("first word after") == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--image", "{}/none.png"], "none.png"),
        (["--video", "{}/clip.mp4"], "clip.mp4"),
        (["--image", "{}/scene.png", "--budget", "many"], "'many'"),
        (["--image", "{}/scene.png", "--budget", "500"], "1..144"),
        (["--image", "{}/scene.png", "--budget", "latency:0ms"], "expected milliseconds above 0"),
        (["--image", "{}/scene.png", "--budget", "8", "--keep-phase", "0.6"], "keep_phase is 0.6"),
        (["--image", "{}/scene.png", "--method", "learned"], "expected learned(scorer='folder')"),
        (["--budget", "5"], "no --image"),
        (["--budget", "latency:9"], "no --image"),
        (["--watch", "{}", "--budget", "latency:9"], "--watch takes a count"),
        (["--stream", "--image", "{}/scene.png"], "expected --video and no --image"),
        (["--stream", "--video", "{}/clip.mp4"], "clip.mp4"),
        (["--stream", "--video", "{}/clip.mp4", "--budget", "0.5"], "budget is 0.5"),
        (["--stream", "--video", "{}/clip.mp4", "--budget", "0"], "budget is 0: --stream takes"),
        (["--model", "{}"], "config.json"),
    ],
)
def test_one_clear_line(
    scene: Path, options: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [option.replace("{}", str(scene.parent)) for option in options]
    assert main(["ask", "What is it?", *given]) == 1
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_load_gives_the_embedded_model_ready() -> None:
    model, processor = vlm.load("mini")
    assert not model.training and model.dtype.is_floating_point
    assert processor.tokenizer.decode(processor.tokenizer(" K7")["input_ids"]).strip() == "K7"
