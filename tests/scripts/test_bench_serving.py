"""The bench of serving asks its servers in turn and goes on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scripts import bench_serving
from scripts.bench_serving import SHARES, STOCK, main, rows_of, table

FASTER = {STOCK: 4.0, "plugin, all kept": 4.0, "1/3 kept": 2.0, "1/9 kept": 1.0}


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """No server runs; which ones are started, and asked, in order."""
    seen: dict[str, list[str]] = {"started": [], "asked": []}
    shares = {json.dumps(share): name for name, share in SHARES.items()}
    named: dict[str, str] = {}

    @contextmanager
    def server(environment: Any, command: list[str], port: int) -> Iterator[str]:
        plugin = "--hf-overrides" in command
        assert plugin != (environment == {"VLLM_PLUGINS": ""})
        keep = json.loads(command[-1])["foveate"]["keep"] if plugin else None
        url = f"http://127.0.0.1:{port}"
        named[url] = shares[json.dumps(keep)]
        seen["started"].append(named[url])
        yield url

    def ask(url: str, seed: int, tokens: int) -> tuple[float, int]:
        if len(seen["asked"]) == 30:
            raise KeyboardInterrupt
        seen["asked"].append(named[url])
        return FASTER[named[url]], 590

    monkeypatch.setattr(bench_serving, "server", server)
    monkeypatch.setattr(bench_serving, "ask", ask)
    monkeypatch.setattr(bench_serving, "build", str)
    return seen


def test_servers_are_asked_in_turn_and_a_run_goes_on(
    servers: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serving.json"
    command = ["run", "--output", str(path), "--rounds", "2", "--concurrency", "1"]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    before = json.loads(path.read_text())["measurements"]
    assert 0 < len(before) < 2 * len(SHARES)
    servers["asked"].clear()
    assert main(command) == 0
    report = json.loads(path.read_text())
    assert report["measurements"][: len(before)] == before
    names = [(one["round"], one["name"]) for one in report["measurements"]]
    first, second = names[: len(SHARES)], names[len(SHARES) :]
    assert {name for _, name in first} == {name for _, name in second} == set(SHARES)
    assert [n for _, n in first] != [n for _, n in second]  # another order every round
    assert all(one["load"] >= 0 for one in report["measurements"])
    asked = len(servers["asked"])
    assert main(command) == 0 and len(servers["asked"]) == asked  # nothing is left to do
    with pytest.raises(SystemExit):
        main([*command, "--tokens", "9"])
    assert "--again" in capsys.readouterr().err
    rows = {row["name"]: row for row in rows_of(report)}
    assert rows["1/9 kept"]["sooner"] == 4 and rows[STOCK]["sooner"] == 1
    assert rows[STOCK]["blocks"] == -(-(590 + 4) // 32)
    assert "4.00x" in table(report)


def test_servers_run_alone_where_memory_is_short(
    servers: dict[str, list[str]], tmp_path: Path
) -> None:
    command = ["run", "--output", str(tmp_path / "serving.json"), "--rounds", "2", "--alone"]
    assert main([*command, "--concurrency", "1", "--requests", "1"]) == 0
    assert servers["started"] == list(SHARES)
    asked = [name for name in SHARES for _ in range(4)]  # two to warm up, two rounds
    assert servers["asked"] == asked


def test_the_commands_of_a_gpu_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    command = ["run", "--client", "vllm", "--output", str(path)]
    with pytest.raises(SystemExit):
        main(command)
    capsys.readouterr()
    assert main([*command, "--model", "llava-hf/llava-1.5-7b-hf", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("vllm.entrypoints.openai.api_server") == len(SHARES)
    assert printed.count("vllm bench serve --backend openai-chat") == 3 * len(SHARES)
    assert "--max-concurrency 32" in printed and '"keep": 1.0' in printed
    assert not path.exists()
