"""The dry run of the table: a configuration alone is enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaConfig

from scripts.reproduce import main

RATES = ["--tflops", "100", "--bandwidth", "1000"]


def test_the_shapes_of_llava_1_5_7b(tmp_path: Path, capsys: Any) -> None:
    LlavaConfig().save_pretrained(tmp_path)
    given = ["--dry-run", "--model", str(tmp_path), "--benchmark", "pope", "--benchmark", "gqa"]
    assert main([*given, *RATES, "--methods", "duet,random", "--budgets", "192,64"]) == 0
    text = capsys.readouterr().out
    assert "7.06 B parameters, 576 visual tokens an image, 60 text tokens" in text
    assert "questions: pope 8,910, gqa 12,578" in text
    rows = {line[:12].strip(): line[12:].split() for line in text.splitlines()[3:8]}
    assert rows["dense"][:3] == ["576.0", "576", "4,224.8"]
    assert rows["random 192"][:2] == ["192.0", "192"]
    assert float(rows["duet 64"][0]) == pytest.approx(64, abs=0.6)
    assert float(rows["duet 64"][3]) < float(rows["dense"][3])


def test_a_count_that_nothing_tells_is_asked_for(tmp_path: Path, capsys: Any) -> None:
    given = ["--dry-run", "--model", str(tmp_path), "--benchmark", "pope", *RATES]
    assert main(given) == 2
    assert "--model: no configuration of" in capsys.readouterr().err
    assert main(["--dry-run", "--benchmark", "embedded:scenes=0", *RATES]) == 0
