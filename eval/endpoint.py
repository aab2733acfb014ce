"""Answers from a server with OpenAI's API, such as vLLM, over HTTP."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from eval.answerers import Question, Reply
from eval.arms import Arm
from eval.samples import DataError
from vlm.media import Video, png

RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""HTTP statuses that another try may change."""


class Refused(Exception):  # noqa: N818 - what the server did
    """The server refuses a request, and would again. The message is its own."""


@dataclass(frozen=True)
class Endpoint:
    """A server and how it is asked.

    Args:
        url: of the API, such as "http://localhost:8000/v1".
        model: the served model's name; None: the one that the server lists.
        concurrency: requests at one time.
        retries: tries after the first, for errors of the connection and for `RETRIED`.
        timeout: seconds for one request.
        wait: seconds before the second try, doubled for each one after it. A server's own
            `Retry-After` comes first.
        image_folder: a folder that the server can read too. Images are written to it and named in
            requests. None: they are sent in the request.
        extra: further fields of each request, such as
            {"mm_processor_kwargs": {"foveate_keep": 0.25}}.
        key: sent as a bearer token.
    """

    url: str
    model: str | None = None
    concurrency: int = 8
    retries: int = 6
    timeout: float = 300.0
    wait: float = 0.5
    image_folder: Path | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Raise ValueError for a URL or a number that cannot be."""
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(
                f"endpoint is {self.url!r}; expected a URL such as http://host:8000/v1"
            )
        if self.concurrency < 1 or self.retries < 0 or self.timeout <= 0 or self.wait < 0:
            raise ValueError(
                f"concurrency {self.concurrency}, retries {self.retries}, timeout {self.timeout}, "
                f"wait {self.wait}: expected at least 1, 0, more than 0, and 0"
            )

    def request(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON answer of the server; a POST if there is a body.

        Raises Refused for a status that is not `RETRIED`, DataError if all tries fail.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        call = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", data, headers)
        problem = ""
        for number in range(self.retries + 1):
            pause = self.wait * 2**number * random.uniform(0.5, 1.0)
            try:
                with urllib.request.urlopen(call, timeout=self.timeout) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read().decode(errors='replace')[:500]}"
                if error.code not in RETRIED:
                    raise Refused(problem) from error
                pause = _seconds(error.headers.get("Retry-After"), pause)
            except (OSError, ValueError) as error:  # no connection, a broken one, no JSON
                problem = str(error)
            if number < self.retries:
                time.sleep(pause)
        raise DataError(
            f"{self.url} did not answer in {self.retries + 1} tries ({problem}). Results so far "
            "are kept: run the same command again to go on"
        )


def _seconds(header: str | None, otherwise: float) -> float:
    try:
        return otherwise if header is None else max(0.0, float(header))
    except ValueError:  # a date
        return otherwise


class EndpointAnswerer:
    """Asks a served model, greedily; how it reduces is the server's affair.

    Raises:
        DataError: the server does not answer, or lists no model, or not the one that was named.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        try:
            listed = [one["id"] for one in endpoint.request("models")["data"]]
        except (Refused, KeyError, TypeError) as error:
            raise DataError(f"{endpoint.url}/models lists no models: {error}") from error
        name = endpoint.model if endpoint.model is not None else next(iter(listed), None)
        if name not in listed:
            raise DataError(f"{endpoint.url} serves {listed}, not {name!r}")
        self.name = str(name)

    def describe(self) -> dict[str, Any]:
        """Name and the fields of requests. The URL is left out: a server may move."""
        return {
            "name": self.name,
            "class": "served",
            "extra": dict(self._endpoint.extra),
            "generation": "greedy",
        }

    def answer(self, questions: Sequence[Question], arm: Arm, seed: int) -> list[Reply]:
        """See `eval.answerers.Answerer`. A reply has an `error` if the server refuses the request.

        Figures: "seconds" from request to answer; "prompt" and "generated", the server's counts of
        tokens.

        Raises ValueError for an arm that reduces: the server does that.
        """
        if arm.method is not None:
            raise ValueError(f"{arm.title}: a served model is reduced by its server's settings")
        with ThreadPoolExecutor(self._endpoint.concurrency) as pool:
            return list(pool.map(self._ask, questions))

    def _ask(self, question: Question) -> Reply:
        turns = [(text,) for text in (*question.earlier, question.prompt)]
        turns[0] = (*question.media, *turns[0])
        messages: list[dict[str, Any]] = []
        for parts in [question.content] if question.content else turns:
            content = [part for one in parts for part in self._parts(one)]
            messages.append({"role": "user", "content": content})
            reply = self._say(messages, question.max_new_tokens)
            if reply.error:
                break
            messages.append({"role": "assistant", "content": reply.text})
        return reply

    def _say(self, messages: list[dict[str, Any]], most: int) -> Reply:
        """The next message of a conversation."""
        body = {
            **self._endpoint.extra,
            "model": self.name,
            "messages": messages,
            "max_tokens": most,
            "temperature": 0,
        }
        began = time.perf_counter()
        try:
            answer = self._endpoint.request("chat/completions", body)
        except Refused as error:
            return Reply("", error=str(error))
        figures = {"seconds": time.perf_counter() - began}
        usage = answer.get("usage") or {}
        for name, key in (("prompt", "prompt_tokens"), ("generated", "completion_tokens")):
            if usage.get(key) is not None:
                figures[name] = float(usage[key])
        return Reply(answer["choices"][0]["message"]["content"] or "", figures=figures)

    def _parts(self, part: Any) -> list[dict[str, Any]]:
        """A text or image as a message holds it; a video as its frames."""
        if isinstance(part, str):
            return [{"type": "text", "text": part}]
        images = map(Image.fromarray, part.frames) if isinstance(part, Video) else [part]
        return [{"type": "image_url", "image_url": {"url": self._url(one)}} for one in images]

    def _url(self, image: Image.Image) -> str:
        data = png(image)
        folder = self._endpoint.image_folder
        if folder is None:
            return f"data:image/png;base64,{base64.b64encode(data).decode()}"
        path = folder.absolute() / f"{hashlib.sha256(data).hexdigest()[:32]}.png"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return path.as_uri()
