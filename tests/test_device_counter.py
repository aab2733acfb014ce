"""The device counter on small functions with known counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.device_counter import DEVICE, DeviceCounter, DeviceTensor, to_device


def counted(run: Callable[[Tensor], Any], *shape: int) -> tuple[int, int, int]:
    """(syncs, copies, launches) of `run` on a device tensor of ones."""
    with DeviceCounter() as counter, torch.no_grad():
        x = to_device(torch.ones(*(shape or (4, 4))))
        counter.take()
        run(x)
        totals = counter.take().totals()
    return totals["syncs"], totals["copies"], totals["launches"]


SYNCS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "item": (lambda x: x[0, 0].item(), 1),
    "bool": (lambda x: bool(x[0, 0]), 1),
    "comparison in Python": (lambda x: 1 if x.sum() > 3 else 0, 1),
    "float": (lambda x: float(x[0, 0]), 1),
    "tolist": (lambda x: x.tolist(), 1),
    "cpu": (lambda x: x.cpu(), 1),
    "to the host": (lambda x: x.to("cpu"), 1),
    "copy to the host": (lambda x: torch.zeros(4, 4).copy_(x), 1),
    "nonzero": (lambda x: x.nonzero(), 1),
    "boolean mask": (lambda x: x[x > 0], 1),
    "values under a mask": (lambda x: x.index_put_((x > 0,), x.new_ones(16)), 1),
    "masked_select": (lambda x: x.masked_select(x > 0), 1),
    "unique": (lambda x: x.unique(), 1),
    "unique_consecutive": (lambda x: x.unique_consecutive(), 1),
    "equal": (lambda x: torch.equal(x, x), 1),
    "bincount": (lambda x: x.long().flatten().bincount(), 1),
    "repeats of unknown length": (lambda x: x[0].repeat_interleave(x[0].long()), 1),
    "repeats of known length": (
        lambda x: x[0].repeat_interleave(x[0].long(), output_size=4),
        0,
    ),
    "repeats of one number": (lambda x: x.repeat_interleave(2, 0), 0),
    "number under a mask": (lambda x: x.index_put_((x > 0,), torch.tensor(2.0)), 0),
    "integer index": (lambda x: x[x[0].long() - 1], 0),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 2.0), 0),
    "matmul, softmax, top-k": (lambda x: (x @ x).softmax(-1).topk(2), 0),
    "view": (lambda x: x.t().reshape(-1)[2:].unsqueeze(0), 0),
}
COPIES: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "to": (lambda x: torch.ones(3).to(x.device), 1),
    "tensor of a list": (lambda x: torch.tensor([1, 2], device=x.device), 1),
    "as_tensor of a list": (lambda x: torch.as_tensor([1, 2], device=x.device), 1),
    "new_tensor": (lambda x: x.new_tensor([1, 2]), 1),
    "copy from the host": (lambda x: x.copy_(torch.zeros(4, 4)), 1),
    "host index": (lambda x: x[torch.tensor([0, 1])], 1),
    "list index": (lambda x: x[[0, 1]], 1),
    "arange on the device": (lambda x: torch.arange(4, device=x.device), 0),
    "zeros on the device": (lambda x: x.new_zeros(3), 0),
    "to its own device": (lambda x: x.to(x.device), 0),
    "number": (lambda x: x * 2 + torch.tensor(1.0), 0),
    "empty": (lambda x: torch.tensor([], device=x.device), 0),
    "host alone": (lambda x: torch.ones(3) + torch.arange(3), 0),
}
LAUNCHES: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "add": (lambda x: x + 1, 1),
    "in place": (lambda x: x.add_(1), 1),
    "linear": (lambda x: nn.functional.linear(x, x), 1),
    "softmax of a product": (lambda x: (x @ x).softmax(-1), 2),
    "conversion": (lambda x: x.double(), 1),
    "no conversion": (lambda x: x.float(), 0),
    "views": (lambda x: x.t()[1:].unsqueeze(0).expand(2, -1, -1).transpose(0, 1), 0),
    "contiguous": (lambda x: x.t().contiguous(), 1),
    "zeros": (lambda x: torch.zeros(3, device=x.device), 1),
    "nothing but memory": (lambda x: torch.empty(3, device=x.device), 0),
    "attention": (
        lambda x: nn.functional.scaled_dot_product_attention(x[None], x[None], x[None]),
        1,
    ),
    "host alone": (lambda x: torch.ones(3) + 1, 0),
}


@pytest.mark.parametrize("name", SYNCS)
def test_synchronisations(name: str) -> None:
    run, expected = SYNCS[name]
    assert counted(run)[0] == expected


@pytest.mark.parametrize("name", COPIES)
def test_copies_to_the_device(name: str) -> None:
    run, expected = COPIES[name]
    assert counted(run)[1] == expected


@pytest.mark.parametrize("name", LAUNCHES)
def test_launches(name: str) -> None:
    run, expected = LAUNCHES[name]
    assert counted(run)[2] == expected


def test_counts_are_by_line() -> None:
    with DeviceCounter() as counter:
        x = to_device(torch.ones(2))
        for _ in range(3):
            bool(x.sum() > 0)
        counts = counter.take()
        assert counter.take().totals() == {"syncs": 0, "copies": 0, "launches": 0}
    (line,) = counts.syncs
    assert line.startswith("tests/test_device_counter.py:")
    assert line.endswith("test_counts_are_by_line") and counts.syncs[line] == 3


def test_host_and_device_tensors_do_not_mix() -> None:
    with DeviceCounter(), pytest.raises(RuntimeError, match="one device"):
        to_device(torch.ones(2)) + torch.ones(2)


def test_a_module_computes_what_it_computes_on_the_host() -> None:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        wanted = block(x)
        with DeviceCounter() as counter:
            actual = to_device(block)(to_device({"x": x})["x"])
            assert isinstance(actual, DeviceTensor) and actual.device == DEVICE
            assert counter.take().totals()["syncs"] == 0
            torch.testing.assert_close(actual.cpu(), wanted)


def test_it_leaves_nothing_behind() -> None:
    before = torch.cuda._lazy_init
    with DeviceCounter():
        pass
    assert torch.cuda._lazy_init is before
    with pytest.raises(ZeroDivisionError), DeviceCounter():
        _ = 1 / 0
    assert torch.cuda._lazy_init is before
