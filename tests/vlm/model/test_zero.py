"""Training on two processes, one without pictures: ZeRO-3 gives the losses of ZeRO-2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

pytest.importorskip("deepspeed")


def train(stage, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    shared |= {"MASTER_PORT": str(port), "TORCH_EXTENSIONS_DIR": str(tmp_path / "built")}
    command = [sys.executable, "-m", "tests.vlm.model.zero_worker", str(stage)]
    workers = [
        subprocess.Popen(
            command,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [worker.communicate(timeout=900)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    lines = [line for line in said[0].splitlines() if line.startswith("losses")]
    assert lines, said[0][-3000:] + said[1][-3000:]
    return [float(word) for word in lines[0].split()[1:]]


@pytest.mark.slow
def test_ranks_without_pictures(tmp_path):
    actual = train(3, tmp_path)
    assert actual == pytest.approx(train(2, tmp_path), abs=2e-4)
    assert actual[-1] < actual[0]
