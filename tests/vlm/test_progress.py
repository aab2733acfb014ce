"""Progress in a terminal and in a log."""

from __future__ import annotations

import io
import sys

import pytest
import transformers
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars

from vlm.progress import progress_bar, quiet_logs


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def bars_are_restored():
    yield
    enable_progress_bars()
    transformers.utils.logging.enable_progress_bar()


def test_a_log_gets_lines_and_few_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    assert sum(progress_bar(range(2000), desc="eval")) == 1999 * 1000
    lines = log.getvalue().splitlines()
    assert "\r" not in log.getvalue() and 1 <= len(lines) <= 3
    assert "100%" in lines[-1] and all(line.startswith("eval") for line in lines)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    list(progress_bar(range(3), mininterval=0))
    assert "\r" in terminal.getvalue()
    silent = io.StringIO()
    monkeypatch.setattr(sys, "stderr", silent)
    list(progress_bar(range(3), disable=True))
    assert silent.getvalue() == ""


def test_bars_of_others_are_left_out_of_logs(
    monkeypatch: pytest.MonkeyPatch, bars_are_restored: None
) -> None:
    transformers.utils.logging.enable_progress_bar()
    enable_progress_bars()
    monkeypatch.setattr(sys, "stderr", Terminal())
    quiet_logs()
    assert not are_progress_bars_disabled()
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    quiet_logs()
    assert are_progress_bars_disabled()
    assert not transformers.utils.logging.is_progress_bar_enabled()
