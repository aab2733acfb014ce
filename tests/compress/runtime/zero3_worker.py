"""One process of the ZeRO-3 test.

python -m tests.compress.runtime.zero3_worker FAMILY METHOD FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress import compress
from compress.methods import DART, Duet, FastV, Foveate, Method, SparseVLM
from tests.tiny import CASES, Case

STEPS, RATE = 4, 0.05
METHODS: dict[str, Method] = {
    "stages": Duet(layers=(1, 3), ratios=(0.6, 0.3)),
    "duet": Duet(),
    "released": Duet(variant="released"),
    "fastv": FastV(),
    "dart": DART(),
    "sparsevlm": SparseVLM(),
    "foveate": Foveate(),
}


def case_of(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def batch(case: Case, step: int, rank: int) -> dict[str, Tensor]:
    """Images on one process, text on the other, by turns; then images of two sizes on the two."""
    layout = case.layouts[step % 2]
    if step >= 2:
        layout = case.layouts[(step + rank) % 2]
    elif step != rank:
        layout = [9]
    sample = case.sample(layout, seed=step)
    given = case.inputs([sample])
    labels = torch.full_like(given["input_ids"], -100)
    labels[:, -2:] = given["input_ids"][:, -2:]
    return given | {"labels": labels}


def budget_of(case: Case) -> int:
    """A count that leaves the smaller image of a family whole, where it has two sizes."""
    return 13 if case.name == "qwen2_vl" else case.budget


def one_process(name: str, method: str) -> Tensor:
    """(steps, 2) losses of both batches, on the mean of their gradients."""
    case = case_of(name)
    model = case.fresh()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    loss_rows = []
    with compress(model, METHODS[method], budget=budget_of(case)):
        for step in range(STEPS):
            losses = torch.stack([model(**batch(case, step, rank)).loss for rank in range(2)])
            losses.mean().backward()
            loss_rows.append(losses.detach())
            optimizer.step()
            optimizer.zero_grad()
    return torch.stack(loss_rows)


def main(name: str, method: str, folder: Path) -> None:
    import deepspeed

    case = case_of(name)
    model = case.fresh()
    # Two processes of a test need no shared-memory kernels, which take minutes to compile.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # They meet in a file: a port that is free now may be taken by the time it is bound.
    rank, meeting = int(os.environ["RANK"]), f"file://{folder.resolve()}/meeting"
    deepspeed.init_distributed("gloo", init_method=meeting, rank=rank, world_size=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,  # 1 by default
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    losses = []
    with compress(engine, METHODS[method], budget=budget_of(case)):
        for step in range(STEPS):
            loss = engine(**batch(case, step, rank)).loss
            engine.backward(loss)
            engine.step()
            losses.append(loss.detach().float().cpu())
    torch.save(torch.stack(losses), folder / f"{rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
