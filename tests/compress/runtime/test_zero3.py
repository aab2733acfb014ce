"""The same module calls on every process of ZeRO-3, whatever each has in its batch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.compress.runtime import zero3_worker


def finished(processes: list[subprocess.Popen[bytes]], limit: float) -> list[int | None]:
    """Exit codes, None for one that was still running after `limit` seconds or another's failure.

    A process that does not meet the other's call waits for ever: it is ended here.
    """
    end = time.monotonic() + limit
    codes = [process.poll() for process in processes]
    while None in codes and not any(codes) and time.monotonic() < end:
        time.sleep(0.2)
        codes = [process.poll() for process in processes]
    for process in processes:
        process.kill()
        process.wait()
    return codes


# Families with one method, and one family with images of two sizes with all of them.
RUNS = [(name, "stages") for name in ("llava", "qwen3_vl", "foveate")]
RUNS += [("qwen2_vl", method) for method in zero3_worker.METHODS if method != "stages"]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), RUNS)
def test_zero3_with_images_on_one_process_only(name: str, method: str, tmp_path: Path) -> None:
    """Two processes, images and text in turn, then images of two sizes: losses are those of one
    process on the mean of the gradients of both batches."""
    pytest.importorskip("deepspeed")
    processes = []
    for rank in range(2):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": 0}
        environment = os.environ | {key: str(value) for key, value in own.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
        command = [
            sys.executable,
            "-m",
            "tests.compress.runtime.zero3_worker",
            name,
            method,
            str(tmp_path),
        ]
        processes.append(subprocess.Popen(command, env=environment))
    assert finished(processes, limit=240) == [0, 0]
    distributed = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    together = zero3_worker.one_process(name, method)
    torch.testing.assert_close(torch.stack(distributed, 1), together, rtol=1e-4, atol=1e-4)
