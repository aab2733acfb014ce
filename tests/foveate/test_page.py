"""The page in a browser, and its parts without one.

The tests in a browser are skipped where Gradio, Playwright or Chromium is not installed.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import vlm
from compress import get_method
from foveate.page import cards, media
from foveate.page.__main__ import main
from foveate.page.session import SCHEDULES, Answer, Question, Session, code, sentence
from tests.vlm.clips import write_sound
from tests.vlm.embedded.collage.folder import make_folder

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MISSING = [name for name in ("gradio", "playwright") if find_spec(name) is None]
MISSING += [] if CHROMIUM else ["chromium"]
browser_test = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
WAIT = 180_000  # milliseconds; CI runs other things at the same time


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(*vlm.load("mini"), "mini")


@pytest.fixture(scope="module")
def examples() -> dict[str, media.Example]:
    return {example.key: example for example in media.examples()}


# ------------------------------------------------------------------ without a browser


def test_answers_of_the_dense_model_and_of_methods(
    session: Session, examples: dict[str, media.Example], tmp_path: Path
) -> None:
    example = examples["scene-515"]
    question = Question(example.media, example.question, ("duet", "divprune"), 1 / 3)
    *_, (answers, saliency) = session.ask(question)
    assert [a.text.strip() for a in answers] == ["4", "4", "4"]
    assert all(a.done and not a.error for a in answers)
    (kept,) = answers[2].kept
    assert kept["grid"] == [1, 12, 12] and len(kept["positions"]) == 48
    assert len(saliency) == 1 and len(saliency[0]) == 144
    assert sum(saliency[0]) == pytest.approx(1)
    picture, tensors = session.save(question, tmp_path)
    assert Image.open(picture).width > 600 and tensors.stat().st_size > 1000
    shown = cards.results(example.media, answers, saliency)
    assert shown.count('class="fv-card"') == 3 and shown.count("<tr>") == 4
    assert session.dense_tokens(examples["clip"].media) == 576


def test_examples_of_the_small_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "CACHE", tmp_path)
    without = media.examples("small")
    assert without and not any(example.key.startswith("collage") for example in without)
    make_folder(tmp_path / "collage")
    shown = media.examples("small")
    assert [e.key for e in shown[:4]] == [f"collage-{n}" for n in (200, 201, 203, 204)]
    assert {e.media.kind for e in shown} == {"image"} and all(e.question for e in shown)
    assert [e.key for e in shown[4:]] == [e.key for e in without if e.key == "cat"]


def test_a_method_that_fails_leaves_the_others(
    session: Session, examples: dict[str, media.Example]
) -> None:
    example = examples["scene-515"]
    question = Question(example.media, example.question, ("prumerge(salient=2)",), 1 / 3)
    with pytest.raises(ValueError, match="salient"):
        list(session.ask(question))
    question = Question(example.media, example.question, ("fastv", "divprune"), 500)
    *_, (answers, _) = session.ask(question)
    assert [bool(a.error) for a in answers] == [False, True, True]
    assert "500" in answers[1].error
    assert 'role="alert"' in cards.results(example.media, answers, [])


def test_schedules(session: Session, examples: dict[str, media.Example]) -> None:
    """Own and probed keep tokens in other layers; the published one of DUET drops all of them."""
    example = examples["scene-515"]
    layers = {}
    for schedule in SCHEDULES:
        question = Question(example.media, example.question, ("duet",), 1 / 3, schedule=schedule)
        *_, (answers, _) = session.ask(question)
        assert not answers[1].error
        layers[schedule] = answers[1].report.reduced.layers  # type: ignore[union-attr]
    assert layers["published"][-1] == 0 < layers["default"][-1]
    assert layers["probed"] != layers["default"]
    question = Question(example.media, "?", ("divprune",), 1 / 3, schedule="published")
    assert question.method("divprune") == get_method("divprune")  # which has one form alone
    for wrong in ({"schedule": "mine"}, {"calibrate": "mine"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} is 'mine': expected"):
            next(session.ask(Question(example.media, "?", ("duet",), 1 / 3, **wrong)))


def test_an_answer_that_nobody_reads_on_is_ended(
    session: Session, examples: dict[str, media.Example]
) -> None:
    example = examples["scene-515"]
    question = Question(example.media, example.question, ("divprune",), 1 / 3)
    answers = session.ask(question)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    *_, (again, _) = session.ask(question)  # neither the lock nor a compression is left
    assert again[1].done


@pytest.mark.parametrize(
    "chosen", [{}, {"schedule": "published"}, {"schedule": "probed", "calibrate": "size"}]
)
def test_the_python_that_is_shown_runs(
    chosen: dict[str, str],
    session: Session,
    examples: dict[str, media.Example],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = examples["scene-515"]
    question = Question(example.media, example.question, ("duet",), 1 / 3, **chosen)
    lines = code(question, "mini", session.prompt(question)[0])
    example.media.frames[0].save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    exec(lines, {})
    assert "4" in capsys.readouterr().out


def test_what_is_written_into_the_page_is_escaped() -> None:
    frame = Image.new("RGB", (8, 8))
    shown = cards.results(
        media.Media("x", "image", frame, (frame,)), [Answer(None, "<b>&", True)], []
    )
    assert "&lt;b&gt;&amp;" in shown and "<b>&" not in shown
    assert "<i>" not in cards.error("<i>")
    assert sentence(ValueError("budget is 0\nmore")) == "Budget is 0."


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("no picture")
    with pytest.raises(vlm.MediaError, match=r"text\.jpg: not an image"):
        media.read(text)
    large = tmp_path / "large.png"
    Image.new("1", (8000, 8000)).save(large)
    with pytest.raises(vlm.MediaError, match="more than max_pixels"):
        media.read(large)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 200)
    with pytest.raises(vlm.MediaError, match=r"clip\.mp4"):
        media.read(clip)


@pytest.mark.skipif("gradio" in MISSING, reason="not installed: gradio")
def test_mistakes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert str(port) in error and "in use" in error and error.count("\n") == 1
    assert main(["--port", str(port), "--model", str(tmp_path)]) == 1
    assert "config.json" in capsys.readouterr().err
    assert main(["--port", "0"]) == 1
    assert "expected 1 to 65535" in capsys.readouterr().err


# ------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("page") / "log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "foveate", "page", "--port", str(port)],
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        for _ in range(6000):
            if "http://" in log.read_text() or server.poll() is not None:
                break
            time.sleep(0.1)
        assert "http://" in log.read_text(), log.read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser: Any, address: str, width: int = 1440) -> Any:
    """A new page of a user of one's own, when its first answers are complete."""
    page = browser.new_context(viewport={"width": width, "height": 900}).new_page()
    page.set_default_timeout(WAIT)
    page.goto(address)
    page.wait_for_selector(".fv-costs tbody tr:nth-child(4)")
    return page


def click_until(what: Any, shown: Any, words: str, **position: int) -> None:
    """Click until a text is shown: what is clicked is drawn anew while answers arrive."""
    for _ in range(40):
        what.click(**({"position": position} if position else {}))
        if words in shown.inner_text():
            return
        shown.page.wait_for_timeout(250)
    raise AssertionError(f"{words!r} is not in {shown.inner_text()!r}")


@browser_test
@pytest.mark.slow
def test_slide_ask_click_and_read(browser: Any, address: str) -> None:
    page = opened(browser, address)
    elsewhere: list[str] = []
    page.on("request", lambda request: elsewhere.append(request.url))
    page.locator("#question textarea").fill("What does the sign say?")
    page.locator("#budget input[type=number]").fill("50")
    page.locator("#budget input[type=number]").press("Tab")  # asks, as a released slider does
    page.wait_for_function(
        "document.querySelector('[data-key=divprune] small')?.innerText.startsWith('72 of 144')"
    )
    page.wait_for_selector(".fv-costs tbody tr:nth-child(4)")
    assert page.locator(".fv-card[data-key=dense] .fv-answer").inner_text() == "S5"
    card = page.locator(".fv-card[data-key=divprune]")
    click_until(card.locator("canvas"), card.locator(".fv-token"), "saliency", x=5, y=5)
    assert card.locator(".fv-token").inner_text().startswith(("Kept", "Dropped"))
    duet = page.locator(".fv-card[data-key=duet]")
    layer = duet.locator(".fv-strip button").nth(3)
    click_until(layer, duet.locator(".fv-said"), "Decoder layer 3 of 4")
    page.wait_for_function(
        "document.querySelector('.fv-costs')?.innerText.split('KiB').length == 5"
    )
    assert all(url.startswith((address, "data:", "blob:")) for url in elsewhere)
    page.context.close()


@browser_test
@pytest.mark.slow
def test_upload_and_broken_files(browser: Any, address: str, tmp_path: Path) -> None:
    page = opened(browser, address)
    (tmp_path / "text.jpg").write_text("no picture")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    write_sound(tmp_path / "sound.mp4")
    for name in ("text.jpg", "bomb.png", "sound.mp4"):
        page.locator("#upload input[type=file]").set_input_files(tmp_path / name)
        page.wait_for_selector(f".fv-error:has-text('{name}')")
        said = page.locator(".fv-error").inner_text()
        assert said.endswith(".") and "\n" not in said and "Traceback" not in said
        page.reload()
        page.wait_for_selector(".fv-costs tbody tr:nth-child(4)")
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "photo.png")
    page.locator("#upload input[type=file]").set_input_files(tmp_path / "photo.png")
    page.wait_for_selector(".fv-welcome")
    page.locator("#ask").click()
    page.wait_for_selector(".fv-costs tbody tr:nth-child(4)")
    page.context.close()


@browser_test
@pytest.mark.slow
def test_two_users_at_once_and_a_link(browser: Any, address: str) -> None:
    first = opened(browser, address, 390)
    assert first.evaluate("document.documentElement.scrollWidth") <= 390
    link = f"{address}/?example=scene-507&question=What+does+the+sign+say%3F&methods=duet&budget=60"
    link += "&schedule=published"
    second = browser.new_context().new_page()
    second.set_default_timeout(WAIT)
    second.goto(link)
    first.locator("#ask").click()
    second.wait_for_selector(".fv-costs tbody tr:nth-child(2)")
    assert second.locator(".fv-card").count() == 2
    assert second.locator(".fv-card[data-key=dense] .fv-answer").inner_text() == "TM"
    last = second.locator(".fv-card[data-key=duet] .fv-strip button").last
    assert last.get_attribute("title") == "decoder layer 3: 0 tokens"
    zero = second.context.new_page()
    zero.goto(f"{address}/?budget=0&methods=none&schedule=mine&example=gone")
    zero.wait_for_selector(".fv-card[data-key=divprune]", timeout=WAIT)
    assert zero.locator("#budget input[type=number]").input_value() == "1"
    first.wait_for_selector(".fv-costs tbody tr:nth-child(4)")
    assert first.locator(".fv-card[data-key=dense] .fv-answer").inner_text() == "4"
    first.context.close()
    second.context.close()
