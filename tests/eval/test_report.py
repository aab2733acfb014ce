"""Reports: the table as text, and a page that escapes what models and files contain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval.answerers import Question, Reply
from eval.arms import DENSE, Arm
from eval.benchmarks.embedded import Embedded
from eval.report import table, write_report
from eval.runner import open_run, run
from eval.samples import Picture
from eval.statistics import interval
from eval.summary import Result


class Stub:
    def describe(self) -> dict[str, Any]:
        return {"name": "stub", "chat_template": "{{ '<s>' }}"}

    def answer(self, questions: Sequence[Question], arm: Arm, seed: int) -> list[Reply]:
        return [Reply("red", 'USER: <image> & "it"') for _ in questions]


def test_the_page_escapes_prompts_errors_and_configuration(tmp_path: Path) -> None:
    benchmark = Embedded(scenes=1, clips=0)
    samples = benchmark.load().samples
    samples[0] = replace(samples[0], key="<k>", media=(Picture(b"no image"),))
    folder = open_run(tmp_path, benchmark, samples, Stub())
    run(folder, samples, Stub(), [DENSE], progress=False)
    write_report(folder, benchmark, samples, [DENSE])
    page = (folder / "report.html").read_text()
    assert "<pre>USER: &lt;image&gt; &amp; &#34;it&#34;</pre>" in page
    assert "<h2>Not answered: dense</h2>\n<pre>&lt;k&gt;: " in page
    assert "{{ &#39;&lt;s&gt;&#39; }}" in page and "<h2>By category</h2>" in page
    assert '<p class="warn">NOT SCORED: up to 1 questions' in page


def test_the_table_is_aligned_and_has_no_empty_columns() -> None:
    results = [
        Result("dense", interval([1, 1, 0]), figures={"tokens": 576.0}),
        Result("duet 64", interval([1, 0, 0]), figures={"tokens": 64.0}, line="duet"),
    ]
    assert table(results).splitlines() == [
        "         tokens  accuracy    95% interval",
        "dense     576.0     66.7%  20.8% .. 93.9%",
        "duet 64    64.0     33.3%   6.1% .. 79.2%",
    ]
