"""The cost of a selection on a GPU: kernel launches, and values that the host reads."""

from __future__ import annotations

import pytest

from compress.methods import get_method
from tests.compress.methods.cases import inputs
from tests.compress.methods.test_contracts import PRE_LLM
from tests.compress.ops.launches import as_on_gpu, looks

KEEP = 192
# Methods that score all tokens anew after each selection, and the launches that this takes.
ANEW = {"idselection": 7, "mmr": 7, "scope": 10}
MOST = {"foveate": 150, "mmtok": 60, "cdpruner": 60, "duet": 60}


@pytest.mark.parametrize("name", MOST)
def test_launches_at_a_third_of_576(name, monkeypatch):
    tokens = inputs(b=2, grid=(1, 24, 24))
    with as_on_gpu(monkeypatch) as launches:
        get_method(name).reduce(tokens, KEEP)
    assert launches.count <= MOST[name], launches.by_name


@pytest.mark.parametrize("name", sorted({*PRE_LLM} - {"pool", "downsample"}))
def test_at_most_three_launches_a_selection(name, monkeypatch):
    """Pooling fills its map on the host, which this count cannot tell from a launch."""
    counts = []
    for keep in (48, KEEP):
        with as_on_gpu(monkeypatch) as launches:
            get_method(name).reduce(inputs(b=1, grid=(1, 24, 24)), keep)
        counts.append(launches.count)
    assert counts[1] - counts[0] <= ANEW.get(name, 3) * (KEEP - 48), launches.by_name


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", PRE_LLM)
def test_one_look_at_most(name, check, monkeypatch):
    tokens = inputs(b=3, grid=(1, 12, 12))
    with as_on_gpu(monkeypatch), looks(monkeypatch) as counts:
        get_method(name).reduce(tokens, 40, check=check)
    assert dict(counts) == ({"tolist": 1} if check else {})
