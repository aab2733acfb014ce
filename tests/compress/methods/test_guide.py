"""The example of docs/add-a-method.md works and agrees with its reference."""

from __future__ import annotations

import re
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compress import list_methods
from tests.compress.methods import golden
from tests.compress.methods.cases import check, inputs, sample

GUIDE = Path(__file__).parents[3] / "docs" / "add-a-method.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """The class and the reference that the guide shows."""
    method, reference = re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    module = types.ModuleType("chunks")
    monkeypatch.setitem(sys.modules, "chunks", module)  # where type hints are looked up
    exec(method, vars(module))
    names = dict(vars(golden))
    exec(reference, names)
    return module.Chunks, names["chunks"]


@pytest.mark.parametrize(("chunks", "keep"), [(16, 9), (5, 20), (1, 3), (99, 35)])
def test_the_example_agrees_with_its_reference(example, chunks, keep):
    method, reference = example
    tokens = inputs()
    reduction = method(chunks).reduce(tokens, keep)
    for b in range(2):
        v = sample(tokens, b)
        check(reduction, b, reference(v["features"], v["saliency"], keep, min(chunks, 36)))


def test_the_example_is_a_method(example):
    method, _ = example
    assert method().reduce(inputs(grid=(4, 2, 3)), 10).validate().count == 10
    with pytest.raises(ValueError, match="Chunks needs saliency"):
        method().reduce(replace(inputs(), saliency=None), 5)
    with pytest.raises(ValueError, match="chunks is 0"):
        method(0)


def test_the_guide_names_what_exists():
    import compress.ops as ops
    from compress.ops import greedy, windows

    for file, names in re.findall(r"\| `(\w+\.py)` \| (.*) \|", GUIDE.read_text("utf-8")):
        owner = {"greedy.py": greedy, "windows.py": windows}.get(file, ops)
        assert (Path(ops.__file__).parent / file).is_file()
        for name in re.findall(r"`(\w+)`", names):
            assert hasattr(owner, name), name
    assert "chunks" not in list_methods()
