"""The command line: one line on a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.__main__ import main


def test_the_command_prints_one_line_on_a_mistake(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mini", "--model", "./nowhere", "optimizer.bach=3"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["mini", "optimizer.bach=3"]) == 2
    assert capsys.readouterr().err.startswith("error: optimizer.bach: there is no such key")
    assert main(["finetun"]) == 2
    assert "did you mean 'finetune'" in capsys.readouterr().err
