"""The answerer by HTTP, against a server in this process."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from PIL import Image

from eval.__main__ import main
from eval.answerers import Question
from eval.arms import DENSE, Arm
from eval.endpoint import Endpoint, EndpointAnswerer
from eval.samples import DataError

Answer = tuple[int, Any, dict[str, str]]


class Server:
    """An OpenAI API. answer: from a request's body, and how often it came, to an answer."""

    def __init__(self, answer: Callable[[dict[str, Any], int], Answer]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.together = self.most = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"data": [{"id": "served"}]}, {})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    times = server.bodies.count(body)
                    server.bodies.append(body)
                    server.headers.append(self.headers)
                    server.together += 1
                    server.most = max(server.most, server.together)
                try:
                    answered = answer(body, times)
                finally:  # before the reply, after which the next request may come
                    with lock:
                        server.together -= 1
                self.reply(*answered)

            def reply(self, status: int, value: Any, headers: dict[str, str]) -> None:
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, text in headers.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@contextmanager
def serving(answer: Callable[[dict[str, Any], int], Answer]) -> Iterator[Server]:
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()


def said(text: str) -> Answer:
    usage = {"prompt_tokens": 11, "completion_tokens": 2}
    return 200, {"choices": [{"message": {"content": text}}], "usage": usage}, {}


def text_of(body: dict[str, Any]) -> str:
    return body["messages"][0]["content"][-1]["text"]


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (shade, 0, 0))


def test_images_come_before_the_prompt_and_answers_in_order() -> None:
    questions = [Question(f"q{n}", (picture(n), picture(0)), 5) for n in range(12)]
    gate = threading.Barrier(4)

    def answer(body: dict[str, Any], times: int) -> Answer:
        gate.wait(5)  # answers only if four requests are here together
        return said(text_of(body).upper())

    with serving(answer) as server:
        extra = {"mm_processor_kwargs": {"foveate_keep": 0.25}}
        endpoint = Endpoint(server.url, concurrency=4, extra=extra, key="secret")
        replies = EndpointAnswerer(endpoint).answer(questions, DENSE, 0)
    assert [reply.text for reply in replies] == [f"Q{n}" for n in range(12)]
    assert server.most == 4
    assert replies[0].figures["prompt"] == 11 and replies[0].figures["generated"] == 2
    body = next(one for one in server.bodies if text_of(one) == "q3")
    assert body["model"] == "served" and body["max_tokens"] == 5 and body["temperature"] == 0
    assert body["mm_processor_kwargs"] == {"foveate_keep": 0.25}
    url = body["messages"][0]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.partition("base64,")[2])))
    assert sent.getpixel((0, 0)) == (3, 0, 0)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    assert "secret" not in repr(endpoint)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_tries_again(status: int) -> None:
    def answer(body: dict[str, Any], times: int) -> Answer:
        return (status, {}, {"Retry-After": "0"}) if times < 2 else said("yes")

    with serving(answer) as server:
        endpoint = Endpoint(server.url, retries=2, wait=0.001)
        assert EndpointAnswerer(endpoint).answer([Question("q")], DENSE, 0)[0].text == "yes"
        assert len(server.bodies) == 3


def test_a_broken_answer_is_asked_for_again() -> None:
    with serving(lambda body, times: (200, b"{", {}) if times == 0 else said("yes")) as server:
        endpoint = Endpoint(server.url, wait=0.001)
        assert EndpointAnswerer(endpoint).answer([Question("q")], DENSE, 0)[0].text == "yes"


def test_gives_up_with_a_sentence() -> None:
    with serving(lambda body, times: (503, {"error": "busy"}, {})) as server:
        answerer = EndpointAnswerer(Endpoint(server.url, retries=1, wait=0.001))
        with pytest.raises(DataError, match=r"in 2 tries \(HTTP 503.*busy.*run the same command"):
            answerer.answer([Question("q")], DENSE, 0)


def test_a_refused_request_is_one_error_and_no_more() -> None:
    def answer(body: dict[str, Any], times: int) -> Answer:
        return (400, {"error": "bad image"}, {}) if text_of(body) == "q1" else said("yes")

    with serving(answer) as server:
        answerer = EndpointAnswerer(Endpoint(server.url))
        replies = answerer.answer([Question(f"q{n}") for n in range(3)], DENSE, 0)
        assert len(server.bodies) == 3
    assert [reply.text for reply in replies] == ["yes", "", "yes"]
    assert "bad image" in replies[1].error


def test_images_as_files(tmp_path: Path) -> None:
    with serving(lambda body, times: said("yes")) as server:
        endpoint = Endpoint(server.url, image_folder=tmp_path)
        EndpointAnswerer(endpoint).answer([Question("q", (picture(7),))] * 2, DENSE, 0)
        url = server.bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert Image.open(urlparse(url).path).getpixel((0, 0)) == (7, 0, 0)
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a URL"):
        Endpoint("localhost:8000")
    with pytest.raises(ValueError, match="concurrency 0"):
        Endpoint("http://localhost:8000", concurrency=0)
    with pytest.raises(DataError, match="did not answer in 1 tries"):
        EndpointAnswerer(Endpoint("http://127.0.0.1:9", retries=0))
    with serving(lambda body, times: said("yes")) as server:
        with pytest.raises(DataError, match=r"serves \['served'\], not 'other'"):
            EndpointAnswerer(Endpoint(server.url, "other"))
        with pytest.raises(ValueError, match="reduced by its server's settings"):
            EndpointAnswerer(Endpoint(server.url)).answer([], Arm("duet", 64), 0)


def test_an_interrupted_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = True

    def answer(body: dict[str, Any], times: int) -> Answer:
        if broken and len(server.bodies) > 20:
            return 500, {}, {"Retry-After": "0"}
        return said("two")

    with serving(answer) as server:
        command = ["embedded", "--scenes", "12", "--clips", "0", "--endpoint", server.url]
        command += ["--output", str(tmp_path), "--batch-size", "4", "--retries", "0"]
        assert main(command) == 2
        assert "run the same command again" in capsys.readouterr().err
        before, broken = len({json.dumps(body) for body in server.bodies}), False
        asked = len(server.bodies)
        assert main(command) == 0
        # Whole batches that were answered are not asked again.
        different = len({json.dumps(body) for body in server.bodies})
        assert len(server.bodies) - asked <= different - before + 2 * 4
        capsys.readouterr()
        assert main([*command, "--served-as", "duet, keep 48"]) == 0
        rows = [row.split("  ")[0] for row in capsys.readouterr().out.splitlines()]
        assert "duet, keep 48" in rows and "served" in rows and "dense" not in rows
        assert main([*command, "--method", "duet", "--budget", "64"]) == 2
        assert "the server reduces" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 1
