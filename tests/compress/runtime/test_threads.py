"""Two threads on one compressed model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from compress import CompressionError, compress
from tests.tiny import CASES, Case

HOSTS = [case for case in CASES if case.name in ("llava", "qwen2_5_vl")]
ROUNDS = 20


@pytest.fixture
def quick_switching() -> Iterator[None]:
    """Threads that take turns far more often than they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def answers(model: Any, given: dict[str, Any], rounds: int) -> list[Any]:
    """Greedy ids of each round, or the error in its place."""
    results: list[Any] = []
    for _ in range(rounds):
        try:
            results.append(model.generate(**given, max_new_tokens=3, do_sample=False))
        except Exception as error:
            results.append(error)
    return results


@pytest.mark.usefixtures("quick_switching")
@pytest.mark.parametrize("method", [None, "duet", "foveate"])
@pytest.mark.parametrize("case", HOSTS, ids=lambda case: case.name)
def test_each_thread_gets_its_own_answers(case: Case, method: str | None) -> None:
    """As one thread gets them. A refusal that speaks of threads would do as well; None is the
    stock model, which shows that nothing but the compression is tested."""
    model = case.model()
    prompts = [case.inputs([case.sample((3, ("image", kind), 5), seed=s)])
               for s, kind in enumerate(("a", "b"))]  # fmt: skip
    barrier = threading.Barrier(len(prompts))

    def work(given: dict[str, Any]) -> list[Any]:
        barrier.wait()
        return answers(model, given, ROUNDS)

    c = None if method is None else compress(model, method, budget=case.budget)
    try:
        wanted = [answers(model, given, 1)[0] for given in prompts]
        with ThreadPoolExecutor(len(prompts)) as pool:
            results = list(pool.map(work, prompts))
    finally:
        if c is not None:
            c.remove()
    for expected, of_thread in zip(wanted, results, strict=True):
        for result in of_thread:
            if isinstance(result, Exception):
                assert isinstance(result, CompressionError) and "thread" in str(result), repr(
                    result
                )
            else:
                assert torch.equal(result, expected)
