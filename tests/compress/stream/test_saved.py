"""A saved stream goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from compress import StreamError, watch
from compress.stream import saved
from tests.compress.stream.hosts import frames, host


def made(name: str = "qwen2_vl", **options: Any) -> Any:
    model, processor = host(name)
    return watch(model, processor, **({"memory": "random", "budget": 110, "recent": 2} | options))


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("qwen3_vl", "change"),
        *(
            pytest.param(name, memory, marks=pytest.mark.slow)
            for name in ("qwen2_vl", "qwen3_5")
            for memory in ("random", "scored", "foveate")
        ),
    ],
)
def test_goes_on_bit_for_bit(tmp_path: Path, name: str, memory: str) -> None:
    one = made(name, memory=memory)
    one.push(frames(9, name))  # an incomplete step is saved too
    one.save(tmp_path / "stream.safetensors")
    other = made(name, memory=memory).load(tmp_path / "stream.safetensors")
    assert torch.equal(one.logits("What is it?"), other.logits("What is it?"))
    for stream in (one, other):
        stream.push(frames(5, name, seed=1))
    assert torch.equal(one.logits("Where is it?"), other.logits("Where is it?"))
    facts = [vars(stream.report()) | {"push_ms": 0} for stream in (one, other)]
    assert facts[0] == facts[1]
    assert len(list(tmp_path.iterdir())) == 1


def test_what_cannot_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stream.safetensors"
    stream = made()
    stream.push(frames(4, "qwen2_vl"))
    stream.save(path)
    with pytest.raises(StreamError, match=r"saved by a model with fingerprint"):
        made("qwen2_5_vl").load(path)
    with pytest.raises(StreamError, match=r"saved with .*budget=110.*: expected the same options"):
        made(budget=120).load(path)
    monkeypatch.setattr(saved, "FORMAT", 2)
    with pytest.raises(StreamError, match=r"holds format 1: expected a stream of format 2"):
        made().load(path)
    monkeypatch.undo()
    (tmp_path / "text").write_text("no stream")
    with pytest.raises(StreamError, match=r"cannot be read as a stream"):
        made().load(tmp_path / "text")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    kept = stream.logits("What is it?")
    with pytest.raises(StreamError, match=r"cannot be read as a stream"):
        stream.load(path)
    assert torch.equal(stream.logits("What is it?"), kept)
